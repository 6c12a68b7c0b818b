"""`int8_matmul` by the compiled kernels for CPUs."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels import _native, _tiles
from jcompress.kernels._epilogue import After


def cpu(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
    *,
    x_bits: int,
    fixed: bool,
    after: After | None = None,
) -> jax.Array:
    """[S, M, K] x int8 [S, N, K] -> [S, M, N]; the sums are exact."""
    return _native.matmul(
        x,
        values,
        scales,
        zeros,
        x_scale=x_scale,
        x_zero=x_zero,
        bias=bias,
        bits=8,
        x_bits=x_bits,
        digits=1,
        after=after,
        fixed=fixed,
    )


def refuses(x: Any, *arrays: Any, x_bits: int) -> str:
    """Why these arguments cannot be multiplied here; empty if they can."""
    wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 4
    return f"takes no {x.dtype} activations" if wide else _native.missing()


def prefers(x: Any, *arrays: Any, x_bits: int) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    key = _tiles.weight_key(8, "int8", 1)
    fast = _native.instructions() != "generic"
    return fast and _tiles.suits("int8_matmul", "cpu", key, x.shape[-2])
