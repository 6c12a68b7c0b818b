"""`codebook_matmul` by the compiled kernels for CPUs.

Values are looked up in registers: sixteen by a permutation of floats, more by one of
bytes, where the processor has it, or by gathers. For many rows they go through a small
panel of floats.
"""

from typing import Any

import jax
import numpy as np

from jcompress.kernels import _native


def cpu(x: jax.Array, indices: jax.Array, codebook: jax.Array) -> jax.Array:
    """[S, M, K] x the stored [S, N, K] -> [S, M, N].

    An index beyond the codebook stands for its last value.
    """
    out = jax.ShapeDtypeStruct((*x.shape[:2], indices.shape[1]), x.dtype)
    product: jax.Array = jax.ffi.ffi_call("jcompress_codebook", out)(
        x, indices, codebook, layout=np.int64(_native.LAYOUT)
    )
    return product


def refuses(x: Any, indices: Any, codebook: Any) -> str:
    """Why these arguments cannot be multiplied here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    return _native.missing()


def prefers(x: Any, indices: Any, codebook: Any) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    return _native.instructions() != "generic"
