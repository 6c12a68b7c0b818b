"""The form of `attention` that XLA compiles: the formula in the operands' dtype."""

import jax

from jcompress.kernels.attention.axes import Axes
from jcompress.kernels.attention.reference import formula


def xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    axes: Axes,
    scale: float,
    fill: float,
) -> jax.Array:
    """As `formula`."""
    return formula(q, k, v, bias, mask, axes=axes, scale=scale, fill=fill)
