"""`block_sparse_matmul` on NVIDIA GPUs.

By `wgmma` on compute capability 9.0 (H100, H200), by `mma` on others from 8.0 (A100)
on. As the products with integers, the transpose: stored blocks fill the rows of the
instruction, and each takes its inputs from the activations where `columns` says. A
block of threads goes through the stored blocks of one row; what is not stored is
neither read nor multiplied. XLA's form gathers the inputs of every block into memory
and writes every product.

`benchmarks/gpu_compiled.py` shows both programs as compiled. None has been timed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._gpu import (
    NO_INSTRUCTION,
    TALLEST,
    generation,
    instruction,
    round_up,
)


def gpu(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
    how: str = "",
    interpret: Any = None,
) -> jax.Array:
    """[M, K] -> [M, outputs] in the dtype of `x`; `reference` defines it.

    Args:
        x, blocks, columns, starts, scales, outputs: see `reference`.
        how: the instruction; "" takes what suits the device.
        interpret: parameters of Pallas' interpreter; None compiles.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, blocks, columns, starts, scales, outputs=outputs)
    if reason:
        raise ValueError(f"block_sparse_matmul on GPUs: {reason}")
    if (how or instruction()) == "wgmma":
        from jcompress.kernels._gpu_blocks import product_of_blocks

        tallest = TALLEST
    else:
        from jcompress.kernels._gpu_blocks_mma import product_of_blocks

        # One warpgroup's registers hold the sums and both operands.
        tallest = TALLEST if max(blocks.shape[1:]) == 64 else TALLEST // 2
    count = x.shape[0]
    pieces = -(-count // tallest)
    tall = round_up(-(-count // pieces), 8)
    x = jnp.pad(x, ((0, tall * pieces - count), (0, 0)))
    product = product_of_blocks(
        x, blocks, columns, starts, scales,
        tall=tall, outputs=outputs, interpret=interpret,
    )  # fmt: skip
    return product[:count]


def refuses(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> str:
    """Why the kernel cannot compute this; "" if it can."""
    _, high, wide = blocks.shape
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        return f"x is bfloat16 or float16, which the products take, not {x.dtype}"
    if blocks.dtype not in (x.dtype, jnp.int8):
        return f"blocks are {x.dtype} as x, or int8, not {blocks.dtype}"
    if not instruction():
        return NO_INSTRUCTION
    if x.shape[0] == 0:
        return "there is nothing to compute"
    if high not in (64, 128) or wide not in (64, 128):
        return f"blocks are of 64 or 128 by 64 or 128, not {high} by {wide}"
    return ""


def prefers(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> bool:
    """Whether the kernel is the better choice: XLA writes what it gathers to memory.

    Only where it is known which instructions the device has: see `generation`.
    """
    return generation() is not None and bool(instruction())
