"""The interval that an array's numbers span, and the scale that a format then has."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import FloatScales, NumberFormat, ScaleFormat
from jcompress.tensors.specs import Activation, PerRow

_AS_FLOATS = FloatScales()


class Range(NamedTuple):
    """The interval that quantized numbers cover.

    Attributes:
        low: the smallest number.
        high: the largest number, of the shape of `low`.
    """

    low: jax.Array
    high: jax.Array


class InputScale(NamedTuple):
    """How numbers become integers: `round(x / scale) + zero`.

    Attributes:
        scale: what the number 1 stands for.
        zero: the integer that stands for 0, in float32, of the shape of `scale`; None
            if the format is symmetric.
    """

    scale: jax.Array
    zero: jax.Array | None

    @classmethod
    def of(cls, range: Range, format: NumberFormat) -> "InputScale":
        """That of a range."""
        return cls(*scale_and_zero(range, format))

    def range(self, format: NumberFormat) -> Range:
        """The range that it covers: up to rounding, the one that it is of."""
        if self.zero is None:
            width = self.scale * np.float32(format.reach)
            return Range(-width, width)
        low, high = np.float32(format.low), np.float32(format.high)
        return Range((low - self.zero) * self.scale, (high - self.zero) * self.scale)


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
    range: Range, format: NumberFormat, scales: ScaleFormat = _AS_FLOATS
) -> tuple[jax.Array, jax.Array | None]:
    """What the number 1 stands for, and the integer that stands for 0.

    Symmetric: `scale = max(|low|, |high|) / format.reach`.
    Asymmetric, after widening the range to contain 0:
    `scale = (high - low) / (format.high - format.low)` and
    `zero = clip(round(format.low - low / scale), format.low, format.high)` (Jacob et
    al. 2018, section 3). A scale that float32 cannot invert (an all-zero range)
    becomes 1, and all become what `scales` can store.

    Returns:
        The scale, float32 of the shape of the range, and the zero point, integers in
        float32 of that shape; None if symmetric.
    """
    low, high = range.low.astype(jnp.float32), range.high.astype(jnp.float32)
    if format.symmetric:
        width = jnp.maximum(jnp.abs(low), jnp.abs(high))
        return scales.fit(width, format.reach), None
    low = jnp.minimum(low, np.float32(0))
    high = jnp.maximum(high, np.float32(0))
    first, last = np.float32(format.low), np.float32(format.high)
    scale = scales.fit(high - low, format.high - format.low)
    zero = jnp.round(first - low * (np.float32(1) / scale))
    return scale, jnp.clip(zero, first, last)


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
    scaling: tuple[jax.Array, jax.Array | None]
    scaling = _input_scale(x, contracted, activation, stored)
    return scaling


# Products of one shape are traced once.
@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _input_scale(
    x: jax.Array,
    contracted: tuple[int, ...],
    activation: Activation,
    stored: Range | None,
) -> tuple[jax.Array, jax.Array | None]:
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
    return scale_and_zero(now, activation.format)
