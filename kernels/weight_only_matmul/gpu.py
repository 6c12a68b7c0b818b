"""`weight_only_matmul` on NVIDIA GPUs.

Before it multiplies, XLA writes a weight with several groups of scales to memory as
16-bit floats, four times the bytes of int4, and one of int4 without groups as bytes.
Here the stored bytes are read once. There are two kernels:

* `by_digits`, for few rows, on compute capability 8.0 (A100) and later, with a JAX
  that has `mma`: the activations become small integers, the weight stays what it is.
* `by_conversion`, on 9.0 (H100, H200): the weight becomes 16-bit floats in registers,
  exactly; or, for quantized activations, stays integers.

`benchmarks/gpu_compiled.py` shows them and XLA's programs as compiled. None has been
timed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._gpu import (
    FEW_DIGITS,
    HAS_MMA,
    LONGEST_INTEGER_SUM,
    WARPGROUP_ROWS,
    Tiles,
    choose_tiles,
    lacks_wgmma,
    runs_on_hopper,
    runs_since_ampere,
    step_inputs,
)
from jcompress.kernels._integers import quantize_rows, split_digits


def gpu(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`; `reference` says what the arguments are.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, values, scales, zeros, bits=bits, x_bits=x_bits)
    if reason:
        raise ValueError(f"weight_only_matmul on GPUs: {reason}")
    # Digits run on every device that the other kernel runs on, and on more.
    if _are_few(x, x_bits) and not runs_on_hopper():
        return by_digits(x, values, scales, zeros, bits=bits, x_bits=x_bits)
    return by_conversion(x, values, scales, zeros, bits=bits, x_bits=x_bits)


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
    if outputs % WARPGROUP_ROWS:
        return f"N = {outputs} is no multiple of {WARPGROUP_ROWS}"
    if not step_inputs(inputs, groups):
        return (
            f"K = {inputs} in {groups} groups: K is a multiple of 64, and a group is "
            "32 inputs or a multiple of 64"
        )
    if inputs > LONGEST_INTEGER_SUM:
        return f"int32 does not hold sums of {inputs} products"
    few = _are_few(x, x_bits) and not runs_on_hopper()
    narrow = x.dtype in (jnp.bfloat16, jnp.float16)
    if x_bits is None and not few and not narrow:
        return f"x is bfloat16 or float16, which the products take, not {x.dtype}"
    if not few and lacks_wgmma():
        return "for so many rows there are kernels for H100 and H200 only"
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

    Only where the device is known to have the instructions: see `runs_on_hopper`.
    """
    written = scales.shape[1] > 1 or bits == 4
    few = _are_few(x, x_bits) and runs_since_ampere()
    return written and (few or runs_on_hopper())


def by_digits(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    interpret: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N] for few rows; `interpret` as for `product_of_digits`."""
    from jcompress.kernels._gpu_mma import product_of_digits
    from jcompress.kernels._gpu_mosaic import unpack

    if x_bits is None:
        digits, scale = split_digits(x.astype(jnp.float32), _digits(x, None))
    else:
        q, found, _ = quantize_rows(x, None, None, x_bits)
        assert found is not None
        digits, scale = q[None], found
    weight = unpack(values, bits)
    number = product_of_digits(digits, weight, scales, zeros, interpret=interpret)
    return (number * scale).astype(x.dtype)


def by_conversion(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    tiles: Tiles | None = None,
    interpret: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N] by `product`; `tiles` None takes `choose_tiles`."""
    from jcompress.kernels._gpu_mosaic import bits_of, unpack
    from jcompress.kernels._gpu_wgmma import product

    dtype = x.dtype
    row_scale = None
    if x_bits is not None:
        x, found, _ = quantize_rows(x, None, None, x_bits)
        assert found is not None
        row_scale = found[:, 0]
    weight = unpack(values, bits)
    if tiles is None:
        tiles = choose_tiles(
            x.shape[0],
            weight.shape[0],
            x.shape[1],
            scales.shape[1],
            x_bits=bits_of(x.dtype),
            bits=bits_of(weight.dtype),
        )
    return product(
        x, weight, scales, zeros, row_scale, None,
        tiles=tiles, out_dtype=dtype, interpret=interpret,
    )  # fmt: skip


def _digits(x: jax.Array, x_bits: int | None) -> int:
    if x_bits is not None:
        return 1
    return 2 if jnp.dtype(x.dtype).itemsize < 4 else 3


def _are_few(x: jax.Array, x_bits: int | None) -> bool:
    return HAS_MMA and _digits(x, x_bits) * x.shape[0] <= FEW_DIGITS
