"""The definition of `codebook_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.tensors.codebook import look_up


def dense_weight(indices: jax.Array, codebook: jax.Array, *, inputs: int) -> jax.Array:
    """The float32 [N, K] matrix that the stored arrays describe."""
    return look_up(indices, codebook, inputs=inputs)


def reference(x: jax.Array, indices: jax.Array, codebook: jax.Array) -> jax.Array:
    """`x @ dense_weight.T` in float32: [M, K] -> [M, N] in the dtype of `x`."""
    weight = dense_weight(indices, codebook, inputs=x.shape[-1])
    product = jnp.matmul(
        x.astype(jnp.float32), weight.T, precision=jax.lax.Precision.HIGHEST
    )
    return product.astype(x.dtype)
