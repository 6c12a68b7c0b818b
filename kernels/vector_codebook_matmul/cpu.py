"""`vector_codebook_matmul` by the compiled kernels for CPUs.

Tables are laid out for aligned loads, entries filled up to 2, 4 or 8 floats, and an
entry is a load at its code. Up to four rows (eight with AVX-512) meet the weights as
they are decoded; for more a small panel is decoded once and multiplied from the first
cache.
"""

from typing import Any

import jax
import numpy as np

from jcompress.kernels import _native


def cpu(
    x: jax.Array, codes: jax.Array, tables: jax.Array, scales: jax.Array
) -> jax.Array:
    """[S, M, K] x the stored [S, N, K] -> [S, M, N]."""
    out = jax.ShapeDtypeStruct((*x.shape[:2], codes.shape[1]), x.dtype)
    product: jax.Array = jax.ffi.ffi_call("jcompress_vector_codebook", out)(
        x, codes, tables, scales, layout=np.int64(_native.LAYOUT)
    )
    return product


def refuses(x: Any, codes: Any, tables: Any, scales: Any) -> str:
    """Why these arguments cannot be multiplied here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    return _native.missing()


def prefers(x: Any, codes: Any, tables: Any, scales: Any) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    return _native.instructions() != "generic"
