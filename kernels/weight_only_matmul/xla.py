"""The fastest forms of `weight_only_matmul` that XLA compiles.

XLA's CPU compiler never fuses the conversion of the weight into the product: it
writes the whole float matrix to memory first. A product of int8 matrices it does well.
So for few rows the *activations* are written as two or three int8 digits
(`split_digits`), the digits of a row become rows of one integer product, and the
weight is read as it is stored. Integers of 2 and 4 bits are taken apart by shifting
each to the upper end of its byte, 64 or 16 times its value, and multiplied with every
fourth or second input; no unpacked matrix is written in their order. Activations that
are quantized anyway have one digit, their integers.

`benchmarks/README.md` has the figures of `benchmarks/xla_forms.py`: the digits beat
the conversion 2 to 11 times for one or two rows, and lose from some dozen rows on. The
limits below are between. Against float weights they are faster for one or two rows, on
a par for eight, and slower beyond. On other platforms, whose compilers fuse
conversions, the weight is always converted; none was timed.

Weights of float8 are converted everywhere, on a CPU as `xla_float8.py` says.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.packing import FLOAT8, unpack_bits
from jcompress.kernels._integers import (
    DIGIT,
    LONGEST,
    integer_dot,
    quantize_rows,
    split_digits,
)
from jcompress.kernels._partition import vary, varying
from jcompress.kernels._rows import at_most
from jcompress.kernels.weight_only_matmul.reference import dense_weight
from jcompress.kernels.weight_only_matmul.xla_float8 import PARTS, by_parts

SPLIT_ROWS = 96
"""The most rows of digits with which they pay on a CPU, with one group of scales."""
SPLIT_ROWS_GROUPED = 48
"""The same with several groups, each of which is a product of its own."""
SPLIT_GROUPS = 64
"""With more groups, a program of one product a group becomes too long."""


def xla(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    out_dtype: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N], by the form that suits the platform and the shape."""
    digits = functools.partial(by_digits, bits=bits, x_bits=x_bits, out_dtype=out_dtype)
    converted = functools.partial(
        by_conversion, bits=bits, x_bits=x_bits, out_dtype=out_dtype
    )
    rows, inputs = x.shape
    groups = scales.shape[1]
    if values.dtype == FLOAT8:
        if groups > 1 or x.dtype.name not in PARTS:
            return converted(x, values, scales, None)
        product: jax.Array = jax.lax.platform_dependent(
            x,
            values,
            scales,
            cpu=functools.partial(by_parts, out_dtype=out_dtype),
            default=lambda x, values, scales: converted(x, values, scales, None),
        )
        return product
    if x_bits is not None and groups == 1 and inputs <= LONGEST:
        return digits(x, values, scales, zeros)
    if not splits(rows, inputs, groups, digit_count(x.dtype, x_bits)):
        return converted(x, values, scales, zeros)
    chosen: jax.Array = jax.lax.platform_dependent(
        x, values, scales, zeros, cpu=digits, default=converted
    )
    return chosen


def digit_count(dtype: Any, x_bits: int | None) -> int:
    """How many int8 digits stand for an activation."""
    if x_bits is not None:
        return 1
    return 2 if jnp.dtype(dtype).itemsize < 4 else 3


def splits(rows: int, inputs: int, groups: int, digits: int = 3) -> bool:
    """Whether `by_digits` is the faster form on a CPU, for every symbolic `rows`."""
    most = SPLIT_ROWS if groups == 1 else SPLIT_ROWS_GROUPED
    few = at_most(digits * rows, most, unknown=False)
    return few and groups <= SPLIT_GROUPS and inputs // groups <= LONGEST


