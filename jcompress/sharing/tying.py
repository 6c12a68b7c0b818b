"""Tying: one array serves several blocks, or several layers of a stacked leaf."""

import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import find_leaves, replace_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.sharing.ties import Tie, TieLayers, plan_ties
from jcompress.tensors import is_compressed


class Initial(enum.Enum):
    """The value with which a tied array begins."""

    MEAN = "mean"
    """The mean of the arrays that it replaces, taken in float32."""
    FIRST = "first"
    """The first of them."""

    def __repr__(self) -> str:
        return f"Initial.{self.name}"


def tie(params: Any, ties: Sequence[Tie], *, initial: Initial = Initial.MEAN) -> Any:
    """Keep one array where several blocks or layers are to share it.

    Run the function with `tied(fn, ties)`: the gradient of a tied array is the sum of
    the gradients of the arrays it replaces. Every leaf of the result is a plain array,
    so that optimizers and checkpoints know nothing of the ties; a leaf that another
    one serves is None.

    Args:
        params: the parameters, with dense arrays where something is tied.
        ties: what is tied; no leaf may be in two of them.
        initial: what a tied array begins with.

    Returns:
        A smaller tree of the same structure but for the leaves that are None.

    Raises:
        TypeError: `ties` is no sequence of `TieBlocks` and `TieLayers`.
        MismatchError: there is no tie; a name is of no leaf or subtree; the leaves of
            blocks differ in names, shapes or dtypes; a leaf has not as many layers as
            `groups`; a leaf is in two ties, or is no array of floats.

    References:
        Dehghani et al. 2019, "Universal Transformers"; Lan et al. 2020, "ALBERT",
        section 3.1 (cross-layer parameter sharing).

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.sharing import TieBlocks, tie, tied
        >>> def model(params, x):
        ...     return (x @ params["a"]["w"]) @ params["b"]["w"]
        >>> params = {"a": {"w": jnp.eye(2)}, "b": {"w": 3 * jnp.eye(2)}}
        >>> ties = [TieBlocks(("a", "b"))]
        >>> small = tie(params, ties)
        >>> small["b"]["w"] is None
        True
        >>> tied(model, ties)(small, jnp.ones((1, 2)))
        Array([[4., 4.]], dtype=float32)
    """
    leaves = dict(named_leaves(params))
    plan = plan_ties("tie", ties, leaves)
    made: dict[str, Any] = dict.fromkeys(plan.source)
    found = find_leaves(
        "tie",
        params,
        dict.fromkeys([*plan.source, *plan.source.values(), *plan.layers]),
        source="the ties",
        advice="tie the dense arrays, then compress",
    )
    for first in dict.fromkeys(plan.source.values()):
        users = [first, *(path for path, own in plan.source.items() if own == first)]
        _check_same(users, found)
        made[first] = _merged([found[path] for path in users], initial)
    for path, spec in plan.layers.items():
        leaf = jnp.asarray(found[path])
        _check_layers("tie", path, leaf.shape, spec, len(spec.groups))
        layers = [jnp.take(leaf, n, spec.axis) for n in range(len(spec.groups))]
        shared = [
            _merged([x for x, g in zip(layers, spec.groups, strict=True) if g == n],
                    initial)
            for n in range(max(spec.groups) + 1)
        ]  # fmt: skip
        made[path] = jnp.stack(shared, spec.axis)
    return replace_leaves(params, made)


def untie(params: Any, ties: Sequence[Tie]) -> Any:
    """The full tree that a tied tree stands for, with each array in all its places.

    Args:
        params: a tree from `tie`, trained or not; leaves may be compressed where
            blocks, not layers, are tied.
        ties: the ties that it was made with.

    Raises:
        TypeError: as `tie`.
        MismatchError: the tree was not made with these ties: a leaf that they leave
            out is present, or one is missing or of another size.
    """
    return _untied("untie", params, ties)


def tied(fn: Callable[..., Any], ties: Sequence[Tie]) -> Callable[..., Any]:
    """Make a function accept a tree from `tie`.

    Each tied array is handed to `fn` in all its places. The function is plain, so that
    `find_sites`, quantization, pruning and `compressed` see the one array with all its
    uses.

    Args:
        fn: a function of the full tree, such as `model.apply`.
        ties: the ties that the tree was made with.

    Returns:
        A function with the arguments and results of `fn`, which raises what `untie`
        raises.
    """

    @functools.wraps(fn)
    def run(params: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(_untied("tied", params, ties), *args, **kwargs)

    return run


def _untied(transform: str, params: Any, ties: Sequence[Tie]) -> Any:
    flat, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: x is None or is_compressed(x)
    )
    leaves = {path_name(path): leaf for path, leaf in flat}
    plan = plan_ties(transform, ties, leaves)
    for path, first in plan.source.items():
        if leaves[path] is not None:
            raise MismatchError(
                f"{transform}: {path} is present, though {first} serves it; give the "
                "tree that tie(params, ties) made"
            )
        if leaves[first] is None:
            raise MismatchError(
                f"{transform}: {first}, which serves {path}, is missing"
            )
    full = {path: leaves[first] for path, first in plan.source.items()}
    for path, spec in plan.layers.items():
        leaf = leaves[path]
        if is_compressed(leaf):
            raise MismatchError(
                f"{transform}: {path} is a {type(leaf).__name__}, of which layers "
                "cannot be repeated; tie blocks, or compress the untied tree"
            )
        _check_layers(transform, path, np.shape(leaf), spec, max(spec.groups) + 1)
        full[path] = jnp.take(leaf, np.asarray(spec.groups, np.int32), spec.axis)
    return replace_leaves(params, full)


def _check_same(users: Sequence[str], leaves: Mapping[str, Any]) -> None:
    first = leaves[users[0]]
    for path in users[1:]:
        leaf = leaves[path]
        if leaf.shape != first.shape or leaf.dtype != first.dtype:
            raise MismatchError(
                f"tie: {users[0]} is {first.dtype} {list(first.shape)} and {path} is "
                f"{leaf.dtype} {list(leaf.shape)}; one array cannot be both"
            )


def _check_layers(
    transform: str, path: str, shape: tuple[int, ...], spec: TieLayers, count: int
) -> None:
    if not -len(shape) <= spec.axis < len(shape) or shape[spec.axis] != count:
        raise MismatchError(
            f"{transform}: {path} is {list(shape)}, and its axis {spec.axis} should "
            f"number {count} layers for groups {spec.groups}"
        )


def _merged(arrays: Sequence[Any], initial: Initial) -> jax.Array:
    first = jnp.asarray(arrays[0])
    if initial is Initial.FIRST:
        return first
    total = first.astype(jnp.float32)
    for array in arrays[1:]:
        total = total + jnp.asarray(array).astype(jnp.float32)
    return (total / np.float32(len(arrays))).astype(first.dtype)
