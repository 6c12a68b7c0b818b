"""How much each weight adds to the outputs of its layer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import find_leaves, replace_leaves
from jcompress.errors import MismatchError
from jcompress.sites import Sites, leaf_axes
from jcompress.statistics.moments import groups_of
from jcompress.tensors import is_compressed
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix


def score_by_wanda(
    params: Any, moments: Mapping[str, jax.Array], *, sites: Sites
) -> Any:
    """Score every weight by its absolute value times the size of its input.

    `jcompress.pruning.one_shot.wanda` prunes by these scores within each output. As a
    tree of scores they serve `make_masks` and units of `jcompress.shrinking`.

    Args:
        params: a tree of arrays.
        moments: the squares of the inputs, summed, for the leaves to be scored: what
            `observe(fn, rules, DiagonalMoments())` gives, float [*S, K], or
            `SecondMoments()`, [*S, K, K]; of a convolution in G > 1 groups [*S, G, K]
            or [*S, G, K, K].
        sites: the sites of the function that uses the tree, with the same names.

    Returns:
        A tree of the same structure: float32 arrays of the leaves' shapes, and None
        for a leaf without moments.

    Raises:
        MismatchError: moments are those of no leaf, or of another shape; or a leaf is
            compressed, absent or of another shape than at its sites.
        ValueError: moments are negative or not finite (checked outside of tracing).

    References:
        Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
        Models", equation 1.
    """
    known = set(sites.weights)
    for path in moments:
        if path not in known or not sites.products(path):
            raise MismatchError(
                f"score_by_wanda: moments has {path!r}, which is the weight of no "
                "product"
            )
    found = find_leaves("score_by_wanda", params, moments, sites=sites)
    made: dict[str, Any] = {}
    for path, leaf in found.items():
        axes = leaf_axes(sites.of(path))
        groups = groups_of(sites, path)
        squares = _squares(path, moments[path], leaf.shape, axes, groups)
        made[path] = _scored(jnp.asarray(leaf), squares, axes)
    nothing = jax.tree.map(lambda _: None, params, is_leaf=is_compressed)
    return replace_leaves(nothing, made)


def _squares(
    path: str, moments: Any, shape: tuple[int, ...], axes: Axes, groups: int
) -> jax.Array:
    """The squares of the inputs of each output, or of all: [*S, N or 1, K]."""
    stacks, outputs, inputs = matrix_shape(shape, axes)
    lead = (*stacks, groups) if groups > 1 else stacks
    given = jnp.asarray(moments)
    if given.shape == (*lead, inputs, inputs):
        given = jnp.diagonal(given, axis1=-2, axis2=-1)
    if given.shape != (*lead, inputs):
        raise MismatchError(
            f"score_by_wanda: the moments of {path!r} are {list(given.shape)}, not "
            f"{[*lead, inputs]} or {[*lead, inputs, inputs]}"
        )
    if not isinstance(given, jax.core.Tracer):
        host = np.asarray(given)
        if not (np.isfinite(host) & (host >= 0)).all():
            raise ValueError(
                f"score_by_wanda: the moments of {path!r} hold numbers that are "
                "negative or not finite"
            )
    if groups > 1:
        return jnp.repeat(given, outputs // groups, axis=-2)
    return given[..., None, :]


def _scored(leaf: jax.Array, squares: jax.Array, axes: Axes) -> jax.Array:
    sizes = jnp.sqrt(squares.astype(jnp.float32))
    matrix = jnp.abs(to_matrix(leaf, axes).astype(jnp.float32)) * sizes
    return from_matrix(matrix, axes, leaf.shape)
