"""Scales that are trained: what they are, and rounding with gradients to them."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import NumberFormat
from jcompress.tensors.axes import Axes, to_matrix
from jcompress.tensors.once import once
from jcompress.tensors.range_specs import Lsq, Pact
from jcompress.tensors.ranges import Range, scale_and_zero
from jcompress.tensors.rounding import fake_quantize, quantize_values
from jcompress.tensors.specs import Activation, Weights
from jcompress.tensors.weight_matrix import grouped, spread
from jcompress.tracing import meshes


class Step(NamedTuple):
    """What `Lsq()` trains: a step size, and where an asymmetric range begins.

    Attributes:
        scale: what the number 1 stands for; its sign does not matter. float32, for a
            weight [*S, R, G] as in a `QTensor`, for data scalars or, where scans
            take the leaf apart, their lengths.
        offset: what the smallest number of the format stands for, of the shape of
            `scale`; None if the format is symmetric.
    """

    scale: jax.Array
    offset: jax.Array | None = None


class Clip(NamedTuple):
    """What `Pact()` trains.

    Attributes:
        high: where data is clipped, float32, a scalar or the lengths of scans; its
            sign does not matter.
    """

    high: jax.Array


Learned = Step | Clip


class LearnedScales(NamedTuple):
    """What is trained for one leaf.

    Attributes:
        weights: for its own numbers; None if their scales are not learned.
        inputs: for the data of each of its products, in order; empty if the ranges of
            the data are not learned.
    """

    weights: Step | None
    inputs: tuple[Learned, ...]


Scales = Mapping[str, LearnedScales]
"""For each leaf that has learned scales, by its name, what is trained."""


def learns(spec: Weights | Activation | None) -> bool:
    """Whether a spec has learned scales."""
    return spec is not None and isinstance(spec.range, Lsq | Pact)


def check_learned(
    transform: str, path: str, spec: Any, given: LearnedScales, products: int
) -> None:
    """Raise MismatchError unless learned scales are of the kind that a rule says.

    Args:
        transform: the caller's name.
        path: the leaf.
        spec: its `Quantize`.
        given: its scales.
        products: how many of its products have a learned scale for their data.
    """
    wanted = [spec.weights] * learns(spec.weights) + [spec.activation] * products
    found = [given.weights] * (given.weights is not None) + list(given.inputs)
    if len(wanted) == len(found) and all(
        isinstance(one, Clip)
        if isinstance(part.range, Pact)
        else isinstance(one, Step) and (one.offset is None) == part.format.symmetric
        for part, one in zip(wanted, found, strict=True)
    ):
        return
    raise MismatchError(
        f"{transform}: the learned scales of {path} are not those of its rule, "
        f"{spec!r}, for {products} products with learned ranges; make them with "
        "init_scales(fn, rules, variables, ...) of jcompress.qat"
    )


def numbers_between(format: NumberFormat) -> int:
    """The steps from where an integer range begins: from 0 if it is symmetric."""
    return int(format.high if format.symmetric else format.high - format.low)


def learned_range(learned: Learned, format: NumberFormat) -> Range:
    """The interval that a learned scale stands for, of the shape of the scale."""
    if isinstance(learned, Clip):
        high = jnp.abs(learned.high)
        return Range(-high if format.symmetric else jnp.zeros_like(high), high)
    scale = jnp.abs(learned.scale)
    if learned.offset is None:
        width = scale * np.float32(format.reach)
        return Range(-width, width)
    width = scale * np.float32(numbers_between(format))
    return Range(learned.offset, learned.offset + width)


def fake_quantize_learned(
    x: jax.Array,
    learned: Learned,
    format: NumberFormat,
    count: int,
    *,
    turned: bool = False,
) -> jax.Array:
    """The numbers that quantized `x` stands for, with gradients to a learned scale.

    The value is that of `fake_quantize` with the scale s and zero point z of
    `learned_range`. With n and p the numbers between which a range lies, v = x / s + z,
    and q the number that x is rounded to, the derivatives are

        d / dx = 1 where n < v < p, else 0
        d / ds = q - v where n < v < p, q where v <= n or p <= v (less n, if asymmetric)
        d / d offset = 0 where n < v < p, else 1

    of which LSQ multiplies the last two with g = 1 / sqrt(count p). For `Clip` d / ds
    is 0 where n < v < p, as PACT has it, and there is no factor. Reverse mode only.

    Args:
        x: floats of any shape.
        learned: broadcasts against `x`.
        format: which integers there are.
        count: how many numbers share a scale.
        turned: whether a gradient reads the result in another order than the function
            does, as that of a convolution does with its data (see `once`).

    References:
        Esser et al. 2019, equations 3 and 5, section 2.2; Bhalgat et al. 2020,
        equations 5 to 8; Choi et al. 2018, equations 1 to 3.
    """
    # A scale that is the same on all devices gets the sum of their gradients.
    learned, x = (
        meshes.spread(learned, meshes.varying(x)),
        meshes.spread(x, meshes.varying(learned)),
    )
    span = learned_range(learned, format)
    scale, zero = scale_and_zero(span, format)
    low = None
    if zero is not None:
        zero = jax.lax.stop_gradient(zero)
        low = jnp.minimum(span.low, np.float32(0))
    factor = 1.0
    steps = isinstance(learned, Step)
    if steps:
        factor = float(max(count, 1) * numbers_between(format)) ** -0.5
    return _fake_quantize(x, scale, low, zero, format, factor, steps, turned)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _fake_quantize(
    x: jax.Array,
    scale: jax.Array,
    low: jax.Array | None,
    zero: jax.Array | None,
    format: NumberFormat,
    factor: float,
    steps: bool,
    turned: bool,
) -> jax.Array:
    return fake_quantize(x, scale, zero, format)


def _forward(
    x: jax.Array,
    scale: jax.Array,
    low: jax.Array | None,
    zero: jax.Array | None,
    format: NumberFormat,
    factor: float,
    steps: bool,
    turned: bool,
) -> tuple[jax.Array, tuple[Any, ...]]:
    def rounded(x: jax.Array) -> jax.Array:
        return fake_quantize(x, scale, zero, format)

    out = once(rounded, x, scale) if turned else rounded(x)
    return out, (x, scale, low, zero)


def _backward(
    format: NumberFormat,
    factor: float,
    steps: bool,
    turned: bool,
    residuals: tuple[Any, ...],
    upstream: jax.Array,
) -> tuple[Any, ...]:
    # Made again from x, which costs less than to write and read a slope a number.
    x, scale, low, zero = residuals
    first = np.float32(format.low)
    exact = x.astype(jnp.float32) * (np.float32(1) / scale)
    shifted = exact if zero is None else exact + zero
    kept = (shifted > first) & (shifted < np.float32(format.high))
    numbers = quantize_values(x, scale, zero, format)
    wide = upstream.astype(jnp.float32)
    # Products are chosen, not slopes: XLA would make those as soon as x is known, and
    # keep them until the gradient comes.
    outside = numbers if zero is None else numbers - first
    inside = (numbers - shifted) * wide if steps else np.float32(0)
    to_scale = _shared_sum(jnp.where(kept, inside, outside * wide), scale)
    to_scale = to_scale * np.float32(factor)
    to_low = None
    if low is not None:
        clipped = jnp.where(kept, np.float32(0), wide)
        to_low = _shared_sum(clipped, low) * np.float32(factor)
    through = jnp.where(kept, upstream, jnp.zeros_like(upstream))
    return through, to_scale, to_low, None if zero is None else jnp.zeros_like(zero)


_fake_quantize.defvjp(_forward, _backward)


def _shared_sum(x: jax.Array, like: jax.Array) -> jax.Array:
    """Sum over the axes along which an array of a scale's shape is repeated."""
    if like.ndim == 0:
        return jnp.sum(x)
    axes = tuple(
        axis for axis, size in enumerate(like.shape) if size == 1 != x.shape[axis]
    )
    return jnp.sum(x, axis=axes, keepdims=True)


def sharing(matrix: tuple[int, ...], scale: tuple[int, ...]) -> int:
    """How many numbers of a matrix [*S, N, K] share a scale of [*S, R, G]."""
    return matrix[-2] // max(scale[-2], 1) * (matrix[-1] // max(scale[-1], 1))


def learned_numbers(
    leaf: jax.Array, axes: Axes, step: Step, format: NumberFormat
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What `fake_quant` rounds a weight to: values [*S, N, K], scales, zero points."""
    matrix = to_matrix(leaf, axes)
    scales, zeros = scale_and_zero(learned_range(step, format), format)
    values = quantize_values(
        grouped(matrix, scales.shape),
        spread(scales),
        None if zeros is None else spread(zeros),
        format,
    )
    stored = None if zeros is None else zeros.astype(format.dtype)
    return values.astype(format.dtype).reshape(matrix.shape), scales, stored
