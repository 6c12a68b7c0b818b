"""Convert leaf after leaf, each on what the leaves before it have become."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.leaves import named_leaves
from jcompress.sites import Site, Sites
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors import is_compressed


class LeafDone(NamedTuple):
    """What is known when one more leaf is converted.

    Attributes:
        path: the leaf's name.
        done: how many leaves this run has converted.
        total: how many it has to.
        seconds: how long this one took.
        seconds_left: an estimate for all that are left.
        params: the tree so far; saved, it is what an interrupted run goes on with.
    """

    path: str
    done: int
    total: int
    seconds: float
    seconds_left: float
    params: Any


def check_batches(transform: str, batches: Sequence[tuple[Any, ...]]) -> None:
    """Raise ValueError if there is no batch."""
    if not batches:
        raise ValueError(
            f"{transform}: batches is empty; give at least one tuple of the arguments "
            "that the function takes after the tree"
        )


def waiting_leaves(params: Any, paths: Iterable[str], sites: Sites) -> list[str]:
    """Those that are not compressed yet, in the order in which they are used.

    It is that of the first product of each; leaves in none come first.
    """
    leaves = dict(named_leaves(params))

    def first(path: str) -> tuple[Any, ...]:
        return min((site.location for site in sites.products(path)), default=())

    return [
        path for path in sorted(paths, key=first) if not is_compressed(leaves[path])
    ]


def only(path: str) -> Callable[[Site], bool]:
    """The predicate of one leaf."""
    return lambda site: site.path == path


def check_observable(
    fn: Callable[..., Any],
    params: Any,
    paths: Collection[str],
    batches: Sequence[tuple[Any, ...]],
) -> None:
    """Raise what `observe` raises if the inputs of a leaf cannot be seen."""
    if paths:
        watched = observe(fn, [(lambda s: s.path in paths, True)], SecondMoments())
        jax.eval_shape(watched, params, *batches[0])


def observed_moments(
    fn: Callable[..., Any], params: Any, path: str, batches: Sequence[tuple[Any, ...]]
) -> dict[str, jax.Array]:
    """The second moments of the inputs that one leaf gets now, by its name."""
    observed = observe(fn, [(only(path), True)], SecondMoments())
    # What follows the leaf is computed for nobody: the compiler leaves it out.
    collect = jax.jit(lambda params, *batch: observed(params, *batch)[1])
    total = collect(params, *batches[0])
    for batch in batches[1:]:
        total = jax.tree.map(jnp.add, total, collect(params, *batch))
    return dict(total)


def convert_by_layers(
    params: Any,
    paths: Sequence[str],
    convert: Callable[[Any, str], Any],
    *,
    on_leaf: Callable[[LeafDone], None] | None = None,
) -> Any:
    """Convert the leaves of a tree one after the other.

    Args:
        params: the tree.
        paths: the leaves, in order.
        convert: makes of the tree so far and the name of a leaf the tree with it
            converted.
        on_leaf: called after each leaf.

    Returns:
        The tree with all of them converted.
    """
    begin = time.perf_counter()
    for number, path in enumerate(paths, 1):
        start = time.perf_counter()
        params = convert(params, path)
        if on_leaf is not None:
            now = time.perf_counter()
            left = (now - begin) / number * (len(paths) - number)
            on_leaf(LeafDone(path, number, len(paths), now - start, left, params))
    return params
