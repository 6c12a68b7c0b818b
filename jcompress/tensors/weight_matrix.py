"""Weights as matrices of small numbers: rounding one, and making it dense again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.range_specs import (
    LeastError,
    Lsq,
    MeanAbsolute,
    Percentile,
)
from jcompress.tensors.ranges import Range, range_of, scale_and_zero
from jcompress.tensors.rounding import (
    dequantize_values,
    fake_quantize,
    quantize_values,
    round_to,
    within_range,
)
from jcompress.tensors.specs import Granularity, PerBlock, PerGroup, PerTensor, Weights


def scale_shape(
    matrix_shape: tuple[int, ...], granularity: Granularity
) -> tuple[int, ...]:
    """The shape [*S, R, G] of the scales of a matrix [*S, N, K].

    Raises:
        ValueError: the size of the groups or blocks does not divide K or N.
    """
    *stacks, outputs, inputs = matrix_shape
    rows, size = outputs, inputs
    match granularity:
        case PerTensor():
            rows = 1
        case PerGroup():
            size = granularity.size
        case PerBlock():
            size, high = granularity.inputs, granularity.outputs
            if outputs % high:
                raise ValueError(
                    f"blocks of {high} do not divide {outputs} outputs; sizes that do: "
                    f"{divisors(outputs)}"
                )
            rows = outputs // high
    if inputs and inputs % size:
        raise ValueError(
            f"groups of {size} do not divide {inputs} inputs; sizes that do: "
            f"{divisors(inputs)}"
        )
    return (*stacks, rows, inputs // size if inputs else 1)


def grouped(matrix: jax.Array, scales: tuple[int, ...]) -> jax.Array:
    """[*S, N, K] -> [*S, R, N / R, G, K / G], for scales of the shape [*S, R, G]."""
    *stacks, outputs, inputs = matrix.shape
    rows, groups = scales[-2:]
    high = outputs // rows if rows else 1
    return matrix.reshape(*stacks, rows, high, groups, inputs // groups)


def spread(numbers: jax.Array) -> jax.Array:
    """[*S, R, G] -> [*S, R, 1, G, 1], against what `grouped` gives."""
    return jax.lax.expand_dims(numbers, (numbers.ndim - 1, numbers.ndim + 1))


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
        importance: what an error counts for `LeastError`, float32. [*S, K], not
            negative: the squared error of each input's weights. [*S, K, K], the second
            moments H of the inputs: of each group the error of what it adds to the
            outputs, `e H e^T`. None for all weights alike.

    Returns:
        Scales, float32 [*S, R, G], such as `spec.scales` can store: R is 1 for
        `PerTensor`, N / outputs for `PerBlock`, else N; G is K / size for `PerGroup`
        and `PerBlock`, else 1. Zero points, integers in float32 of that shape, or
        None.

    Raises:
        ValueError: the size of the groups or blocks does not divide K or N, or the
            scales are learned.
    """
    if isinstance(spec.range, Lsq):
        raise ValueError(
            f"the scales of {spec.range!r} come from training, not from the weights: "
            "quantize(..., scales=...), fake_quant(..., scales=...)"
        )
    blocks = grouped(matrix, scale_shape(matrix.shape, spec.granularity))
    over = (-3, -1)
    match spec.range:
        case Percentile():
            span = _percentiles(blocks, over, spec.range.percent, spec.format)
        case MeanAbsolute():
            size = jnp.mean(jnp.abs(blocks.astype(jnp.float32)), over, keepdims=True)
            # Signs have no 0: what is 0 throughout is nearly 0, not -1 and 1.
            size = jnp.maximum(size, np.finfo(np.float32).tiny)
            span = Range(-size, size)
        case _:
            span = range_of(blocks, over)
    if isinstance(spec.range, LeastError):
        fraction = _best_fraction(blocks, span, over, spec, spec.range, importance)
        span = _shrunk(span, fraction)
    flat = Range(*(jax.lax.squeeze(end, (end.ndim - 3, end.ndim - 1)) for end in span))
    return scale_and_zero(flat, spec.format, spec.scales)


def _percentiles(
    blocks: jax.Array, over: tuple[int, ...], percent: float, format: NumberFormat
) -> Range:
    wide = blocks.astype(jnp.float32)
    if 0 in blocks.shape:
        return range_of(wide, over)
    part = np.float32(percent / 100)
    if format.symmetric:
        high = jnp.quantile(jnp.abs(wide), part, axis=over, keepdims=True)
        return Range(-high, high)
    ends = np.array([1 - part, 1 + part], np.float32) / np.float32(2)
    low, high = jnp.quantile(wide, ends, axis=over, keepdims=True)
    return Range(low, high)