def by_conversion(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None = None,
    out_dtype: Any = None,
) -> jax.Array:
    """Convert the weight to floats and multiply.

    With one scale a channel the integers are converted, which a 16-bit float holds
    exactly, and the result is scaled; else the scaled weight is rounded to the dtype
    of `x`.
    """
    rows, inputs = x.shape
    row_scale = None
    dtype = out_dtype or x.dtype
    if x_bits is not None:
        q, row_scale, _ = quantize_rows(x, None, None, x_bits)
        x = q.astype(x.dtype)
    if scales.shape[1] == 1:
        integers = unpack_bits(values, inputs, bits)
        weight = integers.astype(x.dtype)
        if zeros is not None:
            weight = weight - zeros.astype(x.dtype)
    else:
        dense = dense_weight(values, scales, zeros, bits=bits, inputs=inputs)
        weight = dense.astype(x.dtype)
    padded = jnp.pad(x, ((0, 1), (0, 0))) if rows == 1 else x
    contract = (((1,), (1,)), ((), ()))
    product = jax.lax.dot_general(
        padded, weight, contract, preferred_element_type=jnp.float32
    )[:rows]
    if scales.shape[1] == 1:
        product = product * scales[:, 0][None]
    return (product if row_scale is None else product * row_scale).astype(dtype)


def by_digits(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None = None,
    out_dtype: Any = None,
) -> jax.Array:
    """Multiply the stored integers with the int8 digits of the activations."""
    rows, inputs = x.shape
    groups = scales.shape[1]
    count = digit_count(x.dtype, x_bits)
    if x_bits is None:
        split, row_scale = split_digits(x.astype(jnp.float32), count)
        digits = split.reshape(count * rows, inputs)
    else:
        digits, whole_scale, _ = quantize_rows(x, None, None, x_bits)
        assert whole_scale is not None
        row_scale = whole_scale
    size = inputs // groups
    each = 8 // bits if bits in (2, 4) else 1
    if bits <= 4 and (each == 1 or (groups > 1 and size % each)):
        values, each = unpack_bits(values, inputs, bits), 1
    unit = 2 ** (8 - bits) if each > 1 else 1
    stored = values.shape[1] // groups

    def group_sum(
        part: jax.Array, columns: jax.Array, scale: jax.Array, zero: jax.Array | None
    ) -> jax.Array:
        sums = _shifted_dot(part, columns, each)
        if zero is not None:
            moved = zero.astype(jnp.int32)[None] * np.int32(unit)
            sums = sums - moved * jnp.sum(part, axis=1, dtype=jnp.int32)[:, None]
        places = sums.reshape(count, rows, values.shape[0]).astype(jnp.float32)
        number = places[-1]
        for place in range(count - 2, -1, -1):
            number = places[place] + number * np.float32(1 / DIGIT)
        return number * (scale[None] * np.float32(1 / unit))

    if groups == 1:
        zero = None if zeros is None else zeros[:, 0]
        product = group_sum(digits, values, scales[:, 0], zero) * row_scale
        return product.astype(out_dtype or x.dtype)

    def step(total: jax.Array, group: Any) -> tuple[jax.Array, None]:
        number, scale, zero = group
        part = jax.lax.dynamic_slice_in_dim(digits, number * size, size, axis=1)
        start = number * stored
        columns = jax.lax.dynamic_slice_in_dim(values, start, stored, axis=1)
        return total + group_sum(part, columns, scale, zero), None

    numbers = jnp.arange(groups, dtype=jnp.int32)
    slices = (numbers, scales.T, None if zeros is None else zeros.T)
    zero = jnp.zeros((rows, values.shape[0]), jnp.float32)
    start = vary(zero, varying([x, values]))
    total, _ = jax.lax.scan(step, start, slices)
    summed: jax.Array = total * row_scale
    return summed.astype(out_dtype or x.dtype)


def _shifted_dot(digits: jax.Array, stored: jax.Array, each: int) -> jax.Array:
    """int8 [M, K] x [N, ceil(K / each)] -> int32 [M, N], of raised integers.

    With several integers a byte, that is uint8, each is raised to the upper end of
    its byte, so that the product is 2^(8 - 8 / each) times theirs.
    """
    if each == 1:
        return integer_dot(digits, stored)
    digits = jnp.pad(digits, ((0, 0), (0, -digits.shape[1] % each)))
    signed = jax.lax.bitcast_convert_type(stored, jnp.int8)
    bits = 8 // each
    upper = np.int8(-(2 ** (8 - bits)))
    total = integer_dot(digits[:, ::each], signed << np.int8(8 - bits))
    for place in range(1, each):
        raised = (signed << np.int8(8 - bits * (place + 1))) & upper
        total = total + integer_dot(digits[:, place::each], raised)
    return total
