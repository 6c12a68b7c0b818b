"""How much each weight matters: the lowest scores are removed first."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.tensors import is_compressed


def score_by_magnitude(params: Any) -> Any:
    """Score every weight by its absolute value; complex ones by their modulus.

    Args:
        params: a tree of arrays.

    Returns:
        A tree of the same structure: float32 arrays of the leaves' shapes, and None
        for a leaf of other numbers (an integer, a compressed leaf).

    References:
        Han et al. 2015, "Learning both Weights and Connections for Efficient Neural
        Networks", section 3.
    """
    return jax.tree.map(_magnitude, params, is_leaf=is_compressed)


def _magnitude(leaf: Any) -> jax.Array | None:
    if is_compressed(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return None
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.abs(leaf).astype(jnp.float32)
    return jnp.abs(leaf.astype(jnp.float32))
