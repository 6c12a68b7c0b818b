"""What SignRound learns: offsets before rounding, and where the ranges end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat, ScaleFormat
from jcompress.rounding.copies import spread
from jcompress.rounding.neighbours import neighbours
from jcompress.tensors.ranges import Range, scale_and_zero

_NARROWEST, _WIDEST = 0.25, 1.25
"""What a range may become, as a part of what it was at first."""
_ASIDE = 0.4
"""How far towards its weight a number starts that is not the nearest, in gaps."""


class Offsets(NamedTuple):
    """Offsets [N, K] in gaps between numbers, and the parts of the ranges' ends.

    Attributes:
        offsets: from -1/2 to 1/2.
        low: [R, G].
        high: [R, G].
    """

    offsets: jax.Array
    low: jax.Array
    high: jax.Array

    @classmethod
    def none(cls, matrix: jax.Array, scales: jax.Array) -> "Offsets":
        """Those that change nothing, for weights and scales of any stacks."""
        one = jnp.ones_like(scales, jnp.float32)
        return cls(jnp.zeros_like(matrix, jnp.float32), one, one)

    def moved(self, gradient: "Offsets", rate: jax.Array) -> "Offsets":
        """After a step against the signs of a gradient, within the limits."""
        now: Offsets = jax.tree.map(
            lambda x, slope: x - rate * jnp.sign(slope), self, gradient
        )
        return Offsets(
            jnp.clip(now.offsets, -0.5, 0.5),
            jnp.clip(now.low, _NARROWEST, _WIDEST),
            jnp.clip(now.high, _NARROWEST, _WIDEST),
        )


class Start(NamedTuple):
    """What is rounded, and how it was at first; all float32.

    Attributes:
        matrix: what is rounded, [N, K].
        gap: from the number below to the one above, in units of the scale, [N, K].
        span: the first ranges, [R, G].
    """

    matrix: jax.Array
    gap: jax.Array
    span: Range

    @classmethod
    def of(
        cls,
        matrix: jax.Array,
        scales: jax.Array,
        zeros: jax.Array | None,
        format: NumberFormat,
    ) -> "Start":
        """To start from the nearest numbers: weights [N, K], scales [R, G]."""
        wide = None if zeros is None else spread(zeros, *matrix.shape)
        steps = matrix * (np.float32(1) / spread(scales, *matrix.shape))
        low, high = neighbours(steps, wide, format)
        if zeros is None:
            width = np.float32(format.reach) * scales
            span = Range(-width, width)
        else:
            span = Range((format.low - zeros) * scales, (format.high - zeros) * scales)
        return cls(matrix, high - low, span)

    @classmethod
    def at(
        cls,
        numbers: jax.Array,
        matrix: jax.Array,
        scales: jax.Array,
        zeros: jax.Array | None,
        format: NumberFormat,
    ) -> "Start":
        """To start from given numbers [N, K], in units of the scale.

        Where they are not the nearest, what is rounded is not the weight but the number
        and a part of the way to the weight, so that it can still go there.
        """
        wide = None if zeros is None else spread(zeros, *matrix.shape)
        base = np.float32(0) if wide is None else wide
        scale = spread(scales, *matrix.shape)
        steps = matrix * (np.float32(1) / scale)
        near = format.round(steps, wide)
        way = jnp.sign(steps + base - numbers)
        aside = numbers - base + way * np.float32(0.01)
        low, high = neighbours(aside, wide, format)
        aside = numbers - base + way * (high - low) * np.float32(_ASIDE)
        start = jnp.where(near == numbers, matrix, aside * scale)
        return cls.of(start, scales, zeros, format)


def round_with(
    now: Offsets, start: Start, format: NumberFormat, scales: ScaleFormat
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Round with offsets and ranges, straight through where nothing is clipped.

    Returns:
        What the numbers stand for, float32 [N, K], with gradients to `now`; the
        numbers, in units of the scale; scales [R, G]; zero points or None.
    """
    shape = start.matrix.shape
    scale, zero = scale_and_zero(
        Range(start.span.low * now.low, start.span.high * now.high), format, scales
    )
    offset = None if zero is None else spread(zero, *shape)
    wide = spread(scale, *shape)
    steps = start.matrix * (np.float32(1) / wide) + now.offsets * start.gap
    numbers = format.round(steps, offset)
    inside = steps if offset is None else steps + offset
    free = jnp.where(format.covers(steps, offset), inside, numbers)
    through = free + jax.lax.stop_gradient(numbers - free)
    value = through if offset is None else through - offset
    return value * wide, numbers, scale, zero
