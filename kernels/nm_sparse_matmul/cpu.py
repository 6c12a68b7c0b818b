"""`nm_sparse_matmul` by the compiled kernels for CPUs.

The kept weights are put in their places in registers, under the bits of the mask, and
multiplied at once; for many rows they are placed in a small panel first. What is read
from memory are the kept weights and the mask.
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
    scales: jax.Array | None,
    *,
    n: int,
    m: int,
) -> jax.Array:
    """[S, M, K] x the stored [S, N, K] -> [S, M, N].

    At run time it fails if a row of `mask` keeps more than `values` has.
    """
    if scales is None:
        scales = jnp.zeros((0,), jnp.float32)
    out = jax.ShapeDtypeStruct((*x.shape[:2], values.shape[1]), x.dtype)
    product: jax.Array = jax.ffi.ffi_call("jcompress_nm_sparse", out)(
        x, values, mask, scales, layout=np.int64(_native.LAYOUT)
    )
    return product


def refuses(x: Any, values: Any, mask: Any, scales: Any, *, n: int, m: int) -> str:
    """Why these arguments cannot be multiplied here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    return _native.missing()


def prefers(x: Any, values: Any, mask: Any, scales: Any, *, n: int, m: int) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    return _native.instructions() != "generic"
