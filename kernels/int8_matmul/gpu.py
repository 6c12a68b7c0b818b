"""`int8_matmul` on NVIDIA GPUs.

One product of int8 matrices, by `wgmma` on compute capability 9.0 (H100, H200), by
`tcgen05` on 10.0 (B200) and by `mma` on others from 8.0 (A100) on, with exact int32
sums, which are scaled before they are written. XLA's program has an int8 product too,
of the instructions of compute capability 8.0 if it is compiled ahead of time, and
writes the sums to memory, four bytes each, before it scales them
(`benchmarks/gpu_compiled.py`). On a device XLA also tries the products of NVIDIA's
library. None has been timed, so XLA's stays the choice where nothing is named.
"""

from typing import Any

import jax

from jcompress.kernels._gpu import (
    LONGEST_INTEGER_SUM,
    NO_INSTRUCTION,
    WARPGROUP_ROWS,
    Tiles,
    instruction,
    step_inputs,
)
from jcompress.kernels._gpu_tiles import ProductSize, choose_tiles, table_key
from jcompress.kernels._integers import quantize_rows, result_dtype


def gpu(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
    *,
    x_bits: int,
    out_dtype: Any = None,
    how: str = "",
    tiles: Tiles | None = None,
    interpret: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N]; `reference` says what the arguments are.

    Args:
        x, x_scale, x_zero, values, scales, zeros, bias, x_bits, out_dtype: see
            `reference`.
        how: the instruction; "" takes what suits the device.
        tiles: how to cut the product; None asks the tables, then `_gpu_tiles`' rules.
        interpret: parameters of Pallas' interpreter; None compiles.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, x_scale, x_zero, values, scales, zeros, bias, x_bits=x_bits)
    if reason:
        raise ValueError(f"int8_matmul on GPUs: {reason}")
    from jcompress.kernels._gpu_product import parts_by, product

    how = how or instruction(values.shape[0])
    q, scale, _ = quantize_rows(x, x_scale, None, x_bits)
    assert scale is not None
    if tiles is None:
        shape = ProductSize(
            rows=q.shape[0], outputs=values.shape[0], inputs=q.shape[1],
            groups=1, x_bits=8, bits=8,
        )  # fmt: skip
        tiles = choose_tiles(shape, how, "int8_matmul", table_key(8, "int8", shape))
    return product(
        parts_by(how), q, values, scales, zeros, scale[:, 0], bias,
        tiles=tiles, out_dtype=out_dtype or result_dtype(x), interpret=interpret,
    )  # fmt: skip


def refuses(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
    *,
    x_bits: int,
) -> str:
    """Why the kernel cannot compute this; "" if it can."""
    rows, inputs = x.shape
    outputs = values.shape[0]
    if rows == 0:
        return "there is nothing to compute"
    if not instruction():
        return NO_INSTRUCTION
    if x_zero is not None:
        return "there are no zero points of activations in the kernel"
    if outputs % WARPGROUP_ROWS:
        return f"N = {outputs} is no multiple of {WARPGROUP_ROWS}"
    if not step_inputs(inputs, 1):
        return f"K = {inputs} is no multiple of 64"
    if inputs > LONGEST_INTEGER_SUM:
        return f"int32 does not hold sums of {inputs} products"
    return ""


def prefers(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bias: jax.Array | None,
    *,
    x_bits: int,
) -> bool:
    """Whether the kernel is the better choice: unknown, so XLA's form is kept."""
    return False
