"""The definition of `float8_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.kernels._float8 import float8_rows, result_dtype


def reference(
    x: jax.Array,
    x_scale: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """Sums in float32, scaled there: [M, K] -> [M, N]."""
    q, scale = float8_rows(x, x_scale)
    sums = jnp.matmul(
        q.astype(jnp.float32),
        values.astype(jnp.float32).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    product = sums * scale * scales.T
    if bias is not None:
        product = product + bias[None]
    return product.astype(result_dtype(x))
