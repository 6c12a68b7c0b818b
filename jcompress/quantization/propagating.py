"""Weights that make up for the errors of the layers before them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rounding.copies import over_copies
from jcompress.rounding.in_turn import damped
from jcompress.statistics import Sums
from jcompress.statistics.moments import in_groups, out_of_groups
from jcompress.tensors.axes import Axes, from_matrix, to_matrix

_DAMPING = 0.01


@dataclasses.dataclass(frozen=True)
class Rows(Sums):
    """The inputs of a matrix as they are, [*S, M, K]: of one batch, not to be added.

    Those of two trees are in the same order, row by row.
    """

    def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
        """The rows; zeros where they do not count."""
        return rows if valid is None else jnp.where(valid[:, None], rows, 0)

    def join(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """One after the other."""
        return jnp.concatenate([a, b], axis=-2)

    def reduce(self, stacked: jax.Array) -> jax.Array:
        """Those of all steps, one after the other."""
        moved = jnp.moveaxis(stacked, 0, -3)
        return moved.reshape(*moved.shape[:-3], -1, moved.shape[-1])


def cross_moments(first: jax.Array, second: jax.Array) -> jax.Array:
    """The sum of x y^T over rows x and y in pairs: [*S, M, K] twice, to [*S, K, K]."""
    transposed = jnp.swapaxes(first, -1, -2)
    return jnp.matmul(transposed, second, precision="highest")


@functools.partial(jax.jit, static_argnums=3)
def propagated(
    leaf: jax.Array,
    cross: jax.Array,
    moments: jax.Array,
    axes: Axes,
    strength: jax.Array,
) -> jax.Array:
    """The weight whose outputs on other inputs are nearest to those of the first.

    With X the inputs of the float model and Y those that the layer has now, `W* Y` is
    nearest to `W X` for `W* = W X Y^T (Y Y^T)^-1`; of the way there the part `strength`
    is gone: `W + strength W (X - Y) Y^T (Y Y^T)^-1`.

    Args:
        leaf: floats of any shape.
        cross: `X Y^T`, float32 [*S, K, K]; [*S, G, K, K] of a convolution in groups.
        moments: `Y Y^T`, of the same shape.
        axes: the role of each axis of the leaf.
        strength: from 0 to 1.

    Returns:
        An array of the shape and dtype of the leaf.

    References:
        Arai and Ichikawa 2025, "Quantization Error Propagation: Revisiting Layer-Wise
        Post-Training Quantization".
    """

    def one(w: jax.Array, cross: jax.Array, moments: jax.Array) -> jax.Array:
        w = w.astype(jnp.float32)
        factor = jax.scipy.linalg.cho_factor(damped(moments, _DAMPING), lower=True)
        lost = jnp.matmul(w, cross - moments, precision="highest")
        change: jax.Array = jax.scipy.linalg.cho_solve(factor, lost.T).T
        return w + strength.astype(np.float32) * change

    apart = in_groups(to_matrix(leaf, axes), moments)
    matrix = out_of_groups(over_copies(one, apart, cross, moments), len(axes.stack))
    return from_matrix(matrix, axes, leaf.shape).astype(leaf.dtype)
