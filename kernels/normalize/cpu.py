"""`normalize` by the compiled kernel for CPUs: rows are read from memory once."""

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels import _native


def cpu(
    x: jax.Array,
    residual: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: float,
    centered: bool,
    keep_sum: bool,
) -> tuple[jax.Array, ...]:
    """As the reference; float32."""
    none = jnp.zeros((0,), jnp.float32)
    kept = x.shape if keep_sum and residual is not None else (0,)
    y, total = jax.ffi.ffi_call(
        "jcompress_normalize",
        (
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct(kept, x.dtype),
        ),
    )(
        x,
        none if residual is None else residual,
        none if scale is None else scale,
        none if bias is None else bias,
        epsilon=np.float32(epsilon),
        centered=bool(centered),
        layout=np.int64(_native.LAYOUT),
    )
    if not keep_sum:
        return (y,)
    return y, x if residual is None else total


def refuses(*arrays: jax.Array | None) -> str:
    """Why these arrays cannot be normalised here; empty if they can."""
    if any(a is not None and a.dtype != jnp.float32 for a in arrays):
        return "takes float32 only"
    return _native.missing()
