"""Weights of a block as they are best, given the errors made before it."""

import jax
import jax.numpy as jnp

from jcompress.rounding.in_turn import Block
from jcompress.rounding.solving import solve_each


def block_inverses(factor: jax.Array, size: int) -> jax.Array:
    """The inverses of the blocks `I + F` on the diagonal: [K, K] -> [K, size].

    Row i is the one that belongs to input i in the inverse of its block.
    """
    inputs = len(factor)
    blocks = factor.reshape(inputs // size, size, inputs // size, size)
    own = jnp.diagonal(blocks, axis1=0, axis2=2)  # [size, size, K / size]
    own = jnp.moveaxis(own, -1, 0)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=factor.dtype), own.shape)
    inverses = solve_each(own + identity, identity)
    return inverses.reshape(inputs, size)


def current(block: Block, inverse: jax.Array) -> jax.Array:
    """The weights [u, N] that make up best for the errors before the block.

    What `wanted` has is the best weight of each input, the others of the block being as
    they were given. If all of them move, their errors e solve `(I + F) e = w - wanted`.

    Args:
        block: of u inputs.
        inverse: that of `I + F`, [u, u].
    """
    gap = block.w - block.wanted
    return block.w - jnp.matmul(inverse, gap, precision="highest")
