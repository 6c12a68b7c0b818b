"""The definition of `unstructured_sparse_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.tensors.unstructured_sparse import place_values, scaled


def dense_weight(
    values: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    inputs: int,
) -> jax.Array:
    """The float32 [N, K] matrix that the stored arrays describe."""
    dense = place_values(values, mask, starts, inputs=inputs).astype(jnp.float32)
    return dense if scales is None else scaled(dense, scales)


def reference(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
) -> jax.Array:
    """`x @ dense_weight.T` in float32: [M, K] -> [M, N] in the dtype of `x`."""
    weight = dense_weight(values, mask, starts, scales, inputs=x.shape[-1])
    product = jnp.matmul(
        x.astype(jnp.float32), weight.T, precision=jax.lax.Precision.HIGHEST
    )
    return product.astype(x.dtype)
