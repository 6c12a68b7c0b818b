"""`int8_matmul` on TPUs of generation 7, which multiply no integers.

Integers of eight bits, and differences of two, are exact in bfloat16, and so are their
products' sums in float32 up to 2**24. The weight is read as bytes and becomes bfloat16
in the core (`weight_only_matmul`); XLA was not seen to finish compiling its own program
for such a device. Others multiply integers, where XLA's form is kept.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels import _tpu
from jcompress.kernels._integers import quantize_rows, result_dtype
from jcompress.kernels.weight_only_matmul import tpu as weight_only
from jcompress.kernels.weight_only_matmul.tpu_few_rows import few_rows
from jcompress.kernels.weight_only_matmul.tpu_many_rows import many_rows


def tpu(
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
) -> jax.Array:
    """[M, K] -> [M, N]; `reference` says what the arguments are.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, x_scale, x_zero, values, scales, zeros, bias, x_bits=x_bits)
    if reason:
        raise ValueError(f"int8_matmul: the form for TPUs {reason}")
    q, scale, zero = quantize_rows(x, x_scale, x_zero, x_bits)
    rows = q.astype(jnp.bfloat16)
    if zero is not None:
        rows = rows - zero.astype(jnp.bfloat16)
    one = jnp.ones_like(scales)
    if rows.shape[0] <= weight_only.FEW:
        sums = few_rows(
            rows,
            values,
            one,
            zeros,
            bits=8,
            x_bits=None,
            integers=False,
            block=0,
            out_dtype=jnp.float32,
        )
    else:
        sums = many_rows(
            rows, values, one, zeros, bits=8, block=0, out_dtype=jnp.float32
        )
    product = sums * scale * scales.T
    if bias is not None:
        product = product + bias[None]
    return product.astype(out_dtype or result_dtype(x))


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
    """Why the kernels cannot compute this; "" if they can."""
    rows: Any = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    return weight_only.refuses(rows, values, scales, zeros, bits=8, x_bits=None)


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
    """Whether the device is known to have no products of integers."""
    return not _tpu.multiplies_integers()
