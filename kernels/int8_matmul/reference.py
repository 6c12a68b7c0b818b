"""The definition of `int8_matmul`."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._integers import LONGEST, quantize_rows, result_dtype


def reference(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
    *,
    x_bits: int,
    out_dtype: Any = None,
) -> jax.Array:
    """Exact int32 sums, scaled in float32: [M, K] -> [M, N].

    The result has the dtype of float `x`, or float32, unless `out_dtype` says another.
    """
    q, scale, zero = quantize_rows(x, x_scale, x_zero, x_bits)
    left = q.astype(jnp.int32)
    if zero is not None:
        left = left - zero.astype(jnp.int32)
    right = values.astype(jnp.int32)
    if zeros is not None:
        right = right - zeros.astype(jnp.int32)
    total = jnp.zeros((x.shape[0], values.shape[0]), jnp.float32)
    for start in range(0, x.shape[1], LONGEST):
        part = slice(start, start + LONGEST)
        total = total + jnp.matmul(left[:, part], right[:, part].T).astype(jnp.float32)
    product = total * scale * scales.T
    if bias is not None:
        product = product + bias[None]
    return product.astype(out_dtype or result_dtype(x))
