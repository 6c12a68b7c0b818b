"""AdaRound: learn for each weight whether it is rounded up or down."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.rounding.base import Rounded, Rounding
from jcompress.rounding.copies import (
    counted,
    least,
    output_errors,
    over_copies,
    per_weight,
    spread,
)
from jcompress.rounding.neighbours import neighbours
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import weight_scales

_STRETCH = np.float32(1.2)
_SHIFT = np.float32(-0.1)
_MEAN, _SQUARE = 0.9, 0.999
_FIRST_POWER, _LAST_POWER = 20.0, 2.0
_UNPENALIZED = 0.2
"""The fraction of the steps in which nothing pulls the variables to 0 and 1."""
_LOOKS = 10
"""How often the variables are rounded on the way, to keep the best seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaRound(Rounding):
    """Every weight is rounded up or down, whichever the others make better.

    A variable h in [0, 1] for each weight mixes the number below and the one above;
    Adam lowers the error of the outputs, and a penalty `1 - |2 h - 1|^b`, whose b falls
    from 20 to 2, takes the variables to 0 or 1. Each output keeps the best numbers seen
    on the way, those of rounding to the nearest among them, so that none is worse than
    by that. Scales are those of the weights.

    It needs the second moments of the inputs, `quantize(..., moments=...)`. A step is
    one product [N, K] x [K, K] and some element-wise work: `Gptq` takes the time of
    about one step, and `CoordinateDescent` that of a few.

    Attributes:
        steps: of Adam.
        learning_rate: its size.
        penalty: what the penalties count beside the errors, where rounding to the
            nearest has an error of 1 a weight.

    Raises:
        ValueError: a field is not above 0, or `steps` is no int.

    References:
        Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
        Quantization", equations 21 to 25, for one layer, on second moments.
    """

    steps: int = 500
    learning_rate: float = 0.02
    penalty: float = 20.0

    def __post_init__(self) -> None:
        check_positive(self)

    def round(
        self, matrix: jax.Array, weights: Weights, moments: jax.Array | None
    ) -> Rounded:
        """Numbers next to the weights, below or above."""
        assert moments is not None
        scales, zeros = weight_scales(matrix, weights, moments)
        stored = None if zeros is None else zeros.astype(weights.format.dtype)
        if 0 in matrix.shape:
            return Rounded(
                jnp.zeros(matrix.shape, weights.format.dtype), scales, stored
            )
        run = functools.partial(_learned, format=weights.format, spec=self)
        numbers = over_copies(run, matrix, scales, zeros, moments)
        return Rounded(counted(numbers, weights.format), scales, stored)


def check_positive(spec: AdaRound | Rounding) -> None:
    """Raise ValueError unless `steps` is a positive int and all else above 0."""
    assert dataclasses.is_dataclass(spec)
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        kind = int if field.name == "steps" else int | float
        number = isinstance(value, kind) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            what = "a positive int" if field.name == "steps" else "above 0"
            raise ValueError(
                f"{type(spec).__name__}: {field.name} is {what}, not {value!r}"
            )


class _Adam(NamedTuple):
    """Variables, and the running means of their gradients and of the squares."""

    free: jax.Array
    mean: jax.Array
    square: jax.Array

    def moved(self, gradient: jax.Array, at: jax.Array, rate: float) -> "_Adam":
        """After one step more, the first being number 0 (Kingma and Ba 2015)."""
        mean = _MEAN * self.mean + (1 - _MEAN) * gradient
        square = _SQUARE * self.square + (1 - _SQUARE) * jnp.square(gradient)
        size = jnp.sqrt(square / (1 - _SQUARE ** (at + 1))) + np.float32(1e-8)
        free = self.free - rate * mean / (1 - _MEAN ** (at + 1)) / size
        return _Adam(free, mean, square)


def _learned(
    matrix: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
    *,
    format: NumberFormat,
    spec: AdaRound,
) -> jax.Array:
    """The numbers [N, K] of one matrix, in float32."""
    shape = matrix.shape
    matrix = matrix.astype(jnp.float32)
    moments = per_weight(moments.astype(jnp.float32))
    scale = spread(scales, *shape)
    zero = None if zeros is None else spread(zeros, *shape)
    offset = np.float32(0) if zero is None else zero
    steps = matrix * (np.float32(1) / scale)
    low, high = neighbours(steps, zero, format)
    gap = high - low
    near = format.round(steps, zero)

    def change(numbers: jax.Array) -> jax.Array:
        return (numbers - offset) * scale - matrix

    first = output_errors(change(near), moments)
    # Rounding to the nearest then has an error of 1 a weight.
    unit = jnp.maximum(jnp.sum(first), np.finfo(np.float32).tiny) / matrix.size

    def mixed(free: jax.Array) -> jax.Array:
        return jnp.clip(jax.nn.sigmoid(free) * _STRETCH + _SHIFT, 0, 1)

    def loss(free: jax.Array, power: jax.Array, penalty: jax.Array) -> jax.Array:
        h = mixed(free)
        e = change(low + h * gap)
        passed = jnp.matmul(jax.lax.stop_gradient(e), moments, precision="highest")
        # Of the gradient of e H e^T, 2 H e^T, without a second product.
        linear = 2 * jnp.sum(passed * e) / unit
        far = 1 - jnp.abs(2 * h - 1) ** power
        return linear + penalty * jnp.sum(jnp.where(gap > 0, far, 0))

    def step(state: _Adam, at: jax.Array) -> tuple[_Adam, None]:
        done = (at / spec.steps - _UNPENALIZED) / (1 - _UNPENALIZED)
        wave = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        power = _LAST_POWER + (_FIRST_POWER - _LAST_POWER) * wave
        penalty = jnp.where(done >= 0, np.float32(spec.penalty), np.float32(0))
        gradient = jax.grad(loss)(state.free, power, penalty)
        return state.moved(gradient, at, spec.learning_rate), None

    def look(
        state: tuple[_Adam, jax.Array, jax.Array], times: jax.Array
    ) -> tuple[tuple[_Adam, jax.Array, jax.Array], None]:
        adam, best, error = state
        adam, _ = jax.lax.scan(step, adam, times)
        found = jnp.where(mixed(adam.free) >= 0.5, high, low)
        now = output_errors(change(found), moments)
        best, error = least((best, error), (found, now), errors=(error, now))
        return (adam, best, error), None

    part = jnp.clip((steps + offset - low) / jnp.where(gap > 0, gap, 1), 0.01, 0.99)
    free = jax.scipy.special.logit((part - _SHIFT) / _STRETCH)
    times = jnp.arange(spec.steps, dtype=jnp.float32)
    each = -(-spec.steps // _LOOKS)
    whole = times[: spec.steps // each * each].reshape(-1, each)
    nothing = jnp.zeros_like(free)
    state = (_Adam(free, nothing, nothing), near, first)
    state, _ = jax.lax.scan(look, state, whole)
    if len(rest := times[whole.size :]):
        state, _ = look(state, rest)
    return state[1]
