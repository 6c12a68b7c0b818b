"""`int8_matmul`: integer activations, integer weights, exact sums."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.formats import Int
from jcompress.kernels._constants import constant_numbers
from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._epilogue import Elementwise, after_rows
from jcompress.kernels._integers import quantize_rows, result_dtype, row_scale
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels._rows import by_row, check_outputs, check_row_scale, said
from jcompress.kernels.int8_matmul import cpu, gpu, tpu
from jcompress.kernels.int8_matmul.reference import reference
from jcompress.kernels.int8_matmul.xla import xla
from jcompress.tensors.rounding import unclipped
from jcompress.tensors.weight_matrix import dequantize_matrix

_NAME = "int8_matmul"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(xla),
    Implementation.CPU: Form(
        cpu.cpu, cpu.refuses, cpu.prefers, stacked=True, finishes=True, keeps=True
    ),
    Implementation.TPU: Form(tpu.tpu, tpu.refuses, tpu.prefers, sized=True),
    Implementation.GPU: Form(gpu.gpu, gpu.refuses, gpu.prefers, sized=True),
}


def int8_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    x_scale: jax.Array | None = None,
    x_zero: jax.Array | None = None,
    x_bits: int = 8,
    bias: jax.Array | None = None,
    then: Elementwise | None = None,
    factor: jax.Array | None = None,
    residual: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply in integers: quantized activations by a quantized weight.

    `y[..., n] = x_scale scales[n] sum_k (q[..., k] - x_zero) (values[n, k] - zeros[n])
    + bias[n]` with the sum exact in int32 (beyond 32768 inputs, a float32 sum of such
    sums). Float `x` is quantized on the way, `q = quantize_values(x, x_scale, x_zero)`,
    symmetric if `x_zero` is None; int8 `x` is q. What is left of a layer may follow:
    `then(y) factor + residual`, in float32. Use `jax.vmap` for stacks. Differentiable
    in reverse with respect to `bias`, `factor`, `residual` and float `x`, with the
    straight-through gradient of `fake_quantize`: the stored arrays, `x_scale` and
    `x_zero` count as constants. If the gradient needs `y` it is computed again.

    On a mesh each device multiplies the part of the weight that it has; where the
    inputs are cut, the parts are summed over the devices.

    Args:
        x: floats or int8 [..., K].
        values: int8 [N, K].
        scales: float32 [N or 1, 1].
        zeros: int8 of the shape of `scales`, or None.
        x_scale: float32, a scalar or [..., 1]. None, for float `x` only, takes the
            symmetric range of each row.
        x_zero: integers in float32 of the shape of `x_scale`, or None.
        x_bits: bits of the integers that float `x` becomes, 2 to 8.
        bias: float32 [N], or None.
        then: the activation that follows, or None.
        factor: what the result is then multiplied by, number by number, [..., N] in its
            dtype, or None.
        residual: what is added last, as `factor`.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of float `x`; float32 for int8 `x`.

    Raises:
        ValueError: shapes or dtypes do not fit, or `x_scale` is missing.
        TypeError: `implementation` or `then` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    _check_weight(x, values, scales, zeros, bias)
    _check_input(x, x_scale, x_zero, x_bits)
    count, outputs = math.prod(x.shape[:-1]), values.shape[0]
    after = after_rows(
        _NAME, x.shape[:-1], outputs, result_dtype(x), then,
        factor=factor, residual=residual,
    )  # fmt: skip
    wide = jnp.broadcast_to(scales, (outputs, 1))
    product = _OPERATION(
        x.reshape(count, x.shape[-1]),
        by_row(x_scale, x.shape[:-1]),
        by_row(x_zero, x.shape[:-1]),
        values,
        wide,
        None if zeros is None else jnp.broadcast_to(zeros, wide.shape),
        bias,
        implementation=implementation,
        after=after,
        constant=constant_numbers(values),
        x_bits=x_bits,
    )
    return product.reshape(*x.shape[:-1], outputs)


def _roles(*args: Any, x_bits: int) -> tuple[str, ...]:
    roles = ("mk", "m.", "m.", "nk", "n.", "n.", "n")
    return tuple(role for role, a in zip(roles, args, strict=True) if a is not None)


def _save(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
    *,
    x_bits: int,
) -> Arrays:
    # Nothing is clipped by a row's own range, so its activations need not be kept.
    clips = (x, x_scale, x_zero) if x_scale is not None else (x[:0], None, None)
    return (*clips, values, scales, zeros, bias)


def _backward(saved: Arrays, cotangent: jax.Array, *, x_bits: int) -> Arrays:
    x, scale, zero, values, scales, zeros, bias = saved
    wide = cotangent.astype(jnp.float32)
    by_bias = None if bias is None else jnp.sum(wide, axis=0)
    constants = (None,) * 5
    if x.dtype == jnp.int8:
        return (None, *constants, by_bias)
    dense = dequantize_matrix(values, scales, zeros, jnp.float32)
    gradient = jnp.matmul(wide, dense).astype(x.dtype)
    if scale is not None:
        kept = unclipped(x, scale, zero, Int(x_bits, symmetric=zero is None))
        gradient = jnp.where(kept, gradient, jnp.zeros_like(gradient))
    return (gradient, *constants, by_bias)


def _over_parts(
    run: Callable[..., jax.Array],
    names: tuple[str, ...],
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
    *,
    x_bits: int,
) -> jax.Array:
    if x_scale is None:
        x_scale = row_scale(x, Int(x_bits), names)
    q, x_scale, x_zero = quantize_rows(x, x_scale, x_zero, x_bits)
    product: jax.Array = jax.lax.psum(
        run(q, x_scale, x_zero, values, scales, zeros, None), names
    )
    if bias is not None:
        product = product + bias[:, None]
    return product


_OPERATION = KernelOperation(
    name=_NAME,
    forms=FORMS,
    roles=_roles,
    backward=_backward,
    save=_save,
    over_parts=_over_parts,
)


def _check_weight(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
) -> None:
    kind = jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == jnp.int8
    if x.ndim < 1 or x.shape[-1] < 1 or not kind:
        raise ValueError(f"{_NAME}: x is floats or int8 [..., K], not {said(x)}")
    inputs = x.shape[-1]
    fits = values.ndim == 2 and values.shape[1] == inputs and values.dtype == jnp.int8
    if not fits:
        raise ValueError(
            f"{_NAME}: for {inputs} inputs, values is int8 [N, {inputs}], not "
            f"{said(values)}; unpack 4-bit values first (QTensor.numbers)"
        )
    outputs = values.shape[0]
    check_outputs(_NAME, outputs, scales, bias)
    if zeros is not None and (zeros.shape != scales.shape or zeros.dtype != jnp.int8):
        raise ValueError(
            f"{_NAME}: zeros is int8 of the shape of scales {list(scales.shape)}, not "
            f"{said(zeros)}"
        )


def _check_input(
    x: jax.Array, scale: jax.Array | None, zero: jax.Array | None, bits: int
) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"{_NAME}: x_bits is from 2 to 8, not {bits!r}")
    if scale is None:
        if x.dtype == jnp.int8 or zero is not None:
            raise ValueError(
                f"{_NAME}: x_scale is missing; only float x without x_zero gets one"
            )
        return
    check_row_scale(_NAME, x, scale)
    if zero is not None and (zero.shape != scale.shape or zero.dtype != jnp.float32):
        raise ValueError(
            f"{_NAME}: x_zero is float32 of the shape of x_scale "
            f"{list(scale.shape)}, not {said(zero)}"
        )
