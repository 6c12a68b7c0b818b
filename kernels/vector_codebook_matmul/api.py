"""`vector_codebook_matmul`: float activations, a weight of codes for vectors."""

import math

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels.vector_codebook_matmul import cpu
from jcompress.kernels.vector_codebook_matmul.reference import dense_weight, reference
from jcompress.kernels.vector_codebook_matmul.xla import xla
from jcompress.tensors.vector_codebook import (
    LONGEST,
    MOST_BITS,
    MOST_CODES,
    bits_of,
    code_bytes,
)

_NAME = "vector_codebook_matmul"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(xla),
    Implementation.CPU: Form(cpu.cpu, cpu.refuses, cpu.prefers, stacked=True),
}


def vector_codebook_matmul(
    x: jax.Array,
    codes: jax.Array,
    tables: jax.Array,
    scales: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply float activations by a weight stored as codes for vectors of weights.

    `y[..., o] = scales[o] sum_k x[..., k] sum_m tables[m, code[o, m, k // D], k % D]`,
    accumulated in float32 and cast to the dtype of `x`. The arguments are the arrays
    of a `VectorCodebook` of one matrix; use `jax.vmap` for stacks. Differentiable in
    reverse with respect to `x`, `tables` and `scales`.

    On a mesh each device multiplies the outputs that it has.

    Args:
        x: floats [..., K].
        codes: uint8 [N, M, P], P = b ceil(J / 8) with J = ceil(K / D), packed as
            `VectorCodebook` says.
        tables: float32 [M, 2^b, D] with M at most 4, b and D at most 8.
        scales: float32 [N, 1].
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    _check(x, codes, tables, scales)
    product = _OPERATION(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        codes,
        tables,
        scales,
        implementation=implementation,
    )
    return product.reshape(*x.shape[:-1], codes.shape[0])


def _roles(*_: jax.Array) -> tuple[str, ...]:
    # Codes are packed by the eight, so that inputs cannot be cut anywhere.
    return ("m.", "n..", "...", "n.")


def _backward(saved: Arrays, cotangent: jax.Array) -> Arrays:
    x, codes, tables, scales = saved
    inputs, given = x.shape[1], cotangent.astype(jnp.float32)

    def dense(tables: jax.Array, scales: jax.Array) -> jax.Array:
        return dense_weight(codes, tables, scales, inputs=inputs)

    weight, back = jax.vjp(dense, tables, scales)
    to_tables, to_scales = back(jnp.matmul(given.T, x.astype(jnp.float32)))
    to_x = jnp.matmul(given, weight).astype(cotangent.dtype)
    return (to_x, None, to_tables, to_scales)


_OPERATION = KernelOperation(name=_NAME, forms=FORMS, roles=_roles, backward=_backward)


def _check(
    x: jax.Array, codes: jax.Array, tables: jax.Array, scales: jax.Array
) -> None:
    if x.ndim < 1 or x.shape[-1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{_NAME}: x is floats [..., K], not {_said(x)}")
    count, size, length = tables.shape if tables.ndim == 3 else (0, 0, 0)
    bits = bits_of(size)
    sizes = 1 <= count <= MOST_CODES and 1 <= length <= LONGEST and size == 2**bits
    if not sizes or not 1 <= bits <= MOST_BITS or tables.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: tables is float32 [M, C, D] with M from 1 to {MOST_CODES}, C a "
            f"power of 2 from 2 to {2**MOST_BITS} and D from 1 to {LONGEST}, not "
            f"{_said(tables)}"
        )
    stored = code_bytes(x.shape[-1], length, bits)
    fits = codes.ndim == 3 and codes.shape[1:] == (count, stored)
    if not fits or codes.dtype != jnp.uint8:
        raise ValueError(
            f"{_NAME}: for {x.shape[-1]} inputs and tables {list(tables.shape)}, codes "
            f"is uint8 [N, {count}, {stored}], not {_said(codes)}"
        )
    if scales.shape != (codes.shape[0], 1) or scales.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: scales is float32 [{codes.shape[0]}, 1], not {_said(scales)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
