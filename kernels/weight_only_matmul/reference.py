"""The definition of `weight_only_matmul`."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.formats.packing import unpack_bits
from jcompress.kernels._integers import quantize_rows
from jcompress.tensors.weight_matrix import dequantize_matrix


def dense_weight(
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    inputs: int,
) -> jax.Array:
    """The float32 [N, K] matrix that the stored arrays describe."""
    integers = unpack_bits(values, inputs, bits)
    return dequantize_matrix(integers, scales, zeros, jnp.float32)


def reference(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    out_dtype: Any = None,
) -> jax.Array:
    """`x @ dense_weight.T` in float32: [M, K] -> [M, N].

    With `x_bits`, what the integers of each row of `x` stand for takes its place.
    The result has the dtype of `x` unless `out_dtype` says another.
    """
    weight = dense_weight(values, scales, zeros, bits=bits, inputs=x.shape[-1])
    rows = x.astype(jnp.float32)
    if x_bits is not None:
        q, scale, _ = quantize_rows(rows, None, None, x_bits)
        rows = q.astype(jnp.float32) * scale
    product = jnp.matmul(rows, weight.T, precision=jax.lax.Precision.HIGHEST)
    return product.astype(out_dtype or x.dtype)
