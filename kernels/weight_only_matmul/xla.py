"""The fastest forms of `weight_only_matmul` that XLA compiles.

XLA's CPU compiler never fuses the conversion of the weight into the product: it
writes the whole float matrix to memory first. A product of int8 matrices it does well.
So for few rows the *activations* are written as two or three int8 digits
(`split_digits`), the digits of a row become rows of one integer product, and the
weight is read as it is stored. Two nibbles are taken apart by shifting each to the
upper half of its byte, 16 times its value, and multiplied with the even and the odd
inputs; no unpacked matrix is written in their order.

`benchmarks/README.md` has the figures of `benchmarks/xla_forms.py`: the digits beat
the conversion 2 to 11 times for one or two rows, and lose from some dozen rows on. The
limits below are between. Against float weights they are faster for one or two rows, on
a par for eight, and slower beyond. On other platforms, whose compilers fuse
conversions, the weight is always converted; none was timed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels._integers import DIGIT, LONGEST, integer_dot, split_digits
from jcompress.kernels.weight_only_matmul.reference import dense_weight
from jcompress.tensors.packing import unpack_nibbles

SPLIT_ROWS = 32
"""Up to so many rows the digits are used on a CPU, with one group of scales."""
SPLIT_ROWS_GROUPED = 16
"""The same with several groups, each of which is a product of its own."""
SPLIT_GROUPS = 64
"""Beyond so many groups the program of one product a group becomes too long."""


def xla(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
) -> jax.Array:
    """[M, K] -> float32 [M, N], by the form that suits the platform and the shape."""
    converted = functools.partial(by_conversion, bits=bits)
    if not splits(x.shape[0], x.shape[1], scales.shape[1]):
        return converted(x, values, scales, zeros)
    chosen: jax.Array = jax.lax.platform_dependent(
        x,
        values,
        scales,
        zeros,
        cpu=functools.partial(by_digits, bits=bits),
        default=converted,
    )
    return chosen


def splits(rows: int, inputs: int, groups: int) -> bool:
    """Whether `by_digits` is the faster form on a CPU."""
    most = SPLIT_ROWS if groups == 1 else SPLIT_ROWS_GROUPED
    return rows <= most and groups <= SPLIT_GROUPS and inputs // groups <= LONGEST


def by_conversion(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
) -> jax.Array:
    """Convert the weight to floats and multiply.

    With one scale a channel the integers are converted, which a 16-bit float holds
    exactly, and the result is scaled; else the scaled weight is rounded to the dtype
    of `x`.
    """
    rows, inputs = x.shape
    if scales.shape[1] == 1:
        integers = unpack_nibbles(values, inputs) if bits <= 4 else values
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
    return product * scales[:, 0][None] if scales.shape[1] == 1 else product


def by_digits(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
) -> jax.Array:
    """Multiply the stored integers with the int8 digits of the activations."""
    rows, inputs = x.shape
    groups = scales.shape[1]
    count = 2 if jnp.dtype(x.dtype).itemsize < 4 else 3
    split, row_scale = split_digits(x.astype(jnp.float32), count)
    digits = split.reshape(count * rows, inputs)
    size = inputs // groups
    pairs = bits <= 4 and (groups == 1 or size % 2 == 0)
    if bits <= 4 and not pairs:
        values = unpack_nibbles(values, inputs)
    unit = 16 if pairs else 1
    stored = values.shape[1] // groups

    def group_sum(
        part: jax.Array, columns: jax.Array, scale: jax.Array, zero: jax.Array | None
    ) -> jax.Array:
        sums = (_pairs_dot if pairs else integer_dot)(part, columns)
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
        return group_sum(digits, values, scales[:, 0], zero) * row_scale

    def step(total: jax.Array, group: Any) -> tuple[jax.Array, None]:
        number, scale, zero = group
        part = jax.lax.dynamic_slice_in_dim(digits, number * size, size, axis=1)
        start = number * stored
        columns = jax.lax.dynamic_slice_in_dim(values, start, stored, axis=1)
        return total + group_sum(part, columns, scale, zero), None

    numbers = jnp.arange(groups, dtype=jnp.int32)
    each = (numbers, scales.T, None if zeros is None else zeros.T)
    start = jnp.zeros((rows, values.shape[0]), jnp.float32)
    total, _ = jax.lax.scan(step, start, each)
    return total * row_scale


def _pairs_dot(digits: jax.Array, packed: jax.Array) -> jax.Array:
    """int8 [M, K] x uint8 [N, ceil(K / 2)] -> 16 times the int32 [M, N] product."""
    odd = digits.shape[1] % 2
    digits = jnp.pad(digits, ((0, 0), (0, odd)))
    signed = jax.lax.bitcast_convert_type(packed, jnp.int8)
    even = integer_dot(digits[:, ::2], signed << np.int8(4))
    return even + integer_dot(digits[:, 1::2], signed & np.int8(-16))
