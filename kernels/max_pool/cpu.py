"""`max_pool` by the compiled kernel for CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels import _native
from jcompress.kernels.quantized_conv.window import Window


def cpu(x: jax.Array, *, window: Window) -> jax.Array:
    """[S, B, X] -> [S, B, Y]."""
    stacks, images, _ = x.shape
    low, high = zip(*window.padding, strict=True)
    y = jax.ShapeDtypeStruct((stacks * images, *window.out, window.channels), x.dtype)
    pooled: jax.Array = jax.ffi.ffi_call("jcompress_max_pool", y)(
        x.reshape(stacks * images, *window.sizes, window.channels),
        window=np.asarray(window.kernel, np.int64),
        strides=np.asarray(window.strides, np.int64),
        low=np.asarray(low, np.int64),
        high=np.asarray(high, np.int64),
        layout=np.int64(_native.LAYOUT),
    )
    return pooled.reshape(stacks, images, window.positions * window.channels)


def refuses(x: Any, *, window: Window) -> str:
    """Why these images cannot be pooled here; empty if they can."""
    if x.dtype not in (jnp.float32, jnp.int8):
        return f"takes float32 and int8, not {x.dtype}"
    return _native.missing()
