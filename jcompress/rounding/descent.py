"""Coordinate descent: each number in turn becomes the best one, given all others."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.rounding.base import Rounded, Rounding
from jcompress.rounding.copies import (
    counted,
    dense,
    fitted_scales,
    least,
    output_errors,
    over_copies,
    spread,
)
from jcompress.rounding.gptq import Gptq
from jcompress.tensors.specs import Weights

_GPTQ = Gptq()
_BLOCK = 64
"""Inputs that are visited between two products with the whole matrix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoordinateDescent(Rounding):
    """Numbers that another rounding chose are improved one by one, again and again.

    The error of the outputs is quadratic in each weight, so that the best number for
    one input, given those of all others, is known in closed form: the nearest to where
    the parabola is least. A sweep visits every input once; then the scales that suit
    the numbers best are found in closed form, too. Neither makes an output's error
    larger: the result is never worse than what it starts from.

    It needs the second moments of the inputs, `quantize(..., moments=...)`, and takes
    them as they are: of few inputs it learns more than holds for others.

    Attributes:
        start: the rounding that is improved.
        sweeps: how often every input is visited.
        scales: whether scales are fitted to the numbers after each sweep.

    Raises:
        ValueError: `sweeps` is no positive int.
        TypeError: `start` is no rounding.

    References:
        Behdin et al. 2023, "QuantEase: Optimization-based Quantization for Language
        Models": cyclic coordinate descent, here by blocks of inputs.

    Example:
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights
        >>> from jcompress.rounding import CoordinateDescent, Gptq
        >>> best = CoordinateDescent(start=Gptq(), sweeps=8)
        >>> rule = (..., Quantize(weights=Weights(format=Int(3)), rounding=best))
    """

    start: Rounding = _GPTQ
    sweeps: int = 4
    scales: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.start, Rounding):
            raise TypeError(
                f"CoordinateDescent: start is a rounding, such as Gptq(), not "
                f"{self.start!r}"
            )
        whole = isinstance(self.sweeps, int) and not isinstance(self.sweeps, bool)
        if not whole or self.sweeps < 1:
            raise ValueError(
                f"CoordinateDescent: sweeps is a positive int, not {self.sweeps!r}"
            )

    def round(
        self, matrix: jax.Array, weights: Weights, moments: jax.Array | None
    ) -> Rounded:
        """The numbers of `start`, improved."""
        assert moments is not None
        first = self.start.round(matrix, weights, moments)
        if 0 in matrix.shape:
            return first
        run = functools.partial(_improved, weights=weights, spec=self)
        numbers, scales = over_copies(
            run, matrix, first.values, first.scales, first.zeros, moments
        )
        return Rounded(counted(numbers, weights.format), scales, first.zeros)


def _improved(
    matrix: jax.Array,
    numbers: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
    *,
    weights: Weights,
    spec: CoordinateDescent,
) -> tuple[jax.Array, jax.Array]:
    """Numbers [N, K] in float32 and scales [R, G] that err no more than those given."""
    matrix, moments = matrix.astype(jnp.float32), moments.astype(jnp.float32)

    def errors(numbers: jax.Array, scales: jax.Array) -> jax.Array:
        return output_errors(dense(numbers, scales, zeros) - matrix, moments)

    def sweep(
        state: tuple[jax.Array, jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        numbers, scales, before = state
        found = _swept(matrix, numbers, scales, zeros, moments, weights.format)
        pair = (found, scales)
        after = errors(*pair)
        # A sweep errs no more, but for the order of the sums.
        kept = least((numbers, scales), pair, errors=(before, after))
        before = errors(*kept)
        if spec.scales:
            free = fitted_scales(matrix, kept[0], kept[1], zeros, moments)
            # The nearest that can be stored.
            pair = (kept[0], weights.scales.fit(free, 1.0))
            kept = least(kept, pair, errors=(before, errors(*pair)))
            before = errors(*kept)
        return (*kept, before), None

    first = numbers.astype(jnp.float32) * np.float32(weights.format.unit)
    state = (first, scales, errors(first, scales))
    (numbers, scales, _), _ = jax.lax.scan(sweep, state, None, length=spec.sweeps)
    return numbers, scales


def _swept(
    matrix: jax.Array,
    numbers: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
    format: NumberFormat,
) -> jax.Array:
    """The numbers [N, K] after every input was visited once, in order."""
    shape = matrix.shape
    short = -shape[1] % _BLOCK

    def led(x: jax.Array, fill: float = 0) -> jax.Array:
        """Inputs lead: those of one block lie beside each other in memory."""
        return jnp.pad(x.T, ((0, short), (0, 0)), constant_values=fill)

    scale = led(spread(scales, *shape), 1)
    zero = None
    if zeros is not None:
        zero = led(spread(zeros.astype(jnp.float32), *shape))
    change = led(dense(numbers, scales, zeros) - matrix)
    w, numbers = led(matrix), led(numbers)
    h = jnp.pad(moments, ((0, short), (0, short)))
    size = jnp.diagonal(h)
    # Of an input that is always 0 every number is as good: it keeps its own.
    inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), np.float32(0))

    def block(
        number: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        numbers, change = state
        start = number * _BLOCK

        def part(x: jax.Array) -> jax.Array:
            own: jax.Array = jax.lax.dynamic_slice_in_dim(x, start, _BLOCK, 0)
            return own

        slope = jnp.matmul(part(h), change, precision="highest")
        own = jax.lax.dynamic_slice(h, (start, start), (_BLOCK, _BLOCK))
        before, values, over = part(change), part(w), part(inverse)
        s, z = part(scale), None if zero is None else part(zero)

        def step(
            i: jax.Array, now: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            found, errors = now
            offset = None if z is None else z[i]
            pull = slope[i] + jnp.sum(own[i][:, None] * (errors - before), axis=0)
            target = values[i] + errors[i] - pull * over[i]
            rounded = format.round(target * (np.float32(1) / s[i]), offset)
            value = (rounded if offset is None else rounded - offset) * s[i]
            moved = over[i] > 0
            rounded = jnp.where(moved, rounded, found[i])
            error = jnp.where(moved, value - values[i], errors[i])
            return found.at[i].set(rounded), errors.at[i].set(error)

        found, errors = jax.lax.fori_loop(0, _BLOCK, step, (part(numbers), before))
        return (
            jax.lax.dynamic_update_slice_in_dim(numbers, found, start, 0),
            jax.lax.dynamic_update_slice_in_dim(change, errors, start, 0),
        )

    blocks = (shape[1] + short) // _BLOCK
    numbers, _ = jax.lax.fori_loop(0, blocks, block, (numbers, change))
    swept: jax.Array = numbers[: shape[1]].T
    return swept
