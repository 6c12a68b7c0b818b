"""`unstructured_sparse_matmul`: float activations, a weight without its zeros."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels.unstructured_sparse_matmul import cpu
from jcompress.kernels.unstructured_sparse_matmul.reference import (
    dense_weight,
    reference,
)
from jcompress.kernels.unstructured_sparse_matmul.xla import xla

_NAME = "unstructured_sparse_matmul"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(xla),
    Implementation.CPU: Form(cpu.cpu, cpu.refuses, cpu.prefers, stacked=True),
}


def unstructured_sparse_matmul(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None = None,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply float activations by a weight whose zeros are not stored.

    `y[..., o] = sum_t x[..., k] values[starts[o] + t] scales[o, k // (K / G)]` with k =
    `k(o, t)` the t-th input that `mask` keeps for output o, accumulated in float32 and
    cast to the dtype of `x`. The arguments are the arrays of an `UnstructuredSparse` of
    one matrix; use `jax.vmap` for stacks. Differentiable in reverse with respect to `x`
    only: the stored arrays count as constants.

    On a mesh every device that has rows of `x` multiplies them by the whole weight; a
    stack of weights may be cut along the stack.

    Args:
        x: floats [..., K].
        values: float32, bfloat16 or int8 [V] with V >= 1; or integers of 4 bits,
            uint8 [V / 2], the even ones in the low halves.
        mask: uint8 [N, ceil(K / 8)]: bit k % 8 of byte k // 8 says that input k is
            kept.
        starts: int32 [N + 1]: where the values of each output begin, and where the
            last end.
        scales: float32 [N, G], where G divides K; None for values that are floats.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit. `mask` and `starts` are not looked
            into.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    _check(x, values, mask, starts, scales)
    product = _OPERATION(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        values,
        mask,
        starts,
        scales,
        implementation=implementation,
    )
    return product.reshape(*x.shape[:-1], mask.shape[0])


def _roles(*args: Any) -> tuple[str, ...]:
    roles = ("m.", ".", "..", ".", "..")
    return tuple(role for role, a in zip(roles, args, strict=True) if a is not None)


def _save(x: jax.Array, *weight: Any) -> Arrays:
    return (x[:0], *weight)


def _backward(saved: Arrays, cotangent: jax.Array) -> Arrays:
    x, *weight = saved
    dense = dense_weight(*weight, inputs=x.shape[1])
    gradient = jnp.matmul(cotangent.astype(jnp.float32), dense)
    return (gradient.astype(cotangent.dtype), None, None, None, None)


_OPERATION = KernelOperation(
    name=_NAME, forms=FORMS, roles=_roles, backward=_backward, save=_save
)


def _check(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
) -> None:
    if x.ndim < 1 or x.shape[-1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{_NAME}: x is floats [..., K], not {_said(x)}")
    kinds = (jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint8)
    if values.ndim != 1 or not values.size or values.dtype not in kinds:
        raise ValueError(
            f"{_NAME}: values is float32, bfloat16, int8 or uint8 [V] with V >= 1, not "
            f"{_said(values)}"
        )
    size = -(-x.shape[-1] // 8)
    if mask.ndim != 2 or mask.shape[1] != size or mask.dtype != jnp.uint8:
        raise ValueError(
            f"{_NAME}: for {x.shape[-1]} inputs, mask is uint8 [N, {size}], not "
            f"{_said(mask)}"
        )
    outputs = mask.shape[0]
    if starts.shape != (outputs + 1,) or starts.dtype != jnp.int32:
        raise ValueError(
            f"{_NAME}: starts is int32 [{outputs + 1}], not {_said(starts)}"
        )
    if (scales is None) == (values.dtype in (jnp.int8, jnp.uint8)):
        raise ValueError(
            f"{_NAME}: int8 and uint8 values need scales, float32 [{outputs}, G], and "
            f"floats have none; values is {_said(values)}"
        )
    if scales is None:
        return
    groups = scales.shape[-1] if scales.ndim == 2 else 0
    divides = groups > 0 and x.shape[-1] % groups == 0
    if not divides or scales.shape[0] != outputs or scales.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: scales is float32 [{outputs}, G], where G divides "
            f"{x.shape[-1]}, not {_said(scales)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
