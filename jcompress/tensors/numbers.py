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
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.formats import (
    Activation,
    PerChannel,
    PerGroup,
    PerRow,
    PerTensor,
    Weights,
)
from jcompress.tensors.packing import FLOAT8

_TINY = np.finfo(np.float32).tiny
_FLOAT8_TOP = 448
"""The largest number of float8_e4m3fn, which has no infinities."""
_FLOAT8_LAST = 464
"""The largest that rounds to it."""
_FLOAT8_NORMAL = 2.0**-6
"""Its smallest number with a full significand of 4 bits."""
_EXPONENT = 0x7F800000
"""The exponent's bits in a float32."""


class Range(NamedTuple):
    """The interval that quantized numbers cover.

    Attributes:
        low: the smallest number.
        high: the largest number, of the shape of `low`.
    """

    low: jax.Array
    high: jax.Array


def number_range(
    bits: int, *, symmetric: bool, floating: bool = False
) -> tuple[int, int]:
    """The smallest and the largest number of a format."""
    if floating:
        return -_FLOAT8_TOP, _FLOAT8_TOP
    high = 2 ** (bits - 1) - 1
    return (-high if symmetric else -high - 1), high


def range_of(x: jax.Array, axes: int | Sequence[int] | None) -> Range:
    """The float32 range of `x` over `axes` (all if None), which stay with size 1.

    The range of nothing (an empty batch) is [0, 0].
    """
    over = range(x.ndim) if axes is None else np.atleast_1d(axes)
    dims = tuple(sorted(int(axis) % x.ndim for axis in over))
    x = x.astype(jnp.float32)
    if math.prod(x.shape[axis] for axis in dims) == 0:
        kept = (1 if axis in dims else size for axis, size in enumerate(x.shape))
        nothing = jnp.zeros(tuple(kept), jnp.float32)
        return Range(nothing, nothing)
    return Range(
        jnp.min(x, axis=dims, keepdims=True), jnp.max(x, axis=dims, keepdims=True)
    )


