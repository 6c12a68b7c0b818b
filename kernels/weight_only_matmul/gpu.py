"""`weight_only_matmul` on NVIDIA GPUs.

Before it multiplies, XLA writes a weight with several groups of scales to memory as
16-bit floats, four times the bytes of int4, and one of int4 without groups as bytes.
Here the stored bytes are read once. There are two kernels:

* `by_digits`, for few rows, by `mma` (compute capability 8.0, A100, and later, with a
  JAX that has it): the activations become small integers, the weight stays what it is.
* `by_conversion`: the weight becomes 16-bit floats in registers, exactly; or, for
  quantized activations, stays integers. By `wgmma` on 9.0 (H100, H200), by `tcgen05` on
  10.0 (B200) if it can, else by `mma`.

`benchmarks/gpu_compiled.py` shows them and XLA's programs as compiled. None has been
timed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.packing import FLOAT8
from jcompress.kernels._gpu import (
    FEW_DIGITS,
    HAS_MMA,
    LONGEST_INTEGER_SUM,
    NO_INSTRUCTION,
    WARPGROUP_ROWS,
    Tiles,
    instruction,
    prefers_kernels,
    step_inputs,
)
from jcompress.kernels._gpu_tiles import ProductSize, choose_tiles, table_key
from jcompress.kernels._integers import DIGIT, quantize_rows, split_digits


def gpu(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    out_dtype: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N]; `reference` says what the arguments are.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, values, scales, zeros, bits=bits, x_bits=x_bits)
    if reason:
        raise ValueError(f"weight_only_matmul on GPUs: {reason}")
    if _are_few(x, x_bits):
        return by_digits(x, values, scales, zeros, bits=bits, out_dtype=out_dtype)
    return by_conversion(
        x, values, scales, zeros, bits=bits, x_bits=x_bits, out_dtype=out_dtype
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
    if rows == 0:
        return "there is nothing to compute"
    if bits not in (4, 5, 6, 7, 8):
        return f"{bits}-bit integers are not taken apart"
    if values.dtype == FLOAT8:
        return "float8 weights are not converted"
    if outputs % WARPGROUP_ROWS:
        return f"N = {outputs} is no multiple of {WARPGROUP_ROWS}"
    if not step_inputs(inputs, groups):
        return (
            f"K = {inputs} in {groups} groups: K is a multiple of 64, and a group is "
            "32 inputs or a multiple of 64"
        )
    if inputs > LONGEST_INTEGER_SUM:
        return f"int32 does not hold sums of {inputs} products"
    if not instruction():
        return NO_INSTRUCTION
    narrow = x.dtype in (jnp.bfloat16, jnp.float16)
    if x_bits is None and not narrow and not _are_few(x, x_bits):
        return f"x is bfloat16 or float16, which the products take, not {x.dtype}"
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
    """Whether the kernels are the better choice: XLA would write the weight to memory.

    Only where it is known which instructions the device has: see `prefers_kernels`.
    """
    written = scales.shape[1] > 1 or bits == 4
    return written and prefers_kernels(x.shape[0])


def by_digits(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    out_dtype: Any = None,
    interpret: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N] for few rows, by `mma`; `interpret` as for `_gpu_mma.parts`."""
    from jcompress.kernels import _gpu_mma
    from jcompress.kernels._gpu_mosaic import unpack
    from jcompress.kernels._gpu_product import product

    rows, inputs = x.shape
    count = _digits(x)
    digits, scale = split_digits(x.astype(jnp.float32), count)
    flat = digits.reshape(count * rows, inputs)
    weight = unpack(values, bits)
    tiles = _tiles_for(flat, weight, scales, bits, str(x.dtype), "mma")
    places = product(
        _gpu_mma.parts, flat, weight, scales, zeros, None, None,
        tiles=tiles, out_dtype=jnp.float32, interpret=interpret,
    ).reshape(count, rows, weight.shape[0])  # fmt: skip
    number = places[-1]
    for place in range(count - 2, -1, -1):
        number = places[place] + number * np.float32(1 / DIGIT)
    return (number * scale).astype(out_dtype or x.dtype)


def by_conversion(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    out_dtype: Any = None,
    how: str = "",
    tiles: Tiles | None = None,
    interpret: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N] by the instruction `how`; "" takes what suits the device.

    `tiles` None asks the tables, then the rules of `_gpu_tiles`.
    """
    from jcompress.kernels._gpu_mosaic import unpack
    from jcompress.kernels._gpu_product import parts_by, product

    widens = x_bits is not None and bits == 4
    how = how or instruction(scales.shape[0], widens=widens)
    dtype = out_dtype or x.dtype
    row_scale = None
    if x_bits is not None:
        x, found, _ = quantize_rows(x, None, None, x_bits)
        assert found is not None
        row_scale = found[:, 0]
    weight = unpack(values, bits)
    if tiles is None:
        tiles = _tiles_for(x, weight, scales, bits, str(x.dtype), how)
    return product(
        parts_by(how), x, weight, scales, zeros, row_scale, None,
        tiles=tiles, out_dtype=dtype, interpret=interpret,
    )  # fmt: skip


def _tiles_for(
    x: jax.Array, weight: jax.Array, scales: jax.Array, bits: int, kind: str, how: str
) -> Tiles:
    shape = ProductSize(
        rows=x.shape[0],
        outputs=weight.shape[0],
        inputs=x.shape[1],
        groups=scales.shape[1],
        x_bits=jnp.dtype(x.dtype).itemsize * 8,
        bits=4 if bits == 4 else 8,
    )
    return choose_tiles(shape, how, "weight_only_matmul", table_key(bits, kind, shape))


def _digits(x: jax.Array) -> int:
    return 2 if jnp.dtype(x.dtype).itemsize < 4 else 3


def _are_few(x: jax.Array, x_bits: int | None) -> bool:
    few = x_bits is None and _digits(x) * x.shape[0] <= FEW_DIGITS
    return few and HAS_MMA and instruction() != "wgmma"
