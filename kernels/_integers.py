"""Rows of activations as small integers, and their products as XLA computes them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import Int, NumberFormat
from jcompress.tensors.ranges import Range, range_of, scale_and_zero
from jcompress.tensors.rounding import quantize_values

DIGIT = 254
"""Base of the digits of `split_digits`: a rest of at most 1/2 becomes one of 127."""

LONGEST = 2**15
"""Products of two differences of bytes, (2^8 - 1)^2, of which int32 holds the sum."""


def result_dtype(x: jax.Array) -> np.dtype[Any]:
    """The dtype of a product: that of float activations, float32 for integers."""
    return np.dtype(x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32)


def row_scale(
    x: jax.Array, format: NumberFormat, over: tuple[str, ...] = ()
) -> jax.Array:
    """The symmetric scale of each row, [..., M, K] -> float32 [..., M, 1].

    Args:
        x: floats.
        format: which numbers the rows become; it is symmetric.
        over: mesh axes along which the rows are cut.
    """
    # One pass over the rows; the range's two ends would take two.
    size = jnp.abs(x.astype(jnp.float32))
    width = jnp.max(size, axis=-1, keepdims=True, initial=0)
    if over:
        width = jax.lax.pmax(width, over)
    span = Range(-width, width)
    scale, _ = scale_and_zero(span, format)
    return scale


def quantize_rows(
    x: jax.Array, scale: jax.Array | None, zero: jax.Array | None, bits: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The integers of rows, with their scales and zero points.

    Args:
        x: floats [..., M, K]; or int8, which stays as it is.
        scale: float32 [..., M, 1]; None, for floats, takes each row's `row_scale`.
        zero: integers in float32 [..., M, 1], or None.
        bits: bits of the integers.

    Returns:
        int8 [..., M, K], the scale and the zero.
    """
    if x.dtype == jnp.int8:
        assert scale is not None
        return x, scale, zero
    if scale is None:
        scale = row_scale(x, Int(bits))
    q = quantize_values(x, scale, zero, Int(bits, symmetric=zero is None))
    return q.astype(jnp.int8), scale, zero


def integer_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """int8 [M, K] x int8 [N, K] -> int32 [M, N], the sums over K.

    XLA's CPU compiler hands such a product to its fast library, but for a single row,
    which it multiplies ten times slower; so one row becomes two.
    """
    rows = a.shape[0]
    if rows == 1:
        a = jnp.pad(a, ((0, 1), (0, 0)))
    contract = (((1,), (1,)), ((), ()))
    product = jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.int32)
    return product[:rows]


def split_digits(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Write each row of floats as fixed-point numbers of several int8 digits.

    `x[m] ~ scale[m] * sum_j digits[j, m] * 254^-j` with an error of at most
    `max |x[m]| / (2 * 127 * 254^(count - 1))` per element: 6.1e-8 of the largest
    element of the row for three digits, as a rounding of that element to float32
    has; 1.5e-5 for two, far below a rounding to bfloat16.

    Args:
        x: float32 [M, K].
        count: number of digits.

    Returns:
        digits, int8 [count, M, K], and scale, float32 [M, 1]. A row with a number that
        is not finite has a scale that is not.
    """
    scale, _ = scale_and_zero(range_of(x, 1), Int(8))
    rest = x * (np.float32(1) / scale)
    digits = []
    for _ in range(count):
        digit = jnp.clip(jnp.round(rest), np.float32(-127), np.float32(127))
        digits.append(digit.astype(jnp.int8))
        rest = (rest - digit) * np.float32(DIGIT)
    return jnp.stack(digits), scale
