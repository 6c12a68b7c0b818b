"""`unstructured_sparse_matmul` by the compiled kernels for CPUs.

A few rows of activations meet the weights as these are put in their places in
registers, under the bits of the mask. For more, the activations are transposed, so that
a vector has one input of many rows, and each kept weight meets such a vector once.
Either way what is read from memory are the kept weights and a bit for each place.
Integers of 4 bits, and those with scales of groups, become floats row by row first:
they save memory, and take longer than 8 bits with one scale an output.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels import _native


def cpu(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
) -> jax.Array:
    """[S, M, K] x the stored [S, N, K] -> [S, M, N].

    At run time it fails if `starts` does not rise within the number of values, or a row
    of `mask` keeps more than there are: nothing is read out of bounds.
    """
    if scales is None:
        scales = jnp.zeros((0,), jnp.float32)
    out = jax.ShapeDtypeStruct((*x.shape[:2], mask.shape[1]), x.dtype)
    product: jax.Array = jax.ffi.ffi_call("jcompress_unstructured_sparse", out)(
        x, values, mask, starts, scales, layout=np.int64(_native.LAYOUT)
    )
    return product


def refuses(x: Any, values: Any, mask: Any, starts: Any, scales: Any) -> str:
    """Why these arguments cannot be multiplied here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    return _native.missing()


def prefers(x: Any, values: Any, mask: Any, starts: Any, scales: Any) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    return _native.instructions() != "generic"
