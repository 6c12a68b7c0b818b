"""Scores from the size of each weight, or of its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning._host import flush, on_host, place_like
from jcompress.tensors import is_compressed


def score_by_magnitude(params: Any, *, power: int = 1) -> Any:
    """Score every weight by its absolute value; complex ones by their modulus.

    Of gradients instead of parameters it is the score by the size of the gradient.

    Args:
        params: a tree of arrays.
        power: 1 for the absolute value; 2 for its square. For single weights both
            choose the same; for a group of weights their means are the L1 norm and the
            square of the L2 norm, each divided by the size of the group.

    Returns:
        A tree of the same structure: float32 arrays of the leaves' shapes, and None
        for a leaf of other numbers (an integer, a compressed leaf).

    Raises:
        ValueError: `power` is neither 1 nor 2.

    References:
        Han et al. 2015, "Learning both Weights and Connections for Efficient Neural
        Networks", section 3; Li et al. 2017, "Pruning Filters for Efficient ConvNets"
        (norms of groups).
    """
    if power not in (1, 2):
        raise ValueError(f"score_by_magnitude: power is 1 or 2, not {power!r}")
    return jax.tree.map(
        lambda leaf: _scored(leaf, power), params, is_leaf=is_compressed
    )


def _scored(leaf: Any, power: int) -> jax.Array | None:
    if is_compressed(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return None
    leaf = leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)
    host = on_host(leaf)
    if host is None:
        traced = jnp.asarray(magnitude(leaf))
        return traced if power == 1 else jnp.square(traced)
    size = np.asarray(magnitude(host))
    return place_like(size if power == 1 else flush(np.square(size)), leaf)


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
