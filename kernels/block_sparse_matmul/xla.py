"""The fastest forms of `block_sparse_matmul` that XLA compiles.

None makes the matrix dense. For few rows, `at_once`: the inputs of every block are
gathered, all blocks are multiplied as one batch, and the products of a row of blocks
are added up. The gathered inputs and the products grow with the rows; so for many,
`one_by_one` goes through the blocks in a loop and adds each product in place. A loop
suits a CPU, whose products are calls of a library anyhow; elsewhere all go at once.

Measured on two cores with AVX-512, 4096 x 4096, a tenth of the blocks stored, rotating
weights, time of the dense float32 product over that of these forms for 1, 16 and 128
rows, medians: blocks of 32 x 32 3.6, 3.0, 2.2; 64 x 64 4.9, 10, 5.8; 128 x 128 3.3,
6.5, 4.2; 8 x 8 1.9, 2.4, 1.4. To write the matrix first took 3 to 25 times as long as
the dense product. Other processes ran beside, so they hold within a factor of about
1.5.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels._partition import vary, varying
from jcompress.kernels._rows import at_most
from jcompress.tensors.block_sparse import block_rows

AT_ONCE_ROWS = 32
"""The most rows with which a CPU multiplies all blocks at once."""
SMALL = 256
"""Blocks of fewer weights than this are the right operand of the batched product."""


def xla(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> jax.Array:
    """[M, K] -> [M, outputs] in the dtype of `x`."""
    across = outputs // blocks.shape[1]
    product = _multiply(x, blocks, columns, _rows(blocks, starts), across)
    if scales is not None:
        product = product * scales
    return product.T.astype(x.dtype)


def transposed(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    inputs: int,
) -> jax.Array:
    """The product with the transposed matrix: [M, N] -> [M, inputs]."""
    dtype = x.dtype
    if scales is not None:
        x = x.astype(jnp.float32) * scales.T
    turned = jnp.transpose(blocks, (0, 2, 1))
    across = inputs // blocks.shape[2]
    product = _multiply(x, turned, _rows(blocks, starts), columns, across)
    return product.T.astype(dtype)


def _rows(blocks: jax.Array, starts: jax.Array) -> jax.Array:
    # Padding, beyond the last row of blocks, adds its zeros to the last.
    last = np.int32(starts.shape[0] - 2)
    return jnp.minimum(block_rows(starts, blocks.shape[0]), last)


def _multiply(
    x: jax.Array, blocks: jax.Array, take: jax.Array, put: jax.Array, across: int
) -> jax.Array:
    """`sum_b blocks[b] @ x[part take[b]]` into part put[b]: float32 [outputs, M]."""
    narrow = x.dtype == blocks.dtype or blocks.dtype == jnp.int8
    given = (x if narrow else x.astype(jnp.float32), blocks, take, put)
    start = jnp.zeros((across, blocks.shape[1], x.shape[0]), jnp.float32)
    total: jax.Array
    if at_most(x.shape[0], AT_ONCE_ROWS, unknown=False):
        total = at_once(*given, start)
    else:
        total = jax.lax.platform_dependent(
            *given, start, cpu=one_by_one, default=at_once
        )
    return total.reshape(-1, x.shape[0])


def at_once(
    x: jax.Array, blocks: jax.Array, take: jax.Array, put: jax.Array, start: jax.Array
) -> jax.Array:
    """All blocks in one batched product, added to `start` [parts, outputs, M]."""
    _, high, wide = blocks.shape
    weight = blocks.astype(x.dtype)
    parts = jnp.transpose(x.reshape(x.shape[0], -1, wide), (1, 0, 2))[take]
    if high * wide < SMALL:
        contract = (((2,), (2,)), ((0,), (0,)))
        products = jax.lax.dot_general(
            parts, weight, contract, preferred_element_type=jnp.float32
        )
        products = jnp.transpose(products, (0, 2, 1))
    else:
        turned = jnp.transpose(parts, (0, 2, 1))
        contract = (((2,), (1,)), ((0,), (0,)))
        products = jax.lax.dot_general(
            weight, turned, contract, preferred_element_type=jnp.float32
        )
    return start.at[put].add(products)


def one_by_one(
    x: jax.Array, blocks: jax.Array, take: jax.Array, put: jax.Array, start: jax.Array
) -> jax.Array:
    """One product a block, added to `start` [parts, outputs, M] in place."""
    wide = blocks.shape[2]
    parts = jnp.transpose(x.reshape(x.shape[0], -1, wide), (1, 2, 0))

    def step(number: jax.Array, total: jax.Array) -> jax.Array:
        weight = jax.lax.dynamic_index_in_dim(blocks, number, keepdims=False)
        part = jax.lax.dynamic_index_in_dim(parts, take[number], keepdims=False)
        product = jnp.matmul(
            weight.astype(x.dtype), part, preferred_element_type=jnp.float32
        )
        row = put[number]
        so_far = jax.lax.dynamic_index_in_dim(total, row, keepdims=False)
        added: jax.Array = jax.lax.dynamic_update_index_in_dim(
            total, so_far + product, row, 0
        )
        return added

    # Inside a `shard_map` the sums differ wherever anything that goes into them does.
    start = vary(start, varying((x, blocks, take, put)))
    total: jax.Array = jax.lax.fori_loop(0, blocks.shape[0], step, start)
    return total
