"""`block_sparse_matmul`: float activations, a weight of which few blocks are stored."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels.block_sparse_matmul import cpu, gpu, tpu
from jcompress.kernels.block_sparse_matmul.reference import reference
from jcompress.kernels.block_sparse_matmul.xla import transposed, xla

_NAME = "block_sparse_matmul"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(xla),
    Implementation.CPU: Form(cpu.cpu, cpu.refuses, cpu.prefers, stacked=True),
    Implementation.TPU: Form(tpu.tpu, tpu.refuses, tpu.prefers, sized=True),
    Implementation.GPU: Form(gpu.gpu, gpu.refuses, gpu.prefers, sized=True),
}


def block_sparse_matmul(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None = None,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply float activations by a weight whose zero blocks are not stored.

    With `b` from `starts[r]` to `starts[r + 1]`, `o = r bn + i` and `c = columns[b]`,

        y[..., o] = scales[o] sum_b sum_j x[..., c bk + j] blocks[b, i, j]

    accumulated in float32 and cast to the dtype of `x`. The arguments are the arrays
    of a `BlockSparse` of one matrix; use `jax.vmap` for stacks. Differentiable in
    reverse with respect to `x` only: the stored arrays count as constants.

    On a mesh every device that has rows of `x` multiplies them by all the blocks; a
    stack of weights may be cut along the stack.

    Args:
        x: floats [..., K].
        blocks: float32, bfloat16 or int8 [B, bn, bk] with B >= 1 and bk a divisor
            of K.
        columns: int32 [B], each in [0, K / bk), increasing within a row of blocks.
        starts: int32 [N / bn + 1]: where the blocks of each row begin, and where the
            last end. What follows are zero blocks.
        scales: float32 [N, 1]; None for blocks of floats.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit. `columns` and `starts` are not looked
            into.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    _check(x, blocks, columns, starts, scales)
    outputs = (starts.shape[0] - 1) * blocks.shape[1]
    product = _OPERATION(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        blocks,
        columns,
        starts,
        scales,
        implementation=implementation,
        outputs=outputs,
    )
    return product.reshape(*x.shape[:-1], outputs)


def _roles(*args: Any, outputs: int) -> tuple[str, ...]:
    roles = ("m.", "...", ".", ".", "..")
    return tuple(role for role, a in zip(roles, args, strict=True) if a is not None)


def _save(x: jax.Array, *weight: Any, outputs: int) -> Arrays:
    return (x[:0], *weight)


def _backward(saved: Arrays, cotangent: jax.Array, *, outputs: int) -> Arrays:
    x, *weight = saved
    gradient = transposed(cotangent, *weight, inputs=x.shape[1])
    return (gradient, None, None, None, None)


_OPERATION = KernelOperation(
    name=_NAME, forms=FORMS, roles=_roles, backward=_backward, save=_save
)


def _check(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
) -> None:
    if x.ndim < 1 or x.shape[-1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{_NAME}: x is floats [..., K], not {_said(x)}")
    kinds = (jnp.float32, jnp.bfloat16, jnp.int8)
    inputs = x.shape[-1]
    cut = blocks.ndim == 3 and 0 not in blocks.shape and inputs % blocks.shape[2] == 0
    if not cut or blocks.dtype not in kinds:
        raise ValueError(
            f"{_NAME}: for {inputs} inputs, blocks is float32, bfloat16 or int8 "
            f"[B, bn, bk] with B >= 1 and bk a divisor of {inputs}, not {_said(blocks)}"
        )
    count, high, _ = blocks.shape
    if columns.shape != (count,) or columns.dtype != jnp.int32:
        raise ValueError(
            f"{_NAME}: columns is int32 [{count}], one for each block, not "
            f"{_said(columns)}"
        )
    if starts.ndim != 1 or starts.shape[0] < 2 or starts.dtype != jnp.int32:
        raise ValueError(
            f"{_NAME}: starts is int32 [N / {high} + 1], not {_said(starts)}"
        )
    outputs = (starts.shape[0] - 1) * high
    if (scales is None) == (blocks.dtype == jnp.int8):
        raise ValueError(
            f"{_NAME}: int8 blocks need scales, float32 [{outputs}, 1], and floats "
            f"have none; blocks is {_said(blocks)}"
        )
    if scales is not None and (
        scales.shape != (outputs, 1) or scales.dtype != jnp.float32
    ):
        raise ValueError(
            f"{_NAME}: scales is float32 [{outputs}, 1], not {_said(scales)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
