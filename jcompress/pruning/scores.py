"""How much each weight matters: the lowest scores are removed first."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.tensors import is_compressed


def score_by_magnitude(params: Any) -> Any:
    """Score every weight by its absolute value.

    Args:
        params: a tree of arrays.

    Returns:
        A tree of the same structure: float32 arrays of the leaves' shapes, and None
        for a leaf that is no floating-point array (an integer, a compressed leaf).

    References:
        Han et al. 2015, "Learning both Weights and Connections for Efficient Neural
        Networks", section 3.
    """
    return jax.tree.map(_magnitude, params, is_leaf=is_compressed)


def _magnitude(leaf: Any) -> jax.Array | None:
    if is_compressed(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return None
    return jnp.abs(jnp.asarray(leaf).astype(jnp.float32))
