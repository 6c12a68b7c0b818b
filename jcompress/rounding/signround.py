"""SignRound: learn what is added before rounding, and where the range ends."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rounding.adaround import check_positive
from jcompress.rounding.base import Rounded, Rounding, diagonal
from jcompress.rounding.copies import counted, least, over_copies, per_weight, spread
from jcompress.rounding.neighbours import neighbours
from jcompress.tensors.ranges import Range, scale_and_zero
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import weight_scales

_NARROWEST, _WIDEST = 0.25, 1.25
"""What a range may become, as a part of what it was at first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignRound(Rounding):
    """Offsets before rounding and the ends of the ranges are learned (AutoRound).

    `round(w / s + v)` with v in [-1/2, 1/2], in units of the gap between neighbouring
    numbers, and s (and the zero point) of the range `[a low, b high]`: v, a and b take
    steps against the sign of the gradient of the outputs' error, whose size falls
    linearly to 0. Each output keeps the best seen on the way, rounding to the nearest
    being the first, so that none is worse than by that.

    It needs the second moments of the inputs, `quantize(..., moments=...)`. A step
    takes one product [N, K] x [K, K] and some element-wise work.

    Attributes:
        steps: how many.
        learning_rate: the size of the first one.

    Raises:
        ValueError: a field is not above 0, or `steps` is no int.

    References:
        Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the
        Quantization of LLMs", for one layer, on second moments.
    """

    steps: int = 300
    learning_rate: float = 0.005

    def __post_init__(self) -> None:
        check_positive(self)

    def round(
        self, matrix: jax.Array, weights: Weights, moments: jax.Array | None
    ) -> Rounded:
        """Numbers next to the weights, with ranges that were learned with them."""
        assert moments is not None
        format = weights.format
        scales, zeros = weight_scales(matrix, weights, diagonal(moments))
        if 0 in matrix.shape:
            numbers = jnp.zeros(matrix.shape, format.dtype)
        else:
            run = functools.partial(_learned, weights=weights, spec=self)
            found, scales, zeros = over_copies(run, matrix, scales, zeros, moments)
            numbers = counted(found, format)
        stored = None if zeros is None else zeros.astype(weights.format.dtype)
        return Rounded(numbers, scales, stored)


class _Learned(NamedTuple):
    """Offsets [N, K], and the parts of the ranges' ends, [R, G] each."""

    offsets: jax.Array
    low: jax.Array
    high: jax.Array


def _learned(
    matrix: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
    *,
    weights: Weights,
    spec: SignRound,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Numbers [N, K], scales [R, G] and zero points, all in float32."""
    shape, format = matrix.shape, weights.format
    matrix = matrix.astype(jnp.float32)
    moments = per_weight(moments.astype(jnp.float32))
    if zeros is None:
        width = np.float32(format.reach) * scales
        span = Range(-width, width)
    else:
        span = Range((format.low - zeros) * scales, (format.high - zeros) * scales)

    def to_steps(scale: jax.Array) -> jax.Array:
        return matrix * (np.float32(1) / spread(scale, *shape))

    wide = None if zeros is None else spread(zeros, *shape)
    low, high = neighbours(to_steps(scales), wide, format)
    gap = high - low

    def forward(now: _Learned) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        scale, zero = scale_and_zero(
            Range(span.low * now.low, span.high * now.high), format, weights.scales
        )
        offset = None if zero is None else spread(zero, *shape)
        steps = to_steps(scale) + now.offsets * gap
        numbers = format.round(steps, offset)
        inside = steps if offset is None else steps + offset
        # Straight through where nothing is clipped.
        free = jnp.where(format.covers(steps, offset), inside, numbers)
        through = free + jax.lax.stop_gradient(numbers - free)
        value = through if offset is None else through - offset
        e = value * spread(scale, *shape) - matrix
        passed = jnp.matmul(jax.lax.stop_gradient(e), moments, precision="highest")
        errors = jax.lax.stop_gradient(jnp.sum(passed * e, axis=1))
        found = (numbers, scale) if zero is None else (numbers, scale, zero)
        return 2 * jnp.sum(passed * e), (errors, *jax.lax.stop_gradient(found))

    def step(
        state: tuple[_Learned, tuple[jax.Array, ...], jax.Array], at: jax.Array
    ) -> tuple[tuple[_Learned, tuple[jax.Array, ...], jax.Array], None]:
        now, best, error = state
        gradient, (errors, *found) = jax.grad(forward, has_aux=True)(now)
        best, error = least(
            (best, error), (tuple(found), errors), errors=(error, errors)
        )
        rate = np.float32(spec.learning_rate) * (1 - at / spec.steps)
        moved = jax.tree.map(lambda x, g: x - rate * jnp.sign(g), now, gradient)
        now = _Learned(
            jnp.clip(moved.offsets, -0.5, 0.5),
            jnp.clip(moved.low, _NARROWEST, _WIDEST),
            jnp.clip(moved.high, _NARROWEST, _WIDEST),
        )
        return (now, best, error), None

    one = jnp.ones_like(scales)
    now = _Learned(jnp.zeros_like(matrix), one, one)
    first = format.round(to_steps(scales), wide)
    start: tuple[jax.Array, ...] = (first, scales)
    if zeros is not None:
        start = (*start, zeros)
    nothing = jnp.full(shape[:1], jnp.inf)
    # One step more than the schedule has sees what the last one made.
    times = jnp.arange(spec.steps + 1, dtype=jnp.float32)
    (_, best, _), _ = jax.lax.scan(step, (now, start, nothing), times)
    numbers, scale, *zero = best
    return numbers, scale, zero[0] if zero else None
