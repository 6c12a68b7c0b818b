"""GPTQ: round the inputs of a weight matrix in turn, each making up for the last."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.rounding.base import Rounded, Rounding, diagonal
from jcompress.rounding.copies import counted, over_copies
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import weight_scales

_BLOCK = 16
"""Inputs that are rounded between two products: their errors stay in the cache."""

_CHUNK = 1024
"""Inputs that are rounded by one compiled loop."""

_MOST_CHUNKS = 8
"""Loops that are compiled at most, each for its own number of inputs before it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq(Rounding):
    """Inputs are rounded one after the other, the rest making up for the errors.

    It needs the second moments of the inputs, `quantize(..., moments=...)`, and lowers
    the error of the layer's outputs on data like theirs, not that of its weights.
    Scales are those of the weights as they were given.

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
        scales, zeros = weight_scales(matrix, weights, diagonal(moments))
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

    With H the second moments, damped, the error is `tr((W - W') H (W - W')^T)`; with
    `H = T^T T`, T lower triangular, `|T (w - w')|^2` for each output. The term of input
    i holds the errors e = w - w' of the inputs up to it, so that its own makes up for
    those before it if it is rounded to the nearest number of

        w[i] + sum over j < i of e[j] T[i, j] / T[i, i]

    This is algorithm 1 of GPTQ, which takes the errors from the weights that are left,
    by an inverse of H that this form does without.

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
    order = jnp.arange(inputs)
    if spec.by_importance:
        order = jnp.argsort(-jnp.diagonal(moments), stable=True)
    factor = _factor(damped(moments, spec.damping), order)
    group = order // (inputs // scales.shape[1])
    short = -inputs % _BLOCK

    def led(x: jax.Array, places: jax.Array, fill: float = 0) -> jax.Array:
        """Inputs lead, in their order: those of a block lie side by side."""
        tall = jnp.repeat(
            x.astype(jnp.float32), outputs // x.shape[0], 0, total_repeat_length=outputs
        )
        return jnp.pad(tall.T[places], ((0, short), (0, 0)), constant_values=fill)

    w, scale = led(matrix, order), led(scales, group, 1)
    zero = None if zeros is None else led(zeros, group)
    factor = jnp.pad(factor, ((0, short), (0, short)))

    numbers = jnp.zeros((0, outputs), jnp.float32)
    errors = numbers
    chunk = max(_CHUNK, -(-inputs // (_MOST_CHUNKS * _BLOCK)) * _BLOCK)
    for start in range(0, inputs, chunk):
        own = slice(start, min(start + chunk, inputs + short))
        # What the chunks before make of these inputs, in one product.
        base = w[own] + jnp.matmul(factor[own, :start], errors, precision="highest")
        grid = (w[own], scale[own], None if zero is None else zero[own])
        found, more = _chunk(base, factor[own, own], grid, format)
        numbers = jnp.concatenate([numbers, found])
        errors = jnp.concatenate([errors, more])
    rounded: jax.Array = numbers[:inputs][jnp.argsort(order)].T
    return rounded


def _chunk(
    base: jax.Array,
    factor: jax.Array,
    grid: tuple[jax.Array, jax.Array, jax.Array | None],
    format: NumberFormat,
) -> tuple[jax.Array, jax.Array]:
    """The numbers and the errors [C, N] of some inputs.

    Args:
        base: the weights with what earlier inputs add, [C, N].
        factor: what the error of one of these inputs (column) adds to a later one.
        grid: the weights themselves, the scales, and the zero points or None, [C, N].
        format: which numbers there are.
    """

    def block(
        number: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        numbers, errors = state
        start = number * _BLOCK

        def part(x: jax.Array) -> jax.Array:
            own: jax.Array = jax.lax.dynamic_slice_in_dim(x, start, _BLOCK, 0)
            return own

        w, scale, zero = jax.tree.map(part, grid)
        wanted = part(base) + jnp.matmul(part(factor), errors, precision="highest")
        own = jax.lax.dynamic_slice(factor, (start, start), (_BLOCK, _BLOCK))

        def step(
            i: jax.Array, now: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            found, made = now
            offset = None if zero is None else zero[i]
            target = wanted[i] + jnp.sum(own[i][:, None] * made, axis=0)
            rounded = format.round(target * (np.float32(1) / scale[i]), offset)
            value = (rounded if offset is None else rounded - offset) * scale[i]
            return found.at[i].set(rounded), made.at[i].set(w[i] - value)

        nothing = jnp.zeros_like(w)
        found, made = jax.lax.fori_loop(0, _BLOCK, step, (nothing, nothing))
        return (
            jax.lax.dynamic_update_slice_in_dim(numbers, found, start, 0),
            jax.lax.dynamic_update_slice_in_dim(errors, made, start, 0),
        )

    nothing = jnp.zeros_like(base)
    result: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(
        0, len(base) // _BLOCK, block, (nothing, nothing)
    )
    return result


def damped(moments: jax.Array, damping: float) -> jax.Array:
    """Moments [K, K] that can be factored.

    Args:
        moments: the sum of x x^T over the inputs, up to a factor.
        damping: what is added to the diagonal, as a fraction of its mean. Inputs that
            are always 0 count as those of mean size.
    """
    size = jnp.diagonal(moments)
    mean = jnp.mean(size)
    usual = jnp.where(mean > 0, mean, np.float32(1))
    extra = np.float32(damping) * usual + jnp.where(size > 0, np.float32(0), usual)
    return moments + jnp.diag(extra)


def _factor(moments: jax.Array, order: jax.Array) -> jax.Array:
    """`T[i, j] / T[i, i]` for j < i, else 0, of moments [K, K] in another order.

    With J the reversal of all inputs, `J H J = L L^T` gives `T = J L^T J`.
    """
    back = order[::-1]
    lower = jnp.linalg.cholesky(moments[back][:, back])
    t = lower.T[::-1, ::-1]
    factor: jax.Array = t / jnp.diagonal(t)[:, None] - jnp.eye(len(t), dtype=t.dtype)
    return factor
