"""The definition of `block_sparse_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.tensors.block_sparse import place_blocks


def dense_weight(
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    inputs: int,
) -> jax.Array:
    """The float32 [N, K] matrix that the stored arrays describe."""
    dense = place_blocks(blocks.astype(jnp.float32), columns, starts, inputs=inputs)
    return dense if scales is None else dense * scales


def reference(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> jax.Array:
    """`x @ dense_weight.T` in float32: [M, K] -> [M, outputs] in the dtype of `x`."""
    weight = dense_weight(blocks, columns, starts, scales, inputs=x.shape[-1])
    assert weight.shape[0] == outputs
    product = jnp.matmul(
        x.astype(jnp.float32), weight.T, precision=jax.lax.Precision.HIGHEST
    )
    return product.astype(x.dtype)
