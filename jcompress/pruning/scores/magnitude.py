"""How much each weight matters: the lowest scores are removed first."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning._host import on_host, place_like
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
    return jax.tree.map(_scored, params, is_leaf=is_compressed)


def _scored(leaf: Any) -> jax.Array | None:
    if is_compressed(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return None
    leaf = leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)
    host = on_host(leaf)
    if host is None:
        return jnp.asarray(magnitude(leaf))
    return place_like(np.asarray(magnitude(host)), leaf)


def magnitude(leaf: Any) -> Any:
    """The absolute values in float32, of a NumPy or a JAX array, as one of its kind."""
    if not isinstance(leaf, np.ndarray):
        return _magnitude(leaf)
    if np.iscomplexobj(leaf):
        # The modulus that NumPy computes may differ in the last bit.
        return np.asarray(_magnitude(leaf))
    return np.abs(leaf.astype(np.float32, copy=False))


@jax.jit
def _magnitude(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.abs(leaf).astype(jnp.float32)
    return jnp.abs(leaf.astype(jnp.float32))
