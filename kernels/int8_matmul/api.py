"""`int8_matmul`: integer activations, integer weights, exact sums."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Implementation, resolve
from jcompress.kernels.int8_matmul.reference import reference
from jcompress.kernels.int8_matmul.xla import xla
from jcompress.quantization.arithmetic import (
    dequantize_matrix,
    quantize_values,
    range_of,
    scale_and_zero,
    unclipped,
)

_FORMS = {Implementation.REFERENCE: reference, Implementation.XLA: xla}
_NAME = "int8_matmul"


def int8_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    x_scale: jax.Array | None = None,
    x_zero: jax.Array | None = None,
    x_bits: int = 8,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply in integers: quantized activations by a quantized weight.

    `y[..., n] = x_scale scales[n] sum_k (q[..., k] - x_zero) (values[n, k] - zeros[n])`
    with the sum exact in int32 (beyond 32768 inputs, a float32 sum of such sums). Float
    `x` is quantized on the way, `q = quantize_values(x, x_scale, x_zero)`, symmetric if
    `x_zero` is None; int8 `x` is q. Use `jax.vmap` for stacks. Differentiable in
    reverse with respect to float `x` only, with the straight-through gradient of
    `fake_quantize`: the stored arrays, `x_scale` and `x_zero` count as constants.

    Args:
        x: floats or int8 [..., K].
        values: int8 [N, K].
        scales: float32 [N or 1, 1].
        zeros: int8 of the shape of `scales`, or None.
        x_scale: float32, a scalar or [..., 1]. None, for float `x` only, takes the
            symmetric range of each row.
        x_zero: integers in float32 of the shape of `x_scale`, or None.
        x_bits: bits of the integers that float `x` becomes, 2 to 8.
        implementation: None for the fastest.

    Returns:
        [..., N] in the dtype of float `x`; float32 for int8 `x`.

    Raises:
        ValueError: shapes or dtypes do not fit, or `x_scale` is missing.
        TypeError: `implementation` is of another kind.
    """
    form = resolve(_NAME, implementation, _FORMS)
    _check_weight(x, values, scales, zeros)
    if x_scale is None:
        if x.dtype == jnp.int8 or x_zero is not None:
            raise ValueError(
                f"{_NAME}: x_scale is missing; only float x without x_zero gets one"
            )
        span = range_of(jax.lax.stop_gradient(x), -1)
        x_scale, _ = scale_and_zero(span, bits=x_bits, symmetric=True)
    _check_input(x, x_scale, x_zero, x_bits)
    count, outputs = math.prod(x.shape[:-1]), values.shape[0]
    wide = jnp.broadcast_to(scales, (outputs, 1))
    weight = (
        values,
        wide,
        None if zeros is None else jnp.broadcast_to(zeros, wide.shape),
    )
    rows = x.reshape(count, x.shape[-1])
    scale = _by_row(x_scale, x.shape[:-1])
    zero = None if x_zero is None else _by_row(x_zero, x.shape[:-1])
    if x.dtype == jnp.int8:
        product = form(rows, scale, zero, *weight)
    else:
        product = _quantized(form, x_bits, rows, scale, zero, *weight)
    return product.reshape(*x.shape[:-1], outputs)


def _by_row(number: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    if number.ndim == 0:
        return jnp.broadcast_to(number, (math.prod(batch), 1))
    return jnp.broadcast_to(number, (*batch, 1)).reshape(math.prod(batch), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _quantized(
    form: Callable[..., jax.Array],
    bits: int,
    x: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    *weight: Any,
) -> jax.Array:
    q = quantize_values(x, scale, zero, bits=bits, symmetric=zero is None)
    return form(q.astype(jnp.int8), scale, zero, *weight).astype(x.dtype)


def _forward(
    form: Callable[..., jax.Array], bits: int, *args: Any
) -> tuple[jax.Array, Any]:
    return _quantized(form, bits, *args), args


def _backward(
    form: Callable[..., jax.Array], bits: int, args: Any, cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    x, scale, zero, values, scales, zeros = args
    dense = dequantize_matrix(values, scales, zeros, jnp.float32)
    gradient = jnp.matmul(cotangent.astype(jnp.float32), dense).astype(x.dtype)
    kept = unclipped(x, scale, zero, bits=bits, symmetric=zero is None)
    passed = jnp.where(kept, gradient, jnp.zeros_like(gradient))
    return passed, None, None, None, None, None


_quantized.defvjp(_forward, _backward)


def _check_weight(
    x: jax.Array, values: jax.Array, scales: jax.Array, zeros: jax.Array | None
) -> None:
    kind = jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == jnp.int8
    if x.ndim < 1 or x.shape[-1] < 1 or not kind:
        raise ValueError(f"{_NAME}: x is floats or int8 [..., K], not {_said(x)}")
    inputs = x.shape[-1]
    fits = values.ndim == 2 and values.shape[1] == inputs and values.dtype == jnp.int8
    if not fits:
        raise ValueError(
            f"{_NAME}: for {inputs} inputs, values is int8 [N, {inputs}], not "
            f"{_said(values)}; unpack 4-bit values first (QTensor.integers)"
        )
    outputs = values.shape[0]
    if scales.shape not in ((1, 1), (outputs, 1)) or scales.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: scales is float32 [{outputs} or 1, 1], not {_said(scales)}; "
            "weights with several groups need weight_only_matmul"
        )
    if zeros is not None and (zeros.shape != scales.shape or zeros.dtype != jnp.int8):
        raise ValueError(
            f"{_NAME}: zeros is int8 of the shape of scales {list(scales.shape)}, not "
            f"{_said(zeros)}"
        )


def _check_input(
    x: jax.Array, scale: jax.Array, zero: jax.Array | None, bits: int
) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"{_NAME}: x_bits is from 2 to 8, not {bits!r}")
    wanted = (*x.shape[:-1], 1)
    broadcasts = scale.ndim == 0 or (
        scale.ndim == len(wanted)
        and all(a in (1, b) for a, b in zip(scale.shape, wanted, strict=True))
    )
    if not broadcasts or scale.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: x_scale is a float32 scalar or {list(wanted)}, not "
            f"{_said(scale)}"
        )
    if zero is not None and (zero.shape != scale.shape or zero.dtype != jnp.float32):
        raise ValueError(
            f"{_NAME}: x_zero is float32 of the shape of x_scale "
            f"{list(scale.shape)}, not {_said(zero)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
