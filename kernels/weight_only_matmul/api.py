"""`weight_only_matmul`: float activations, integer weights."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Implementation, resolve
from jcompress.kernels.weight_only_matmul.reference import dense_weight, reference
from jcompress.kernels.weight_only_matmul.xla import xla
from jcompress.tensors.packing import packed_size

_FORMS = {Implementation.REFERENCE: reference, Implementation.XLA: xla}


def weight_only_matmul(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    bits: int,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Multiply float activations by a weight stored as small integers.

    `y[..., n] = sum_k x[..., k] * (values[n, k] - zeros[n, g]) * scales[n, g]` with
    `g = k // (K / G)`, accumulated in float32 (int32 within a form) and cast to the
    dtype of `x`. The arguments are the arrays of a `QTensor` of one matrix; use
    `jax.vmap` for stacks. Differentiable in reverse with respect to `x` only: the
    stored arrays count as constants.

    Args:
        x: floats [..., K].
        values: int8 [N, K]; for `bits <= 4`, uint8 [N, ceil(K / 2)] of nibbles.
        scales: float32 [N or 1, G], where G divides K.
        zeros: int8 of the shape of `scales`, or None.
        bits: bits of an integer, 2 to 8.
        implementation: None for the fastest. Against float weights `XLA` was measured
            faster on a CPU for one or two rows, on a par for eight with one scale a
            channel, and slower beyond (benchmarks/README.md).

    Returns:
        [..., N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit.
        TypeError: `implementation` is of another kind.
    """
    form = resolve("weight_only_matmul", implementation, _FORMS)
    _check(x, values, scales, zeros, bits)
    outputs = values.shape[0]
    scales = jnp.broadcast_to(scales, (outputs, scales.shape[1]))
    if zeros is not None:
        zeros = jnp.broadcast_to(zeros, scales.shape)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    product = _product(form, bits, x.shape[-1], rows, values, scales, zeros)
    return product.reshape(*x.shape[:-1], outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(
    form: Callable[..., jax.Array],
    bits: int,
    inputs: int,
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
) -> jax.Array:
    return form(x, values, scales, zeros, bits=bits).astype(x.dtype)


def _forward(
    form: Callable[..., jax.Array], bits: int, inputs: int, x: jax.Array, *weight: Any
) -> tuple[jax.Array, Any]:
    return _product(form, bits, inputs, x, *weight), weight


def _backward(
    form: Callable[..., jax.Array],
    bits: int,
    inputs: int,
    weight: Any,
    cotangent: jax.Array,
) -> tuple[jax.Array, None, None, None]:
    dense = dense_weight(*weight, bits=bits, inputs=inputs)
    gradient = jnp.matmul(cotangent.astype(jnp.float32), dense)
    return gradient.astype(cotangent.dtype), None, None, None


_product.defvjp(_forward, _backward)


def _check(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bits: int,
) -> None:
    name = "weight_only_matmul"
    if not 2 <= bits <= 8:
        raise ValueError(f"{name}: bits is from 2 to 8, not {bits!r}")
    if x.ndim < 1 or x.shape[-1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: x is floats [..., K], not {_said(x)}")
    inputs = x.shape[-1]
    stored = packed_size(inputs) if bits <= 4 else inputs
    dtype = jnp.dtype(jnp.uint8 if bits <= 4 else jnp.int8)
    fits = values.ndim == 2 and values.shape[1] == stored and values.dtype == dtype
    if not fits:
        raise ValueError(
            f"{name}: for {inputs} inputs and {bits} bits, values is {dtype} "
            f"[N, {stored}], not {_said(values)}"
        )
    outputs = values.shape[0]
    rows = scales.ndim == 2 and scales.shape[0] in (1, outputs)
    groups = rows and scales.shape[1] > 0 and inputs % scales.shape[1] == 0
    if not groups or scales.dtype != jnp.float32:
        raise ValueError(
            f"{name}: scales is float32 [{outputs} or 1, G] with G a divisor of "
            f"{inputs}, not {_said(scales)}"
        )
    if zeros is not None and (zeros.shape != scales.shape or zeros.dtype != jnp.int8):
        raise ValueError(
            f"{name}: zeros is int8 of the shape of scales {list(scales.shape)}, not "
            f"{_said(zeros)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