def scale_and_zero(
    range: Range, *, bits: int, symmetric: bool, floating: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """What the number 1 stands for, and the integer that stands for 0.

    Symmetric: `scale = max(|low|, |high|) / qmax`, where `qmax` is 448 for float8.
    Asymmetric, after widening the range
    to contain 0: `scale = (high - low) / (2^bits - 1)` and
    `zero = clip(round(qmin - low / scale), qmin, qmax)` (Jacob et al. 2018, section 3).
    A scale that float32 cannot invert (an all-zero range) becomes 1.

    Returns:
        The scale, float32 of the shape of the range, and the zero point, integers in
        float32 of that shape; None if symmetric.
    """
    low, high = range.low.astype(jnp.float32), range.high.astype(jnp.float32)
    qmin, qmax = number_range(bits, symmetric=symmetric, floating=floating)
    if symmetric:
        width = jnp.maximum(jnp.abs(low), jnp.abs(high))
        return _invertible(width * np.float32(1 / qmax)), None
    low = jnp.minimum(low, np.float32(0))
    high = jnp.maximum(high, np.float32(0))
    scale = _invertible((high - low) * np.float32(1 / (qmax - qmin)))
    zero = jnp.round(np.float32(qmin) - low * (np.float32(1) / scale))
    return scale, jnp.clip(zero, np.float32(qmin), np.float32(qmax))


def _invertible(scale: jax.Array) -> jax.Array:
    return jnp.where(scale < _TINY, np.float32(1), scale)


def _steps(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) * (np.float32(1) / scale)


def _integers(x: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
    steps = jnp.round(_steps(x, scale))
    return steps if zero is None else steps + zero


def _to_float8(x: jax.Array) -> jax.Array:
    """The nearest numbers of float8_e4m3fn, which has no zero below 0."""
    x = jnp.clip(x, np.float32(-_FLOAT8_TOP), np.float32(_FLOAT8_TOP))
    # A sum with 3 / 2 2^20 times the power of 2 below x has 3 bits of x after it. The
    # clipping stands between it and the product before: one rounding for both would
    # be another one.
    word = jax.lax.bitcast_convert_type(x, jnp.int32) & np.int32(_EXPONENT)
    power = jax.lax.bitcast_convert_type(word, jnp.float32)
    large = jnp.maximum(power, np.float32(_FLOAT8_NORMAL)) * np.float32(1.5 * 2**20)
    return (x + large) - large


def quantize_values(
    x: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    *,
    bits: int,
    symmetric: bool,
    floating: bool = False,
) -> jax.Array:
    """`clip(round(x * (1 / scale)) + zero, qmin, qmax)`, rounding halves to even.

    Floating: the nearest numbers of float8_e4m3fn, with 0 for -0; clipped first, since
    it has no infinities.

    Args:
        x: floats of any shape.
        scale: float32, broadcasts against `x`.
        zero: integers in float32, of the shape of `scale`; None if symmetric.
        bits: bits of a number.
        symmetric: whether the numbers are centred at 0.
        floating: whether they are 8-bit floats rather than integers.

    Returns:
        Integers, or numbers of float8_e4m3fn, in float32, of the shape of `x`.
    """
    if floating:
        return _to_float8(_steps(x, scale))
    qmin, qmax = number_range(bits, symmetric=symmetric)
    return jnp.clip(_integers(x, scale, zero), np.float32(qmin), np.float32(qmax))


def unclipped(
    x: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    *,
    bits: int,
    symmetric: bool,
    floating: bool = False,
) -> jax.Array:
    """Where the numbers of `quantize_values` would be the same without clipping.

    There, and only there, a gradient passes. Arguments as for `quantize_values`.
    """
    if floating:
        return jnp.abs(_steps(x, scale)) <= np.float32(_FLOAT8_LAST)
    integers = _integers(x, scale, zero)
    qmin, qmax = number_range(bits, symmetric=symmetric)
    return (integers >= np.float32(qmin)) & (integers <= np.float32(qmax))


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


def _finite(x: jax.Array, dtype: Any) -> jax.Array:
    """Float32 kept within the range of a float dtype.

    The outermost number of a format with a zero point stands for up to half a step
    more than the largest weight, which may be the largest number of float16.
    """
    top = np.float32(min(float(jnp.finfo(kind).max) for kind in (dtype, jnp.float32)))
    return jax.lax.clamp(-top, x, top)


def fake_quantize(
    x: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    *,
    bits: int,
    symmetric: bool,
    floating: bool = False,
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
        bits: bits of a number.
        symmetric: whether the numbers are centred at 0.
        floating: whether they are 8-bit floats rather than integers.
    """
    return _fake_quantize(x, scale, zero, bits, symmetric, floating)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _fake_quantize(
    x: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    bits: int,
    symmetric: bool,
    floating: bool,
) -> jax.Array:
    values = quantize_values(
        x, scale, zero, bits=bits, symmetric=symmetric, floating=floating
    )
    return round_to(_finite(dequantize_values(values, scale, zero), x.dtype), x.dtype)


@_fake_quantize.defjvp
def _fake_quantize_jvp(
    bits: int,
    symmetric: bool,
    floating: bool,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    x, scale, zero = primals
    kept = unclipped(x, scale, zero, bits=bits, symmetric=symmetric, floating=floating)
    tangent = jnp.where(kept, tangents[0], jnp.zeros_like(tangents[0]))
    return _fake_quantize(x, scale, zero, bits, symmetric, floating), tangent


def input_scale(
    x: jax.Array,
    contracted: tuple[int, ...],
    activation: Activation,
    stored: Range | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Scale and zero point of a product's input, broadcasting against it.

    Args:
        x: the input.
        contracted: the axes that the product sums over.
        activation: how the input is quantized.
        stored: the range to use; None, or a range without data, takes that of `x`.
    """
    given = jax.lax.stop_gradient(x)
    axes = None
    if isinstance(activation.granularity, PerRow):
        axes = contracted
    now = range_of(given, axes)
    if stored is not None:
        known = jnp.isfinite(stored.low) & jnp.isfinite(stored.high)
        now = Range(
            jnp.where(known, stored.low, now.low),
            jnp.where(known, stored.high, now.high),
        )
    return scale_and_zero(
        now,
        bits=activation.bits,
        symmetric=activation.symmetric,
        floating=activation.floating,
    )


def _grouped(matrix: jax.Array, spec: Weights) -> jax.Array:
    """[*S, N, K] -> [*S, N, G, K / G]."""
    inputs = matrix.shape[-1]
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else inputs
    if inputs and inputs % size:
        raise ValueError(
            f"groups of {size} do not divide {inputs} inputs; sizes that do: "
            f"{divisors(inputs)}"
        )
    groups = inputs // size if inputs else 1
    return matrix.reshape(*matrix.shape[:-1], groups, size)


def divisors(number: int) -> list[int]:
    """The divisors of a positive number, in increasing order."""
    return [k for k in range(1, number + 1) if number % k == 0]


def weight_scales(
    matrix: jax.Array, spec: Weights
) -> tuple[jax.Array, jax.Array | None]:
    """The scales, and the zero points if asymmetric, of a weight matrix.

    Args:
        matrix: floats [*S, N, K].
        spec: the format.

    Returns:
        Scales, float32 [*S, N or 1, G], with 1 for `PerTensor`, and G = 1 but for
        `PerGroup(size)`, which has G = K / size; zero points, integers in float32 of
        that shape, or None.

    Raises:
        ValueError: the group size does not divide K.
    """
    grouped = _grouped(matrix, spec)
    match spec.granularity:
        case PerTensor():
            span = range_of(grouped, (-3, -2, -1))
        case PerChannel() | PerGroup():
            span = range_of(grouped, -1)
    span = Range(span.low[..., 0], span.high[..., 0])
    return scale_and_zero(
        span, bits=spec.bits, symmetric=spec.symmetric, floating=spec.floating
    )


def quantize_matrix(
    matrix: jax.Array, spec: Weights
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Round a weight matrix to the nearest numbers of a format.

    Args:
        matrix: floats [*S, N, K].
        spec: the format.

    Returns:
        Values, int8 or float8_e4m3fn [*S, N, K]; scales, float32 [*S, N or 1, G]; zero
        points, int8 of the shape of the scales, or None.

    Raises:
        ValueError: the group size does not divide K.
    """
    scales, zeros = weight_scales(matrix, spec)
    values = quantize_values(
        _grouped(matrix, spec),
        scales[..., None],
        None if zeros is None else zeros[..., None],
        bits=spec.bits,
        symmetric=spec.symmetric,
        floating=spec.floating,
    )
    stored = None if zeros is None else zeros.astype(jnp.int8)
    kind = FLOAT8 if spec.floating else jnp.int8
    return values.astype(kind).reshape(matrix.shape), scales, stored


def dequantize_matrix(
    values: jax.Array, scales: jax.Array, zeros: jax.Array | None, dtype: Any
) -> jax.Array:
    """The weight matrix that `quantize_matrix` describes.

    Args:
        values: int8 or float8_e4m3fn [*S, N, K].
        scales: float32 [*S, N or 1, G].
        zeros: int8 of the shape of the scales, or None.
        dtype: float dtype of the result.

    Returns:
        The matrix [*S, N, K].
    """
    groups = scales.shape[-1]
    if groups == 1:
        dense = dequantize_values(values, scales, zeros)
        return round_to(_finite(dense, dtype), dtype)
    grouped = jax.lax.reshape(
        values, (*values.shape[:-1], groups, values.shape[-1] // groups)
    )
    last = scales.ndim
    zero = None if zeros is None else jax.lax.expand_dims(zeros, (last,))
    dense = dequantize_values(grouped, jax.lax.expand_dims(scales, (last,)), zero)
    return jax.lax.reshape(round_to(_finite(dense, dtype), dtype), values.shape)


def fake_quantize_weight(leaf: jax.Array, axes: Axes, spec: Weights) -> jax.Array:
    """The leaf as its stored numbers give it back, with a straight-through gradient.

    Bit for bit what `quantize` stores and `QTensor.dense` gives back.

    Args:
        leaf: floats of any shape.
        axes: the role of each of its axes, over all of its uses.
        spec: the format.

    Returns:
        An array of the shape and dtype of the leaf.

    Raises:
        ValueError: the group size does not divide the number of inputs.
    """
    matrix = to_matrix(leaf, axes)
    scales, zeros = weight_scales(jax.lax.stop_gradient(matrix), spec)
    faked = fake_quantize(
        _grouped(matrix, spec),
        scales[..., None],
        None if zeros is None else zeros[..., None],
        bits=spec.bits,
        symmetric=spec.symmetric,
        floating=spec.floating,
    )
    return from_matrix(faked.reshape(matrix.shape), axes, leaf.shape)
