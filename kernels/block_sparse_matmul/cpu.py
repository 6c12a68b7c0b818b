"""`block_sparse_matmul` by the compiled kernels for CPUs.

A few rows of activations meet vectors along the inputs of a block. For more rows, and
for blocks that fill no vector, the activations are transposed and a vector runs along
the rows, so that blocks of any shape cost the same a weight. Blocks are read as they
are stored; bfloat16 and int8 become floats on the way.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels import _native


def cpu(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> jax.Array:
    """[S, M, K] x the stored [S, N, K] -> [S, M, N].

    At run time it fails if `starts` does not rise within the number of blocks, or a
    block that is used is in no column of blocks: nothing is read out of bounds.
    """
    if scales is None:
        scales = jnp.zeros((0,), jnp.float32)
    out = jax.ShapeDtypeStruct((*x.shape[:2], outputs), x.dtype)
    product: jax.Array = jax.ffi.ffi_call("jcompress_block_sparse", out)(
        x, blocks, columns, starts, scales, layout=np.int64(_native.LAYOUT)
    )
    return product


def refuses(
    x: Any, blocks: Any, columns: Any, starts: Any, scales: Any, *, outputs: int
) -> str:
    """Why these arguments cannot be multiplied here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    return _native.missing()


def prefers(
    x: Any, blocks: Any, columns: Any, starts: Any, scales: Any, *, outputs: int
) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    return _native.instructions() != "generic"
