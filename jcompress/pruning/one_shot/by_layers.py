"""Prune layer by layer: each makes up for what the layers before it now give."""

from collections.abc import Callable, Sequence
from typing import Any

from jcompress.conversion.by_layers import (
    LeafDone,
    check_batches,
    check_observable,
    convert_by_layers,
    observed_moments,
    only,
    waiting_leaves,
)
from jcompress.pruning.one_shot.spec import OneShot
from jcompress.pruning.one_shot.weights import check, prune_weights
from jcompress.rules import Rules
from jcompress.sites import find_sites


def prune_by_layers(
    fn: Callable[..., Any],
    params: Any,
    rules: Rules[OneShot],
    batches: Sequence[tuple[Any, ...]],
    *,
    done: Sequence[str] = (),
    on_leaf: Callable[[LeafDone], None] | None = None,
) -> Any:
    """Prune leaf after leaf, in the order in which the function uses them.

    `prune_weights` with moments of the dense model takes every layer's inputs as they
    were. Here those of a layer are observed when all layers before it are pruned, and
    the second moments of one leaf at a time are in memory. It costs one compilation of
    the function and one pass over the batches for each leaf whose method learns.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the parameters. Leaves that are compressed already stay as they are.
        rules: pairs of a predicate and a `OneShot`, as for `prune_weights`.
        batches: the further arguments of `fn`, one tuple for each batch, at least one.
            All have the same shapes, or there is a compilation for each.
        done: names of leaves that stay as they are. To go on after an interruption,
            give the tree that `on_leaf` saved and the names that it was called with.
        on_leaf: called after each leaf, to show progress or to save the tree.

    Returns:
        The tree, as `prune_weights` gives it.

    Raises:
        TypeError: the rules are malformed.
        ValueError: there is no batch, `done` has the name of no leaf of the rules, or a
            leaf holds a number that is not finite.
        MismatchError: as `prune_weights` and `observe`, before any work.

    References:
        Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately
        Pruned in One-Shot", section 4: layers in order, on pruned inputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.pruning.one_shot import prune_by_layers, sparsegpt
        >>> model = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
        >>> params = {name: jnp.eye(8) for name in "ab"}
        >>> x = jax.random.normal(jax.random.key(0), (64, 8))
        >>> rules = [(..., sparsegpt(sparsity=0.9))]
        >>> pruned = prune_by_layers(
        ...     model, params, rules, [(x,)], on_leaf=lambda leaf: print(leaf.path))
        a
        b
        >>> int((pruned["b"] != 0).sum())
        6
    """
    name = "prune_by_layers"
    check_batches(name, batches)
    sites = find_sites(fn, params, *batches[0])
    specs = dict(check(sites, rules, transform=name).leaves)
    unknown = [path for path in done if path not in specs]
    if unknown:
        raise ValueError(
            f"{name}: done has {unknown[0]!r}, which no rule prunes; the leaves that "
            f"are pruned are {', '.join(specs)}"
        )
    waiting = waiting_leaves(params, [p for p in specs if p not in done], sites)
    learning = {path for path in waiting if specs[path].method.learns}
    check_observable(fn, params, learning, batches)

    def convert(params: Any, path: str) -> Any:
        moments = None
        if path in learning:
            moments = observed_moments(fn, params, path, batches)
        own = [(only(path), specs[path])]
        return prune_weights(params, own, sites=sites, moments=moments)

    return convert_by_layers(params, waiting, convert, on_leaf=on_leaf)
