"""`weight_only_matmul` on TPUs, where the weight is read as it is stored.

XLA writes an unpacked or rescaled weight to memory first, or spends most of its time on
the unpacking. Here bytes go from memory to the core as they are, a block of outputs at
a time, and become numbers there: in one way for few rows of activations, and in another
for many.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.formats.packing import FLOAT8
from jcompress.kernels import _tiles
from jcompress.kernels._tpu import (
    LANES,
    device_kind,
    multiplies_integers,
    per_byte,
    tuned,
)
from jcompress.kernels.weight_only_matmul.tpu_few_rows import few_rows
from jcompress.kernels.weight_only_matmul.tpu_many_rows import many_rows

FEW = 32
"""The most rows of activations that are written as digits."""
MOST_INPUTS = 8192
"""Of many rows, which stay in the core; of a few, eight times as many."""


def tpu(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    out_dtype: Any = None,
    integers: bool | None = None,
    block: int | None = None,
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`; `reference` says what the arguments are.

    Args:
        x, values, scales, zeros, bits, x_bits, out_dtype: see `reference`.
        integers: whether to multiply in int8, or in bfloat16; None: `_tpu` decides.
            Weights of float8 are multiplied in bfloat16.
        block: outputs in a block; None: by the tables (`few_block` and `many_block`),
            else by the shape.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, values, scales, zeros, bits=bits, x_bits=x_bits)
    if reason:
        raise ValueError(f"weight_only_matmul: the form for TPUs {reason}")
    width = 8 if bits > 4 else bits
    few = x.shape[0] <= FEW
    if block is None:
        name = "few_block" if few else "many_block"
        block = tuned(
            "weight_only_matmul", _key(x, values, scales, bits, x_bits), name, 0
        )
    if not few:
        return many_rows(
            x, values, scales, zeros, bits=width, block=block, out_dtype=out_dtype
        )
    if integers is None:
        integers = multiplies_integers()
    integers = integers and values.dtype != FLOAT8
    return few_rows(
        x,
        values,
        scales,
        zeros,
        bits=width,
        x_bits=x_bits,
        integers=integers,
        block=block,
        out_dtype=out_dtype,
    )


def refuses(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
) -> str:
    """Why the kernels cannot compute this; "" if they can."""
    rows, inputs = x.shape
    outputs, groups = scales.shape
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"needs float32 or bfloat16 activations, not {x.dtype}"
    if rows == 0 or outputs == 0:
        return "has no rows or no outputs to compute"
    if bits == 3:
        return "has no kernel for 3-bit integers, which do not fill bytes"
    span = LANES * per_byte(bits)
    if inputs % span:
        return f"needs inputs to be a multiple of {span}, not {inputs}"
    size = inputs // groups
    if (size % span and span % size) or size < 32:
        return f"has no kernel for groups of {size} inputs"
    if rows > FEW and (x_bits is not None or x.dtype != jnp.bfloat16):
        return f"multiplies more than {FEW} rows in bfloat16 only, which rounds them"
    if inputs > (MOST_INPUTS if rows > FEW else 8 * MOST_INPUTS):
        return f"cannot hold rows of {inputs} inputs in the core"
    return ""


def prefers(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
) -> bool:
    """Whether the kernels are the better choice (benchmarks/README.md)."""
    if values.dtype == FLOAT8 and scales.shape[1] == 1:
        # XLA's compiler converts as it multiplies: the same time without a kernel, but
        # for few rows on generation 7.
        others = device_kind() and multiplies_integers()
        return x.shape[0] <= FEW and not others
    key = _key(x, values, scales, bits, x_bits)
    return _tiles.suits("weight_only_matmul", "tpu", key, x.shape[0])


def _key(
    x: jax.Array, values: jax.Array, scales: jax.Array, bits: int, x_bits: int | None
) -> str:
    kind = x.dtype if x_bits is None else "int8"
    floating = values.dtype == FLOAT8
    return _tiles.weight_key(bits, kind, scales.shape[1], floating=floating)
