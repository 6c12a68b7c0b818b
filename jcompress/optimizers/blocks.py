"""Block-wise dynamic quantization: arrays in 8 bits, a scale for each block."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_DECADES = 7
"""How many powers of ten the numbers of the data type span."""


class Blocks(NamedTuple):
    """An array in 8 bits.

    With the array flattened and cut into blocks, the last one filled up with zeros:

        array[b, i] = table[b][codes[b, i]] * |scales[b]|

    where the table is the unsigned one if the scale is negative and the signed one if
    not.

    Attributes:
        codes: uint8, of the shape of the array.
        scales: the largest absolute number of each block, [blocks], of the dtype of
            the array; negative if no number of the block is.
    """

    codes: jax.Array
    scales: jax.Array


def dynamic_numbers(signed: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The 256 numbers of the dynamic tree data type, float32 in increasing order.

    After the sign bit, if there is one, so many zeros choose the power of ten; a one
    ends them, and the bits that are left number the middles of even parts of
    [0.1, 1]. 0 and 1 are numbers, too. Without a sign there is one more bit for the
    parts.

    References:
        Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization",
        sections 1.3 and 2.2.
    """
    sizes = [np.array([1.0])]
    for zeros in range(_DECADES):
        parts = 2 ** (_DECADES - zeros - signed)
        middles = 0.1 + 0.9 * (np.arange(parts) + 0.5) / parts
        sizes.append(middles * 10.0**-zeros)
    positive = np.concatenate(sizes)
    # There is no -1: the code is that of 0.
    negative = -positive[1:] if signed else positive[:0]
    return np.sort(np.concatenate([negative, [0.0], positive])).astype(np.float32)


_TABLES = np.concatenate([dynamic_numbers(True), dynamic_numbers(False)])
"""The signed numbers, then the unsigned ones."""


def _edges() -> np.ndarray[Any, np.dtype[np.float32]]:
    middles = [(table[1:] + table[:-1]) / 2 for table in np.split(_TABLES, 2)]
    # What is above 0 stays so if nothing is below: the root of a second moment of 0
    # would be divided by.
    middles[1][0] = 0
    ends = np.array([np.inf], np.float32)
    return np.concatenate([middles[0], ends, middles[1], ends])


_EDGES = _edges()
"""For each table the 255 numbers where rounding changes, and infinity."""


def to_blocks(x: jax.Array, size: int) -> Blocks:
    """Round an array to the nearest numbers of its blocks.

    In a block without negative numbers those above 0 do not become 0.

    Args:
        x: floats of any shape.
        size: numbers in a block.
    """
    blocks = _cut(x.astype(jnp.float32), size)
    largest = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
    unsigned = jnp.min(blocks, axis=1, keepdims=True) >= 0
    scales = jnp.where(unsigned, -largest, largest)[:, 0].astype(x.dtype)
    held = jnp.abs(scales.astype(jnp.float32))[:, None]
    parts = blocks * (np.float32(1) / jnp.where(held > 0, held, np.float32(1)))
    start = jnp.where(unsigned, np.int32(256), np.int32(0))
    edges = jnp.asarray(_EDGES)
    codes = jnp.zeros(blocks.shape, jnp.int32)
    for bit in range(7, -1, -1):
        higher = codes + np.int32(2**bit)
        codes = jnp.where(parts > edges[start + higher - 1], higher, codes)
    flat = codes.astype(jnp.uint8).reshape(-1)[: x.size]
    return Blocks(flat.reshape(x.shape), scales)


def from_blocks(blocks: Blocks, size: int) -> jax.Array:
    """The array that blocks of a size stand for, in the dtype of its scales."""
    codes = _cut(blocks.codes, size).astype(jnp.int32)
    scales = blocks.scales.astype(jnp.float32)[:, None]
    # The sign bit, not the sign: of a block of zeros the scale is -0.
    start = jnp.where(jnp.signbit(scales), np.int32(256), np.int32(0))
    numbers = jnp.asarray(_TABLES)[start + codes] * jnp.abs(scales)
    flat = numbers.reshape(-1)[: blocks.codes.size]
    return flat.reshape(blocks.codes.shape).astype(blocks.scales.dtype)


def _cut(x: jax.Array, size: int) -> jax.Array:
    """[blocks, size], filled up with zeros."""
    flat = x.reshape(-1)
    count = -(-flat.size // size)
    return jnp.pad(flat, (0, count * size - flat.size)).reshape(count, size)
