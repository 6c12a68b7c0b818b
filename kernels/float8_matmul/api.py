"""`float8_matmul`: activations and weights of 8-bit floats, sums in float32."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.formats import Float8
from jcompress.formats.packing import FLOAT8
from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._float8 import float8_rows, is_float, result_dtype
from jcompress.kernels._integers import row_scale
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels._rows import by_row, check_outputs, check_row_scale, said
from jcompress.kernels.float8_matmul.reference import reference
from jcompress.kernels.float8_matmul.xla import xla
from jcompress.tensors.rounding import unclipped
from jcompress.tensors.weight_matrix import dequantize_matrix

_NAME = "float8_matmul"
FORMS = {Implementation.REFERENCE: Form(reference), Implementation.XLA: Form(xla)}


def float8_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    *,
    x_scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply in 8-bit floats: quantized activations by a quantized weight.

    `y[..., n] = x_scale scales[n] sum_k q[..., k] values[n, k] + bias[n]`, the sum in
    float32, for devices that multiply float8 (NVIDIA's from compute capability 8.9 on,
    TPUs of generation 7) faster than anything else; on others the numbers become
    bfloat16 or float32 first, which hold them exactly. Float `x` is quantized on the
    way, `q = quantize_values(x, x_scale, None, Float8())`; float8 `x` is q. Use
    `jax.vmap` for stacks. Differentiable in reverse with respect to `bias` and float
    `x`, with the straight-through gradient of `fake_quantize`: the stored arrays and
    `x_scale` count as constants.

    On a mesh each device multiplies the part of the weight that it has; where the
    inputs are cut, the parts are summed over the devices.

    Args:
        x: floats or float8_e4m3fn [..., K].
        values: float8_e4m3fn [N, K].
        scales: float32 [N or 1, 1].
        x_scale: float32, a scalar or [..., 1]. None, for float `x` only, takes the
            range of each row: its largest magnitude becomes 448.
        bias: float32 [N], or None.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of float `x`; float32 for float8 `x`.

    Raises:
        ValueError: shapes or dtypes do not fit, or `x_scale` is missing.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.

    References:
        Micikevicius et al. 2022, "FP8 Formats for Deep Learning".
    """
    _check(x, values, scales, x_scale, bias)
    count, outputs = math.prod(x.shape[:-1]), values.shape[0]
    product = _OPERATION(
        x.reshape(count, x.shape[-1]),
        by_row(x_scale, x.shape[:-1]),
        values,
        jnp.broadcast_to(scales, (outputs, 1)),
        bias,
        implementation=implementation,
    )
    return product.reshape(*x.shape[:-1], outputs)


def _roles(*args: Any) -> tuple[str, ...]:
    roles = ("mk", "m.", "nk", "n.", "n")
    return tuple(role for role, a in zip(roles, args, strict=True) if a is not None)


def _save(
    x: jax.Array,
    x_scale: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    bias: jax.Array | None,
) -> Arrays:
    # Nothing is clipped by a row's own range, so its activations need not be kept.
    clips = (x, x_scale) if x_scale is not None else (x[:0], None)
    return (*clips, values, scales, bias)


def _backward(saved: Arrays, cotangent: jax.Array) -> Arrays:
    x, scale, values, scales, bias = saved
    wide = cotangent.astype(jnp.float32)
    by_bias = None if bias is None else jnp.sum(wide, axis=0)
    if not is_float(x):
        return (None, None, None, None, by_bias)
    dense = dequantize_matrix(values, scales, None, jnp.float32)
    gradient = jnp.matmul(wide, dense).astype(x.dtype)
    if scale is not None:
        kept = unclipped(x, scale, None, Float8())
        gradient = jnp.where(kept, gradient, jnp.zeros_like(gradient))
    return (gradient, None, None, None, by_bias)


def _over_parts(
    run: Callable[..., jax.Array],
    names: tuple[str, ...],
    x: jax.Array,
    x_scale: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    if x_scale is None:
        x_scale = row_scale(x, Float8(), names)
    q, x_scale = float8_rows(x, x_scale)
    product: jax.Array = jax.lax.psum(run(q, x_scale, values, scales, None), names)
    if bias is not None:
        product = product + bias[:, None]
    return product.astype(result_dtype(x))


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
    scales: jax.Array,
    x_scale: jax.Array | None,
    bias: jax.Array | None,
) -> None:
    kind = is_float(x) or x.dtype == FLOAT8
    if x.ndim < 1 or x.shape[-1] < 1 or not kind:
        raise ValueError(
            f"{_NAME}: x is floats or float8_e4m3fn [..., K], not {said(x)}"
        )
    inputs = x.shape[-1]
    if values.ndim != 2 or values.shape[1] != inputs or values.dtype != FLOAT8:
        raise ValueError(
            f"{_NAME}: for {inputs} inputs, values is float8_e4m3fn [N, {inputs}], "
            f"not {said(values)}; Weights(format=Float8()) makes such values"
        )
    check_outputs(_NAME, values.shape[0], scales, bias)
    if x_scale is not None:
        check_row_scale(_NAME, x, x_scale)
    elif not is_float(x):
        raise ValueError(f"{_NAME}: x_scale is missing; only float x gets one")
