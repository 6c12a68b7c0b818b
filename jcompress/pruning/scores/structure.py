"""Scores of whole channels: the scale of their norm, their distance to others."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.pruning.scores._trees import place_scores, scored_leaves
from jcompress.rules import matches_name
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors.axes import from_matrix, to_matrix


def score_by_norm_scale(params: Any, *, scales: str = "**/scale") -> Any:
    """Score channels by the size of the scale that a normalisation gives them.

    For whole units, `jcompress.shrinking.score_units(groups, score_by_norm_scale(p))`:
    a channel whose scale training has made small says little. For masks on the weights
    that make the channels, `spread_units` brings that to them.

    Args:
        params: a tree of arrays.
        scales: a glob of the names of the scales.

    Returns:
        A tree of the same structure: float32 absolute values at the scales, None
        elsewhere, so that nothing else has a say.

    Raises:
        MismatchError: no leaf of floats has such a name.

    References:
        Liu et al. 2017, "Learning Efficient Convolutional Networks through Network
        Slimming", section 3.
    """
    leaves = scored_leaves("score_by_norm_scale", params)
    made = {
        name: jnp.abs(jnp.asarray(leaf)).astype(jnp.float32)
        for name, leaf in leaves.items()
        if matches_name(scales, name)
    }
    if not made:
        raise MismatchError(
            f"score_by_norm_scale: no leaf of floats is named {scales!r}; the tree has "
            + ", ".join(list(leaves)[:8])
        )
    return place_scores(params, made)


def score_by_geometric_median(params: Any, *, sites: Sites) -> Any:
    """Score output channels by how far they are from all other channels of their leaf.

    The score of a channel is the sum of the Euclidean distances between its weights and
    those of each other one. The lowest is nearest to the geometric median: what it
    does, the others do, too. Each weight has the score of its channel.

    Args:
        params: a tree of arrays.
        sites: the sites of the function that these parameters belong to.

    Returns:
        A tree of the same structure: float32 arrays of the shapes of the weights, and
        None at the other leaves. Copies along stack axes are taken apart.

    Raises:
        MismatchError: no weight of the sites is in the tree.

    References:
        He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional
        Neural Networks Acceleration", equation 4.
    """
    leaves = scored_leaves("score_by_geometric_median", params)
    made = {}
    for name in sites.weights:
        if name not in leaves:
            continue
        leaf, axes = jnp.asarray(leaves[name]), leaf_axes(sites.of(name))
        matrix = to_matrix(jnp.abs(leaf) if jnp.iscomplexobj(leaf) else leaf, axes)
        sums = _distances(matrix.astype(jnp.float32))
        spread = jnp.broadcast_to(sums[..., None], matrix.shape)
        made[name] = from_matrix(spread, axes, leaf.shape)
    if not made:
        raise MismatchError(
            "score_by_geometric_median: the tree holds no weight of the sites; they "
            f"have {', '.join(sites.weights[:8])}"
        )
    return place_scores(params, made)


@jax.jit
def _distances(matrix: jax.Array) -> jax.Array:
    """The sums of the distances to the other rows, [*S, N, K] -> [*S, N]."""
    # About their mean, so that less cancels.
    matrix = matrix - jnp.mean(matrix, axis=-2, keepdims=True)
    products = jnp.matmul(matrix, jnp.swapaxes(matrix, -1, -2), precision="highest")
    squares = jnp.diagonal(products, axis1=-2, axis2=-1)
    apart = squares[..., :, None] + squares[..., None, :] - 2 * products
    same = jnp.eye(matrix.shape[-2], dtype=bool)
    return jnp.sum(jnp.where(same, 0, jnp.sqrt(jnp.maximum(apart, 0))), axis=-1)
