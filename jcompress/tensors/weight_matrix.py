"""Weights as matrices of small numbers: rounding one, and making it dense again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.range_specs import LeastError
from jcompress.tensors.ranges import Range, range_of, scale_and_zero
from jcompress.tensors.rounding import (
    dequantize_values,
    fake_quantize,
    quantize_values,
    round_to,
    within_range,
)
from jcompress.tensors.specs import PerChannel, PerGroup, PerTensor, Weights


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
    matrix: jax.Array, spec: Weights, importance: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """The scales, and the zero points if asymmetric, of a weight matrix.

    Args:
        matrix: floats [*S, N, K].
        spec: the format.
        importance: float32 [*S, K], not negative: what the squared error of each
            input's weights counts for `LeastError`; None for all alike.

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
            over: tuple[int, ...] = (-3, -2, -1)
        case PerChannel() | PerGroup():
            over = (-1,)
    span = range_of(grouped, over)
    if isinstance(spec.range, LeastError):
        fraction = _best_fraction(grouped, span, over, spec, spec.range, importance)
        span = _shrunk(span, fraction)
    return scale_and_zero(Range(span.low[..., 0], span.high[..., 0]), spec.format)


def _shrunk(span: Range, fraction: jax.Array) -> Range:
    return Range(span.low * fraction, span.high * fraction)


def _best_fraction(
    grouped: jax.Array,
    span: Range,
    over: tuple[int, ...],
    spec: Weights,
    search: LeastError,
    importance: jax.Array | None,
) -> jax.Array:
    """The part of each range that makes the least squared error, of its shape."""
    wide = grouped.astype(jnp.float32)
    weight = None
    if importance is not None:
        *_, groups, size = grouped.shape
        # Its own size must neither overflow nor vanish in the sums.
        most = jnp.max(importance, axis=-1, keepdims=True, initial=0)
        share = importance / jnp.where(most > 0, most, np.float32(1))
        weight = share.reshape(*importance.shape[:-1], 1, groups, size)

    def better(
        best: tuple[jax.Array, jax.Array], fraction: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        scale, zero = scale_and_zero(_shrunk(span, fraction), spec.format)
        numbers = quantize_values(wide, scale, zero, spec.format)
        errors = jnp.square(dequantize_values(numbers, scale, zero) - wide)
        if weight is not None:
            errors = errors * weight
        error = jnp.sum(errors, axis=over, keepdims=True)
        least, chosen = best
        chosen = jnp.where(error < least, fraction, chosen)
        return (jnp.minimum(error, least), chosen), None

    fractions = jnp.linspace(1, search.least, search.steps, dtype=jnp.float32)
    start = (jnp.full(span.low.shape, jnp.inf), jnp.ones(span.low.shape))
    (_, chosen), _ = jax.lax.scan(better, start, fractions)
    return chosen


def quantize_matrix(
    matrix: jax.Array, spec: Weights, importance: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Round a weight matrix to the nearest numbers of a format.

    Args:
        matrix: floats [*S, N, K].
        spec: the format.
        importance: as of `weight_scales`.

    Returns:
        Values, int8 or float8_e4m3fn [*S, N, K]; scales, float32 [*S, N or 1, G]; zero
        points, int8 of the shape of the scales, or None.

    Raises:
        ValueError: the group size does not divide K.
    """
    scales, zeros = weight_scales(matrix, spec, importance)
    values = quantize_values(
        _grouped(matrix, spec),
        scales[..., None],
        None if zeros is None else zeros[..., None],
        spec.format,
    )
    stored = None if zeros is None else zeros.astype(jnp.int8)
    return values.astype(spec.format.dtype).reshape(matrix.shape), scales, stored


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
        return round_to(within_range(dense, dtype), dtype)
    grouped = jax.lax.reshape(
        values, (*values.shape[:-1], groups, values.shape[-1] // groups)
    )
    last = scales.ndim
    zero = None if zeros is None else jax.lax.expand_dims(zeros, (last,))
    dense = dequantize_values(grouped, jax.lax.expand_dims(scales, (last,)), zero)
    return jax.lax.reshape(round_to(within_range(dense, dtype), dtype), values.shape)


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
        spec.format,
    )
    return from_matrix(faked.reshape(matrix.shape), axes, leaf.shape)
