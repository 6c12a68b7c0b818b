"""Train with zeros in the forward pass only: the weights behind them go on learning."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning.masks import make_masks
from jcompress.pruning.scores import score_by_magnitude
from jcompress.pruning.spec import Prune
from jcompress.rules import Rules
from jcompress.sites import Sites


class Masked(NamedTuple):
    """A tree for the forward pass.

    Attributes:
        params: the tree with zeros, through which gradients reach the weights.
        penalty: what to add to the loss, times a strength; a float32 scalar.
        masks: which weights are used, True for keep; None at leaves that no rule takes.
    """

    params: Any
    penalty: jax.Array
    masks: Any


def straight_through(params: Any, masks: Any, *, backward: Any = None) -> Any:
    """Set removed weights to zero, but let gradients reach them.

    For use inside a loss: the forward pass sees `apply_masks(params, masks)`, the
    gradient is that of the masked function with respect to all of its weights.

    Args:
        params: a tree of arrays.
        masks: what `make_masks` returns.
        backward: masks of the weights that get a gradient; None for all.

    Returns:
        The tree with zeros, each leaf of its own dtype.

    Raises:
        MismatchError: a mask has no leaf of its name and shape, there is no mask, or
            the two trees of masks have different leaves.

    References:
        Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", section 4 (the estimator).
    """
    forward = _named(masks)
    if not forward:
        raise MismatchError("straight_through: the tree of masks holds no mask")
    behind = dict.fromkeys(forward) if backward is None else _named(backward)
    if set(behind) != set(forward):
        odd = sorted(set(behind) ^ set(forward))[0]
        raise MismatchError(
            f"straight_through: {odd!r} has a mask for one of the passes only"
        )
    return convert_leaves(
        "straight_through",
        params,
        {path: (forward[path], behind[path]) for path in forward},
        lambda path, leaf, pair: _through(leaf, *pair),
        source="the masks",
        shapes={path: tuple(np.shape(mask)) for path, mask in forward.items()},
        advice="mask before converting",
    )


def sr_ste(params: Any, rules: Rules[Prune], *, sites: Sites) -> Masked:
    """SR-STE: choose the largest weights anew in each step, and let all of them learn.

    Made for N:M. The penalty, half the sum of the squares of what is removed, pulls
    removed weights to zero, so that the choice settles; the paper's strength is 2e-4.

    Args:
        params: the dense weights.
        rules: pairs of a predicate and a `Prune`; sparsities are numbers.
        sites: the sites of the function that these parameters belong to.

    Raises:
        MismatchError: as `make_masks`.

    References:
        Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks
        From Scratch", equation 8.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.pruning import NM, Prune
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.array([[4.0], [-1.0], [2.0], [-3.0]])}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 4)))
        >>> def loss(params):
        ...     small = sr_ste(params, [("w", Prune(pattern=NM(2, 4)))], sites=sites)
        ...     return small.params["w"].sum() + 0.1 * small.penalty
        >>> jax.grad(loss)(params)["w"].ravel().tolist()
        [1.0, 0.8999999761581421, 1.2000000476837158, 1.0]
    """
    masks = _largest(params, rules, sites, None)
    return Masked(straight_through(params, masks), _squares(params, masks, 0.5), masks)


def top_kast(
    params: Any, rules: Rules[Prune], *, sites: Sites, backward: float
) -> Masked:
    """Top-KAST: the largest weights are used, some more get gradients.

    The penalty is that of the paper: the sum of the squares of the weights in use, and
    of the others that get gradients over the fraction that is used; 1e-4 is usual.

    Args:
        params: the dense weights.
        rules: pairs of a predicate and a `Prune`; the sparsity of the forward pass.
        sites: the sites of the function that these parameters belong to.
        backward: the sparsity of the gradients, below that of each rule.

    Raises:
        MismatchError: as `make_masks`, or `backward` removes more than a rule.

    References:
        Jayakumar et al. 2020, "Top-KAST: Top-K Always Sparse Training", section 2.
    """
    masks = _largest(params, rules, sites, None)
    behind = _largest(params, rules, sites, backward)
    used, learning = _named(masks), _named(behind)
    penalty = jnp.zeros((), jnp.float32)
    for path, leaf in named_leaves(params):
        if path not in used:
            continue
        size = jnp.abs(leaf.astype(jnp.float32)) ** 2
        share = jnp.mean(used[path], dtype=jnp.float32)
        more = learning[path] & ~used[path]
        penalty += jnp.sum(jnp.where(used[path], size, 0))
        penalty += jnp.sum(jnp.where(more, size, 0)) / share
    return Masked(straight_through(params, masks, backward=behind), penalty, masks)


def _largest(
    params: Any, rules: Rules[Prune], sites: Sites, sparsity: float | None
) -> Any:
    scores = score_by_magnitude(jax.lax.stop_gradient(params))
    if sparsity is not None:
        for number, (predicate, spec) in enumerate(rules):
            own = None if spec is None else spec.sparsity
            if isinstance(own, int | float) and own < sparsity:
                raise MismatchError(
                    f"top_kast: backward is {sparsity}, but rule {number} "
                    f"({predicate!r}) removes only {own} in the forward pass, whose "
                    "weights need gradients"
                )
        rules = [
            (predicate, spec and dataclasses.replace(spec, sparsity=sparsity))
            for predicate, spec in rules
        ]
    return make_masks(scores, rules, sites=sites)


def _squares(params: Any, masks: Any, factor: float) -> jax.Array:
    named = _named(masks)
    total = jnp.zeros((), jnp.float32)
    for path, leaf in named_leaves(params):
        if path in named:
            gone = jnp.where(named[path], jnp.zeros((), leaf.dtype), leaf)
            total += factor * jnp.sum(jnp.abs(gone.astype(jnp.float32)) ** 2)
    return total


def _named(masks: Any) -> dict[str, Any]:
    return {path: mask for path, mask in named_leaves(masks) if mask is not None}


@jax.custom_jvp
def _through(leaf: jax.Array, mask: jax.Array, backward: jax.Array | None) -> jax.Array:
    masked: jax.Array = jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))
    return masked


@_through.defjvp
def _through_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    leaf, mask, backward = primals
    moved = tangents[0]
    if backward is not None:
        moved = jnp.where(backward, moved, jnp.zeros((), moved.dtype))
    return _through(leaf, mask, backward), moved
