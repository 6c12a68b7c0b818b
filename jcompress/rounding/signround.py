"""SignRound: learn what is added before rounding, and where the range ends."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.rounding.adaround import check_positive
from jcompress.rounding.base import Rounded, Rounding
from jcompress.rounding.copies import counted, least, over_copies, per_weight, spread
from jcompress.rounding.offsets import Offsets, Start, round_with
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import weight_scales


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
        scales, zeros = weight_scales(matrix, weights, moments)
        if 0 in matrix.shape:
            numbers = jnp.zeros(matrix.shape, format.dtype)
        else:
            run = functools.partial(_learned, weights=weights, spec=self)
            found, scales, zeros = over_copies(run, matrix, scales, zeros, moments)
            numbers = counted(found, format)
        stored = None if zeros is None else zeros.astype(weights.format.dtype)
        return Rounded(numbers, scales, stored)


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
    format = weights.format
    matrix = matrix.astype(jnp.float32)
    moments = per_weight(moments.astype(jnp.float32))
    begin = Start.of(matrix, scales, zeros, format)

    def forward(now: Offsets) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        dense, numbers, scale, zero = round_with(now, begin, format, weights.scales)
        e = dense - matrix
        passed = jnp.matmul(jax.lax.stop_gradient(e), moments, precision="highest")
        errors = jax.lax.stop_gradient(jnp.sum(passed * e, axis=1))
        found = (numbers, scale) if zero is None else (numbers, scale, zero)
        return 2 * jnp.sum(passed * e), (errors, *jax.lax.stop_gradient(found))

    def step(
        state: tuple[Offsets, tuple[jax.Array, ...], jax.Array], at: jax.Array
    ) -> tuple[tuple[Offsets, tuple[jax.Array, ...], jax.Array], None]:
        now, best, error = state
        gradient, (errors, *found) = jax.grad(forward, has_aux=True)(now)
        best, error = least(
            (best, error), (tuple(found), errors), errors=(error, errors)
        )
        rate = np.float32(spec.learning_rate) * (1 - at / spec.steps)
        return (now.moved(gradient, rate), best, error), None

    wide = None if zeros is None else spread(zeros, *matrix.shape)
    steps = matrix * (np.float32(1) / spread(scales, *matrix.shape))
    start: tuple[jax.Array, ...] = (format.round(steps, wide), scales)
    if zeros is not None:
        start = (*start, zeros)
    nothing = jnp.full(matrix.shape[:1], jnp.inf)
    # One step more than the schedule has sees what the last one made.
    times = jnp.arange(spec.steps + 1, dtype=jnp.float32)
    first = (Offsets.none(matrix, scales), start, nothing)
    (_, best, _), _ = jax.lax.scan(step, first, times)
    numbers, scale, *zero = best
    return numbers, scale, zero[0] if zero else None
