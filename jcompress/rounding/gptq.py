"""GPTQ: round the inputs of a weight matrix in turn, each making up for the last."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.rounding.base import Rounded, Rounding, diagonal
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import weight_scales

_BLOCK = 64
"""Inputs that are rounded before the rest of the matrix hears of their errors."""


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
        Pre-trained Transformers", algorithm 1.
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

    With H the second moments, damped, the error is `tr((W - W') H (W - W')^T)`. Input
    after input is rounded to the nearest number; the error e of input i is divided by
    the pivot of the inverse of H and taken from the inputs that are left,
    `W[:, j] -= e R[i, j] / R[i, i]` for j > i, where `H^-1 = R^T R` with R upper
    triangular.

    Args:
        matrix: floats [*S, N, K].
        scales: float32 [*S, N or 1, G].
        zeros: integers in float32 of the shape of the scales, or None.
        moments: float32 [*S, K, K], the sum of x x^T over the inputs x of each copy, up
            to a factor.
        format: which numbers there are.
        spec: damping and order.

    Returns:
        Numbers of the format, of its dtype, [*S, N, K].

    References:
        Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
        Pre-trained Transformers", algorithm 1.
    """
    *stacks, outputs, inputs = matrix.shape
    if 0 in matrix.shape:
        return jnp.zeros(matrix.shape, format.dtype)
    groups = scales.shape[-1]
    wide = (*stacks, outputs, groups)

    def by_stack(x: jax.Array, *shape: int) -> jax.Array:
        return x.astype(jnp.float32).reshape(-1, *shape)

    def one(parts: tuple[jax.Array, ...]) -> jax.Array:
        numbers: jax.Array = _one(*parts, format=format, spec=spec)
        return numbers

    parts = [
        by_stack(matrix, outputs, inputs),
        by_stack(jnp.broadcast_to(scales, wide), outputs, groups),
        by_stack(moments, inputs, inputs),
    ]
    if zeros is not None:
        parts.append(by_stack(jnp.broadcast_to(zeros, wide), outputs, groups))
    numbers: jax.Array = jax.lax.map(one, tuple(parts))
    return numbers.reshape(matrix.shape).astype(format.dtype)


@functools.partial(jax.jit, static_argnames=("format", "spec"))
def _one(
    matrix: jax.Array,
    scales: jax.Array,
    moments: jax.Array,
    zeros: jax.Array | None = None,
    *,
    format: NumberFormat,
    spec: Gptq,
) -> jax.Array:
    """The numbers [N, K] of one matrix."""
    outputs, inputs = matrix.shape
    order = jnp.arange(inputs)
    if spec.by_importance:
        order = jnp.argsort(-jnp.diagonal(moments), stable=True)
    factor = _inverse_factor(moments[order][:, order], spec.damping)
    group = order // (inputs // scales.shape[1])
    # Inputs lead: those of one block then lie beside each other in memory.
    short = -inputs % _BLOCK
    w = jnp.pad(matrix.T[order], ((0, short), (0, 0)))
    scale = jnp.pad(scales.T[group], ((0, short), (0, 0)), constant_values=1)
    zero = None if zeros is None else jnp.pad(zeros.T[group], ((0, short), (0, 0)))
    factor = jnp.pad(factor, ((0, short), (0, short)))
    factor = factor + jnp.diag((jnp.arange(inputs + short) >= inputs).astype(w.dtype))

    def block(
        number: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        w, numbers = state
        start = number * _BLOCK

        def part(x: jax.Array) -> jax.Array:
            own: jax.Array = jax.lax.dynamic_slice_in_dim(x, start, _BLOCK, 0)
            return own

        own = jax.lax.dynamic_slice(factor, (start, start), (_BLOCK, _BLOCK))
        s, z = part(scale), None if zero is None else part(zero)

        def step(i: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            rows, found, errors = now
            offset = None if z is None else z[i]
            number = format.round(rows[i] * (np.float32(1) / s[i]), offset)
            value = (number if offset is None else number - offset) * s[i]
            error = (rows[i] - value) / own[i, i]
            # R is 0 before i, so that what is rounded stays as it is.
            rows = rows - own[i][:, None] * error[None]
            return rows, found.at[i].set(number), errors.at[i].set(error)

        nothing = jnp.zeros((_BLOCK, outputs), jnp.float32)
        _, found, errors = jax.lax.fori_loop(
            0, _BLOCK, step, (part(w), nothing, nothing)
        )
        # The rows of this block are not read again, whatever is taken from them.
        w = w - jnp.matmul(part(factor).T, errors, precision="highest")
        numbers = jax.lax.dynamic_update_slice_in_dim(numbers, found, start, 0)
        return w, numbers

    blocks = (inputs + short) // _BLOCK
    _, numbers = jax.lax.fori_loop(0, blocks, block, (w, jnp.zeros_like(w)))
    found: jax.Array = numbers[:inputs][jnp.argsort(order)].T
    return found


def _inverse_factor(moments: jax.Array, damping: float) -> jax.Array:
    """The upper triangular R with `R^T R` the inverse of the damped moments [K, K].

    With J the reversal of all inputs, `J H J = L L^T` gives `H = U U^T` for the upper
    triangular `U = J L J`, whose inverse R is. Inputs that are always 0 count as those
    of mean size, so that all of them can be inverted.
    """
    size = jnp.diagonal(moments)
    mean = jnp.mean(size)
    usual = jnp.where(mean > 0, mean, np.float32(1))
    extra = np.float32(damping) * usual + jnp.where(size > 0, np.float32(0), usual)
    lower = jnp.linalg.cholesky((moments + jnp.diag(extra))[::-1, ::-1])
    identity = jnp.eye(len(moments), dtype=moments.dtype)
    inverse: jax.Array = jax.lax.linalg.triangular_solve(
        lower, identity, left_side=True, lower=True
    )
    return inverse[::-1, ::-1]
