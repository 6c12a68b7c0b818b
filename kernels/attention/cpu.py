"""`attention` by the compiled kernels for CPUs, in the layout that the operands have.

Scores are never all in memory: blocks of rows meet blocks of keys, with a running
maximum and sum (Dao et al., arXiv 2205.14135).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels import _native
from jcompress.kernels.attention.axes import Axes


def cpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    axes: Axes,
    scale: float,
    fill: float,
) -> jax.Array:
    """Float32 operands. Keys that a mask excludes may or may not add 0 times values."""
    arrays = (q, k, v, bias, mask)
    out = jax.ShapeDtypeStruct(axes.shape(arrays), q.dtype)
    result: jax.Array = jax.ffi.ffi_call("jcompress_attention", out)(
        q,
        k,
        v,
        jnp.zeros((0,), jnp.float32) if bias is None else bias,
        jnp.zeros((0,), jnp.bool_) if mask is None else mask,
        axes=axes.notation(arrays),
        has_bias=bias is not None,
        has_mask=mask is not None,
        scale=np.float32(scale),
        fill=np.float32(fill),
        layout=np.int64(_native.LAYOUT),
    )
    return result


def refuses(
    q: Any, k: Any, v: Any, bias: Any, mask: Any, *, axes: Axes, scale: Any, fill: Any
) -> str:
    """Why these arguments cannot be computed here; empty if they can."""
    for name, array in (("q", q), ("k", k), ("v", v), ("bias", bias)):
        if array is not None and array.dtype != jnp.float32:
            return f"takes float32 only, and {name} is {array.dtype}"
    return _native.missing()


def prefers(
    q: Any, k: Any, v: Any, bias: Any, mask: Any, *, axes: Axes, scale: Any, fill: Any
) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    return _native.instructions() != "generic"
