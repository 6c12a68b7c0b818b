"""The definition of `vector_codebook_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.tensors.vector_codebook import decode


def dense_weight(
    codes: jax.Array, tables: jax.Array, scales: jax.Array, *, inputs: int
) -> jax.Array:
    """The float32 [N, K] matrix that the stored arrays describe."""
    return decode(codes, tables, inputs=inputs) * scales


def reference(
    x: jax.Array, codes: jax.Array, tables: jax.Array, scales: jax.Array
) -> jax.Array:
    """`x @ dense_weight.T` in float32: [M, K] -> [M, N] in the dtype of `x`."""
    weight = dense_weight(codes, tables, scales, inputs=x.shape[-1])
    product = jnp.matmul(
        x.astype(jnp.float32), weight.T, precision=jax.lax.Precision.HIGHEST
    )
    return product.astype(x.dtype)
