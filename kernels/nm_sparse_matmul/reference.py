"""The definition of `nm_sparse_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.tensors.nm_sparse import place_kept, stored_inputs


def dense_weight(
    values: jax.Array, mask: jax.Array, scales: jax.Array | None, *, inputs: int
) -> jax.Array:
    """The float32 [N, K] matrix that the stored arrays describe."""
    dense = place_kept(values, mask, inputs=inputs).astype(jnp.float32)
    return dense if scales is None else dense * scales


def reference(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scales: jax.Array | None,
    *,
    n: int,
    m: int,
) -> jax.Array:
    """`x @ dense_weight.T` in float32: [M, K] -> [M, N] in the dtype of `x`."""
    assert values.shape[-1] == stored_inputs(x.shape[-1], n, m)
    weight = dense_weight(values, mask, scales, inputs=x.shape[-1])
    product = jnp.matmul(
        x.astype(jnp.float32), weight.T, precision=jax.lax.Precision.HIGHEST
    )
    return product.astype(x.dtype)
