"""`weight_only_matmul` by the compiled kernels for CPUs.

The stored integers are multiplied by integers. Float activations become fixed-point
numbers of two or three int8 digits (`split_digits` in `_integers.py`), each of which is
a row of its own: as exact as a float32 product, and on a processor with instructions
for sums of products of bytes faster than one. Where they are not, as with AVX2, the
weight becomes floats for many rows, block by block; the library chooses by the number
of rows.
"""

from typing import Any

import jax

from jcompress.formats.packing import FLOAT8
from jcompress.kernels import _native, _tiles
from jcompress.kernels._epilogue import After


def cpu(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    fixed: bool,
    after: After | None = None,
) -> jax.Array:
    """[S, M, K] x the stored [S, N, K] -> [S, M, N]."""
    exact = 2 if x.dtype.itemsize < 4 else 3
    return _native.matmul(
        x,
        values,
        scales,
        zeros,
        bits=bits if bits <= 4 else 8,
        x_bits=8 if x_bits is None else x_bits,
        digits=exact if x_bits is None else 1,
        after=after,
        fixed=fixed,
    )


def refuses(
    x: Any, values: Any, scales: Any, zeros: Any, *, bits: int, x_bits: int | None
) -> str:
    """Why these arguments cannot be multiplied here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    if values.dtype == FLOAT8:
        return "takes no float8 weights"
    missing = _native.missing()
    if missing:
        return missing
    inputs, groups = x.shape[-1], scales.shape[-1]
    if not _native.takes_groups(bits if bits <= 4 else 8, inputs, groups):
        return f"cannot scale groups of {inputs // groups} inputs"
    return ""


def prefers(
    x: Any, values: Any, scales: Any, zeros: Any, *, bits: int, x_bits: int | None
) -> bool:
    """Whether this is the better choice than what XLA compiles."""
    kind = x.dtype.name if x_bits is None else "int8"
    key = _tiles.weight_key(bits, kind, scales.shape[-1])
    fast = _native.instructions() != "generic"
    return fast and _tiles.suits("weight_only_matmul", "cpu", key, x.shape[-2])
