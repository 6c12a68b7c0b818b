"""`codebook_matmul`: float activations, a weight of indices into tables of values."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels.codebook_matmul import cpu, tpu
from jcompress.kernels.codebook_matmul.reference import dense_weight, reference
from jcompress.kernels.codebook_matmul.xla import xla
from jcompress.tensors.codebook import MOST, index_bytes

_NAME = "codebook_matmul"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(xla),
    Implementation.CPU: Form(cpu.cpu, cpu.refuses, cpu.prefers, stacked=True),
    Implementation.TPU: Form(tpu.tpu, tpu.refuses, tpu.prefers, sized=True),
}


def codebook_matmul(
    x: jax.Array,
    indices: jax.Array,
    codebook: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply float activations by a weight stored as indices into its values.

    `y[..., o] = sum_k x[..., k] codebook[o // (N / R), index[o, k]]`, accumulated in
    float32 and cast to the dtype of `x`. The arguments are the arrays of a `Codebook`
    of one matrix; use `jax.vmap` for stacks. Differentiable in reverse with respect to
    `x` only: the stored arrays count as constants.

    On a mesh each device multiplies the part of the indices that it has.

    Args:
        x: floats [..., K].
        indices: uint8, each below C; for C > 16 [N, K], else [N, ceil(K / 2)], two a
            byte, even k in the low half.
        codebook: float32 [R, C] with R a divisor of N and C at most 256.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit. The indices are not looked into.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    _check(x, indices, codebook)
    product = _OPERATION(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        indices,
        codebook,
        implementation=implementation,
    )
    return product.reshape(*x.shape[:-1], indices.shape[0])


def _roles(x: jax.Array, indices: jax.Array, codebook: jax.Array) -> tuple[str, ...]:
    one_table = codebook.shape[-2] == 1
    return ("mk", "nk", ".." if one_table else "n.")


def _save(x: jax.Array, *weight: Any) -> Arrays:
    return (x[:0], *weight)


def _backward(saved: Arrays, cotangent: jax.Array) -> Arrays:
    x, *weight = saved
    dense = dense_weight(*weight, inputs=x.shape[1])
    gradient = jnp.matmul(cotangent.astype(jnp.float32), dense)
    return (gradient.astype(cotangent.dtype), None, None)


def _over_parts(
    run: Callable[..., jax.Array], names: tuple[str, ...], x: jax.Array, *weight: Any
) -> jax.Array:
    total: jax.Array = jax.lax.psum(run(x.astype(jnp.float32), *weight), names)
    return total.astype(x.dtype)


_OPERATION = KernelOperation(
    name=_NAME,
    forms=FORMS,
    roles=_roles,
    backward=_backward,
    save=_save,
    over_parts=_over_parts,
)


def _check(x: jax.Array, indices: jax.Array, codebook: jax.Array) -> None:
    if x.ndim < 1 or x.shape[-1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{_NAME}: x is floats [..., K], not {_said(x)}")
    table = codebook.ndim == 2 and 1 <= codebook.shape[1] <= MOST
    if not table or codebook.shape[0] < 1 or codebook.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: codebook is float32 [R, C] with C from 1 to {MOST}, not "
            f"{_said(codebook)}"
        )
    tables, size = codebook.shape
    inputs = x.shape[-1]
    stored = index_bytes(inputs, size)
    fits = indices.ndim == 2 and indices.shape[1] == stored
    if not fits or indices.shape[0] % tables or indices.dtype != jnp.uint8:
        raise ValueError(
            f"{_NAME}: for {inputs} inputs and {tables} tables of {size} values, "
            f"indices is uint8 [N, {stored}] with N a multiple of {tables}, not "
            f"{_said(indices)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
