"""Rows of activations as 8-bit floats, and their products as XLA computes them."""

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import Float8
from jcompress.formats.packing import FLOAT8
from jcompress.kernels._integers import row_scale
from jcompress.tensors.rounding import quantize_values

_BLOCK_BYTES = 4 * 2**20
"""Of a block of converted weights on a CPU."""
_MOST_BLOCKS = 32
"""Each is a part of the program."""


def is_float(x: jax.Array) -> bool:
    """Whether the dtype is one to compute in, and not one to store only."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.dtype.itemsize > 1


def result_dtype(x: jax.Array) -> np.dtype:
    """The dtype of a product: that of float activations, float32 for float8."""
    return np.dtype(x.dtype if is_float(x) else jnp.float32)


def float8_rows(x: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The numbers of rows in float8, with their scales.

    Args:
        x: floats [..., M, K]; or float8_e4m3fn, which stays as it is.
        scale: float32 [..., M, 1]; None, for floats, takes each row's `row_scale`.
    """
    if x.dtype == FLOAT8:
        assert scale is not None
        return x, scale
    if scale is None:
        scale = row_scale(x, Float8())
    q = quantize_values(x, scale, None, Float8())
    return q.astype(FLOAT8), scale


def dot_by_blocks(x: jax.Array, values: jax.Array) -> jax.Array:
    """[M, K] x float8 [N, K] -> float32 [M, N], multiplied in the dtype of `x`.

    XLA's CPU compiler writes the converted weight to memory, and takes that memory
    from the system for each call, page by page, if it is much: most of the time of a
    product of few rows. So the weight is converted in blocks of outputs, each after
    the product of the one before, in the same memory. Measured with 4096 x 4096
    weights and 3 to 96 rows, this takes a third to two thirds of the time.
    """
    rows, inputs = x.shape
    outputs = values.shape[0]
    if rows == 1:
        # XLA multiplies a single row ten times slower.
        x = jnp.pad(x, ((0, 1), (0, 0)))
    wanted = -(-outputs * inputs * x.dtype.itemsize // _BLOCK_BYTES)
    size = max(1, -(-outputs // min(_MOST_BLOCKS, wanted)))
    sums: list[jax.Array] = []
    for start in range(0, outputs, size):
        block = values[start : start + size]
        if sums:
            block = _after(sums[-1], block)
        contract = (((1,), (1,)), ((), ()))
        sums.append(
            jax.lax.dot_general(
                x, block.astype(x.dtype), contract, preferred_element_type=jnp.float32
            )
        )
    return jnp.concatenate(sums, axis=1)[:rows]


def _after(done: jax.Array, values: jax.Array) -> jax.Array:
    """`values`, of which XLA cannot tell before another array is known.

    `jax.lax.optimization_barrier` does not order programs for CPUs in every version.
    """
    never = jnp.abs(done[0, 0]) < np.float32(-1)
    word = jnp.where(never, np.uint8(1), np.uint8(0))
    words = jax.lax.bitcast_convert_type(values, jnp.uint8) | word
    return jax.lax.bitcast_convert_type(words, values.dtype)
