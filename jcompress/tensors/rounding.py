"""The arithmetic of quantization, on plain arrays.

Everything is elementwise float32 (reductions are only minima and maxima), written so
that the compiler has nothing to rearrange: the same bits come out of eager calls, of
`jit`, and of a stored tensor made dense again. Two details matter. XLA rewrites a
division by a broadcast number into a product with its reciprocal, but not in every
program, so the reciprocal is written out here. And a cast to a 16-bit float is
preceded by an explicit rounding, since XLA may otherwise drop the cast when the next
operation goes back to float32. Numbers of float8 are rounded in float32 as well: how a
platform casts to them, and by way of which other dtype, then does not matter.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat


def _steps(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) * (np.float32(1) / scale)


def quantize_values(
    x: jax.Array, scale: jax.Array, zero: jax.Array | None, format: NumberFormat
) -> jax.Array:
    """The nearest numbers of a format to `x / scale`, shifted by its zero points.

    Args:
        x: floats of any shape.
        scale: float32, broadcasts against `x`.
        zero: integers in float32, of the shape of `scale`; None if symmetric.
        format: which numbers there are.

    Returns:
        Numbers of the format, in float32, of the shape of `x`.
    """
    return format.round(_steps(x, scale), zero)


def unclipped(
    x: jax.Array, scale: jax.Array, zero: jax.Array | None, format: NumberFormat
) -> jax.Array:
    """Where the numbers of `quantize_values` would be the same without clipping.

    There, and only there, a gradient passes. Arguments as for `quantize_values`.
    """
    return format.covers(_steps(x, scale), zero)


def dequantize_values(
    values: jax.Array, scale: jax.Array, zero: jax.Array | None
) -> jax.Array:
    """`(values - zero) * scale` in float32; integers or float8 of any dtype."""
    values = values.astype(jnp.float32)
    if zero is not None:
        values = values - zero.astype(jnp.float32)
    # `lax.mul` is traced in a fraction of the time of `*`, which a whole network feels.
    plain = values.ndim == scale.ndim and scale.dtype == jnp.float32
    return jax.lax.mul(values, scale) if plain else values * scale


def round_to(x: jax.Array, dtype: Any) -> jax.Array:
    """Cast float32 to a float dtype so that later casts cannot undo the rounding.

    Numbers below the smallest normal one of float16 are rounded to its subnormals.
    """
    kind = jnp.finfo(dtype)
    if kind.bits < 32:
        rounded = jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
        if kind.minexp > jnp.finfo(jnp.float32).minexp:
            # Which makes 0 of what is below the smallest normal number. There numbers
            # of the dtype lie evenly, as those of float32 around this sum do; the
            # clipping keeps it from being one operation with a product before it.
            normal = np.float32(kind.smallest_normal)
            even = np.float32(1.5 * 2.0 ** (23 + kind.minexp - kind.nmant))
            near = jnp.clip(x, -normal, normal)
            rounded = jnp.where(jnp.abs(x) < normal, (near + even) - even, rounded)
        x = rounded
    return x.astype(dtype)


def within_range(x: jax.Array, dtype: Any) -> jax.Array:
    """Float32 numbers, kept within the range of a float dtype.

    The outermost number of a format with a zero point stands for up to half a step
    more than the largest weight, which may be the largest number of float16.
    """
    top = np.float32(min(float(jnp.finfo(kind).max) for kind in (dtype, jnp.float32)))
    return jax.lax.clamp(-top, x, top)


def fake_quantize(
    x: jax.Array, scale: jax.Array, zero: jax.Array | None, format: NumberFormat
) -> jax.Array:
    """The numbers that quantized `x` stands for, with a straight-through gradient.

    The value is exactly `dequantize_values(quantize_values(x))` in the dtype of `x`.
    The derivative with respect to `x` is 1 where the number was not clipped and 0
    where it was (Bengio et al. 2013, "Estimating or Propagating Gradients Through
    Stochastic Neurons for Conditional Computation"; Jacob et al. 2018, section 3). It
    is 0 with respect to `scale` and `zero`.

    Args:
        x: floats of any shape.
        scale: float32, broadcasts against `x`.
        zero: integers in float32, of the shape of `scale`; None if symmetric.
        format: which numbers there are.
    """
    return _fake_quantize(x, scale, zero, format)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _fake_quantize(
    x: jax.Array, scale: jax.Array, zero: jax.Array | None, format: NumberFormat
) -> jax.Array:
    values = dequantize_values(quantize_values(x, scale, zero, format), scale, zero)
    return round_to(within_range(values, x.dtype), x.dtype)


@_fake_quantize.defjvp
def _fake_quantize_jvp(
    format: NumberFormat, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    x, scale, zero = primals
    kept = unclipped(x, scale, zero, format)
    tangent = jnp.where(kept, tangents[0], jnp.zeros_like(tangents[0]))
    return _fake_quantize(x, scale, zero, format), tangent