def _shrunk(span: Range, fraction: jax.Array) -> Range:
    return Range(span.low * fraction, span.high * fraction)


def _best_fraction(
    blocks: jax.Array,
    span: Range,
    over: tuple[int, ...],
    spec: Weights,
    search: LeastError,
    importance: jax.Array | None,
) -> jax.Array:
    """The part of each range that makes the least squared error, of its shape."""
    wide = blocks.astype(jnp.float32)
    weight = pairs = None
    *_, groups, size = blocks.shape
    stacks = blocks.shape[:-4]
    if importance is not None:
        whole = importance.ndim == len(stacks) + 2
        # Its own size must neither overflow nor vanish in the sums.
        over_all = (-2, -1) if whole else -1
        most = jnp.max(importance, axis=over_all, keepdims=True, initial=0)
        share = importance / jnp.where(most > 0, most, np.float32(1))
        if whole:
            square = share.reshape(*stacks, groups, size, groups, size)
            own = jnp.diagonal(square, axis1=-4, axis2=-2)  # [*S, size, size, G]
            pairs = jnp.moveaxis(own, -1, -3)[..., None, :, :, :]
        else:
            weight = share.reshape(*stacks, 1, 1, groups, size)

    def better(
        best: tuple[jax.Array, jax.Array], fraction: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        part = _shrunk(span, fraction)
        flat = Range(*(end[..., 0, :, 0] for end in part))
        scale, zero = scale_and_zero(flat, spec.format, spec.scales)
        scale, zero = spread(scale), None if zero is None else spread(zero)
        numbers = quantize_values(wide, scale, zero, spec.format)
        change = dequantize_values(numbers, scale, zero) - wide
        if pairs is None:
            errors = jnp.square(change)
            errors = errors if weight is None else errors * weight
        else:
            passed = jnp.einsum(
                "...hgk,...gkl->...hgl", change, pairs, precision="highest"
            )
            errors = passed * change
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
        Values, unpacked numbers of the format [*S, N, K]; scales, float32 [*S, R, G],
        as of `weight_scales`; zero points, integers of the shape of the scales, or
        None.

    Raises:
        ValueError: the size of the groups or blocks does not divide K or N.
    """
    scales, zeros = weight_scales(matrix, spec, importance)
    values = quantize_values(
        grouped(matrix, scales.shape),
        spread(scales),
        None if zeros is None else spread(zeros),
        spec.format,
    )
    if spec.format.unit != 1:
        values = values * np.float32(1 / spec.format.unit)
    stored = None if zeros is None else zeros.astype(spec.format.dtype)
    return values.astype(spec.format.dtype).reshape(matrix.shape), scales, stored


def dequantize_matrix(
    values: jax.Array, scales: jax.Array, zeros: jax.Array | None, dtype: Any
) -> jax.Array:
    """The weight matrix that `quantize_matrix` describes.

    Args:
        values: numbers [*S, N, K].
        scales: float32 [*S, R, G], where R divides N and G divides K; what the number
            1 stands for.
        zeros: integers of the shape of the scales, or None.
        dtype: float dtype of the result.

    Returns:
        The matrix [*S, N, K].
    """
    *stacks, rows, groups = scales.shape
    *_, outputs, inputs = values.shape
    shape = list(scales.shape)
    last = scales.ndim
    added: tuple[int, ...] = ()
    if groups > 1:
        shape, added = [*stacks, outputs, groups, inputs // groups], (last,)
    elif rows in (1, outputs):
        shape = list(values.shape)
    if rows not in (1, outputs):
        shape = [*stacks, rows, outputs // rows, groups, inputs // groups]
        added = (last - 1, last + 1)
    blocks = values
    if tuple(shape) != values.shape:
        blocks = jax.lax.reshape(values, tuple(shape))
    if added:
        scales = jax.lax.expand_dims(scales, added)
        zeros = None if zeros is None else jax.lax.expand_dims(zeros, added)
    dense = dequantize_values(blocks, scales, zeros)
    dense = round_to(within_range(dense, dtype), dtype)
    return dense if dense.shape == values.shape else dense.reshape(values.shape)


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
        ValueError: the size of the groups or blocks does not divide the number of
            inputs or outputs.
    """
    matrix = to_matrix(leaf, axes)
    scales, zeros = weight_scales(jax.lax.stop_gradient(matrix), spec)
    faked = fake_quantize(
        grouped(matrix, scales.shape),
        spread(scales),
        None if zeros is None else spread(zeros),
        spec.format,
    )
    return from_matrix(faked.reshape(matrix.shape), axes, leaf.shape)
