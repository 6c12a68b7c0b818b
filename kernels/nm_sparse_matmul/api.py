"""`nm_sparse_matmul`: float activations, a weight with n of every m inputs stored."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels.nm_sparse_matmul import cpu, tpu
from jcompress.kernels.nm_sparse_matmul.reference import dense_weight, reference
from jcompress.kernels.nm_sparse_matmul.xla import xla
from jcompress.tensors.nm_sparse import stored_inputs

_NAME = "nm_sparse_matmul"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(xla),
    Implementation.CPU: Form(cpu.cpu, cpu.refuses, cpu.prefers, stacked=True),
    Implementation.TPU: Form(tpu.tpu, tpu.refuses, tpu.prefers, sized=True),
}


def nm_sparse_matmul(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scales: jax.Array | None = None,
    *,
    n: int,
    m: int,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply float activations by a weight with n of every m inputs stored.

    `y[..., o] = scales[o] sum_t x[..., k(o, t)] values[o, t]`, where `k(o, t)` is the
    t-th input that `mask` keeps for output o, accumulated in float32 and cast to the
    dtype of `x`. The arguments are the arrays of an `NMSparse` of one matrix; use
    `jax.vmap` for stacks. Differentiable in reverse with respect to `x` only: the
    stored arrays count as constants.

    On a mesh each device multiplies the part of the weight that it has. Along the
    inputs it may be cut between bytes of the mask if m divides 8 and 8 divides K.

    Args:
        x: floats [..., K].
        values: float32, bfloat16 or int8 [N, ceil(K / m) n].
        mask: uint8 [N, ceil(K / 8)]: bit k % 8 of byte k // 8 says that input k is
            kept, for n of every m; of a shorter last group of r, min(n, r).
        scales: float32 [N, 1]; None for values that are floats.
        n: weights kept of each group.
        m: inputs of a group.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit. `mask` is not looked into.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    _check(x, values, mask, scales, n, m)
    outputs = values.shape[0]
    product = _OPERATION(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        values,
        mask,
        scales,
        implementation=implementation,
        n=n,
        m=m,
    )
    return product.reshape(*x.shape[:-1], outputs)


def _roles(*args: Any, n: int, m: int) -> tuple[str, ...]:
    k = "k" if 8 % m == 0 and args[0].shape[-1] % 8 == 0 else "."
    roles = ("m" + k, "n" + k, "n" + k, "n.")
    return tuple(role for role, a in zip(roles, args, strict=True) if a is not None)


def _save(x: jax.Array, *weight: Any, n: int, m: int) -> Arrays:
    return (x[:0], *weight)


def _backward(saved: Arrays, cotangent: jax.Array, *, n: int, m: int) -> Arrays:
    x, *weight = saved
    dense = dense_weight(*weight, inputs=x.shape[1])
    gradient = jnp.matmul(cotangent.astype(jnp.float32), dense)
    return (gradient.astype(cotangent.dtype), None, None, None)


def _over_parts(
    run: Callable[..., jax.Array],
    names: tuple[str, ...],
    x: jax.Array,
    *weight: Any,
    n: int,
    m: int,
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


def _check(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scales: jax.Array | None,
    n: int,
    m: int,
) -> None:
    if not 1 <= n < m:
        raise ValueError(f"{_NAME}: 1 <= n < m, not n = {n!r}, m = {m!r}")
    if x.ndim < 1 or x.shape[-1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{_NAME}: x is floats [..., K], not {_said(x)}")
    inputs = x.shape[-1]
    stored = stored_inputs(inputs, n, m)
    kinds = (jnp.float32, jnp.bfloat16, jnp.int8)
    fits = values.ndim == 2 and values.shape[1] == stored and values.dtype in kinds
    if not fits:
        raise ValueError(
            f"{_NAME}: for {inputs} inputs and {n}:{m}, values is float32, bfloat16 or "
            f"int8 [N, {stored}], not {_said(values)}"
        )
    outputs = values.shape[0]
    if mask.shape != (outputs, -(-inputs // 8)) or mask.dtype != jnp.uint8:
        raise ValueError(
            f"{_NAME}: for {inputs} inputs, mask is uint8 "
            f"[{outputs}, {-(-inputs // 8)}], not {_said(mask)}"
        )
    if (scales is None) == (values.dtype == jnp.int8):
        raise ValueError(
            f"{_NAME}: int8 values need scales, float32 [{outputs}, 1], and floats "
            f"have none; values is {_said(values)}"
        )
    if scales is not None and (
        scales.shape != (outputs, 1) or scales.dtype != jnp.float32
    ):
        raise ValueError(
            f"{_NAME}: scales is float32 [{outputs}, 1], not {_said(scales)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
