"""GPTQ: round the inputs of a weight matrix in turn, each making up for the last."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jcompress.formats import NumberFormat
from jcompress.rounding.base import Rounded, Rounding
from jcompress.rounding.copies import counted, over_copies
from jcompress.rounding.in_turn import (
    BLOCK,
    Grid,
    damped,
    factored,
    left_over,
    one_by_one,
    settle_in_turn,
)
from jcompress.tensors.range_specs import LeastError
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import weight_scales


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq(Rounding):
    """Inputs are rounded one after the other, the rest making up for the errors.

    It needs the second moments of the inputs, `quantize(..., moments=...)`, and lowers
    the error of the layer's outputs on data like theirs, not that of its weights.
    Scales are those of the weights as they were given. With `LeastError` a squared
    error counts what is left of it when later inputs have made up for it (the square of
    T's diagonal, see `in_turn`), not what its input alone makes of it.

    Attributes:
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more trusts the data less.
        by_importance: whether inputs go in the order of their second moments, the
            largest first ("act-order"), rather than in their own.

    Raises:
        ValueError: `damping` is not above 0 and finite.

    References:
        Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
        Pre-trained Transformers", algorithm 1; computed as in Chen et al. 2025, "The
        Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm".
    """

    damping: float = 0.01
    by_importance: bool = True

    def __post_init__(self) -> None:
        number = isinstance(self.damping, int | float) and math.isfinite(self.damping)
        if not number or self.damping <= 0:
            raise ValueError(f"Gptq: damping is above 0, not {self.damping!r}")

    def round(
        self, matrix: jax.Array, weights: Weights, moments: jax.Array | None
    ) -> Rounded:
        """Numbers whose products err least, one input after the other."""
        assert moments is not None
        importance = None
        if isinstance(weights.range, LeastError):
            importance = over_copies(
                lambda h: left_over(h, self.damping, _order(h, self)),
                moments.astype(jnp.float32),
            )
        scales, zeros = weight_scales(matrix, weights, importance)
        numbers = gptq_numbers(matrix, scales, zeros, moments, weights.format, self)
        stored = None if zeros is None else zeros.astype(weights.format.dtype)
        return Rounded(numbers, scales, stored)


def gptq_numbers(
    matrix: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
    format: NumberFormat,
    spec: Gptq,
) -> jax.Array:
    """Numbers of a format whose matrix W' has a small error of outputs.

    With H the second moments, damped, the error is `tr((W - W') H (W - W')^T)`.
    `settle_in_turn` says which number is the best for each input in turn. This is
    algorithm 1 of GPTQ, which takes the errors from the weights that are left, by an
    inverse of H that this form does without.

    Args:
        matrix: floats [*S, N, K].
        scales: float32 [*S, R, G], where R divides N and G divides K.
        zeros: integers in float32 of the shape of the scales, or None.
        moments: float32 [*S, K, K], the sum of x x^T over the inputs x of each copy, up
            to a factor.
        format: which numbers there are.
        spec: damping and order.

    Returns:
        Numbers of the format, of its dtype, [*S, N, K].
    """
    if 0 in matrix.shape:
        return jnp.zeros(matrix.shape, format.dtype)
    run = functools.partial(_one, format=format, spec=spec)
    numbers: jax.Array = over_copies(run, matrix, scales, zeros, moments)
    return counted(numbers, format)


def _order(moments: jax.Array, spec: Gptq) -> jax.Array:
    """In which the inputs are rounded."""
    if spec.by_importance:
        return jnp.argsort(-jnp.diagonal(moments), stable=True)
    return jnp.arange(len(moments))


@functools.partial(jax.jit, static_argnames=("format", "spec"))
def _one(
    matrix: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
    *,
    format: NumberFormat,
    spec: Gptq,
) -> jax.Array:
    """The numbers [N, K] of one matrix, in float32."""
    outputs, inputs = matrix.shape
    moments = moments.astype(jnp.float32)
    order = _order(moments, spec)
    factor, _ = factored(damped(moments, spec.damping), order)
    group = order // (inputs // scales.shape[1])
    short = -inputs % BLOCK

    def led(x: jax.Array, places: jax.Array, fill: float = 0) -> jax.Array:
        """Inputs lead, in their order: those of a block lie side by side."""
        tall = jnp.repeat(
            x.astype(jnp.float32), outputs // x.shape[0], 0, total_repeat_length=outputs
        )
        return jnp.pad(tall.T[places], ((0, short), (0, 0)), constant_values=fill)

    grid = Grid(led(scales, group, 1), None if zeros is None else led(zeros, group))
    numbers = settle_in_turn(
        led(matrix, order),
        jnp.pad(factor, ((0, short), (0, short))),
        grid,
        sizes=(BLOCK,),
        settle=lambda block: one_by_one(block, block.parts, format),
    )
    rounded: jax.Array = numbers[:inputs][jnp.argsort(order)].T
    return rounded
