"""Integers of 2, 3 and 4 bits without gaps: a stream of bits, the lowest first."""

import math

import jax
import jax.numpy as jnp
import numpy as np

FLOAT8 = np.dtype(jnp.float8_e4m3fn)
"""The dtype of stored 8-bit floats, which take a byte each like integers of 8 bits."""


def is_packed(bits: int) -> bool:
    """Whether integers of these bits are stored as a stream (else one a byte)."""
    return bits <= 4


def stored_dtype(bits: int) -> np.dtype[np.uint8] | np.dtype[np.int8]:
    """uint8 for a stream of bits, int8 for one integer a byte."""
    return np.dtype(np.uint8) if is_packed(bits) else np.dtype(np.int8)


def packed_size(size: int, bits: int) -> int:
    """Bytes that hold `size` integers: ceil(size bits / 8), or `size` above 4 bits."""
    return (size * bits + 7) // 8 if is_packed(bits) else size


def pack_bits(values: jax.Array, bits: int) -> jax.Array:
    """Pack integers along the last axis.

    Bit b of integer k, in two's complement, becomes bit `(bits k + b) % 8` of byte
    `(bits k + b) // 8`. So 4 bits are two integers a byte, the even one in the low
    half; 2 bits four a byte; and 3 bits eight in three bytes. Bits after the last
    integer are 0.

    Args:
        values: int8 [..., K], each in [-2^(bits - 1), 2^(bits - 1) - 1].
        bits: bits of an integer, 2 to 8.

    Returns:
        uint8 [..., ceil(K bits / 8)]; above 4 bits `values` as they are.
    """
    if not is_packed(bits):
        return values
    size = values.shape[-1]
    each, length = _unit(bits)
    pad = [(0, 0)] * (values.ndim - 1) + [(0, -size % each)]
    raw = jnp.pad(values, pad).astype(jnp.uint8) & np.uint8(2**bits - 1)
    places = raw.reshape(*raw.shape[:-1], raw.shape[-1] // each, each)
    shifts = np.arange(0, 8 * length, bits, dtype=np.uint32)
    word = jnp.sum(
        places.astype(jnp.uint32) << shifts.reshape((1,) * values.ndim + (each,)),
        axis=-1,
        keepdims=True,
        dtype=jnp.uint32,
    )
    starts = np.arange(0, 8 * length, 8, dtype=np.uint32)
    split = (word >> starts.reshape((1,) * values.ndim + (length,))).astype(jnp.uint8)
    stream = split.reshape(*split.shape[:-2], split.shape[-2] * length)
    return stream[..., : packed_size(size, bits)]


def unpack_bits(packed: jax.Array, size: int, bits: int) -> jax.Array:
    """The int8 [..., size] integers that `pack_bits` packed."""
    if not is_packed(bits):
        return packed
    each, length = _unit(bits)
    if length == 1:
        signed = jax.lax.bitcast_convert_type(packed, jnp.int8)[..., None]
        raised = signed << np.arange(8 - bits, -1, -bits, dtype=np.int8).reshape(
            (1,) * packed.ndim + (each,)
        )
        places = raised >> np.int8(8 - bits)
    else:
        pad = [(0, 0)] * (packed.ndim - 1) + [(0, -packed.shape[-1] % length)]
        whole = jnp.pad(packed, pad)
        split = whole.reshape(*whole.shape[:-1], whole.shape[-1] // length, length)
        starts = np.arange(0, 8 * length, 8, dtype=np.int32)
        word = jnp.sum(
            split.astype(jnp.int32) << starts.reshape((1,) * packed.ndim + (length,)),
            axis=-1,
            keepdims=True,
            dtype=jnp.int32,
        )
        top = np.arange(32 - bits, 32 - bits * each - 1, -bits, dtype=np.int32)
        raised = word << top.reshape((1,) * packed.ndim + (each,))
        places = (raised >> np.int32(32 - bits)).astype(jnp.int8)
    values = places.reshape(*packed.shape[:-1], places.shape[-2] * each)
    return values[..., :size]


def _unit(bits: int) -> tuple[int, int]:
    """The least number of integers that fills whole bytes, and that of the bytes."""
    whole = math.lcm(bits, 8)
    return whole // bits, whole // 8
