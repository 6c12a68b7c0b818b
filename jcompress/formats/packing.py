"""Numbers of few bits without gaps: a stream of bits, the lowest first."""

import math

import jax
import jax.numpy as jnp
import numpy as np

FLOAT8 = np.dtype(jnp.float8_e4m3fn)
"""The dtype of stored 8-bit floats, which take a byte each like integers of 8 bits."""


def stream_size(size: int, bits: int) -> int:
    """Bytes that hold `size` numbers of 1 to 7 bits: ceil(size bits / 8)."""
    return (size * bits + 7) // 8


def pack_codes(values: jax.Array, bits: int) -> jax.Array:
    """Pack the low bits of integers along the last axis.

    Bit b of integer k becomes bit `(bits k + b) % 8` of byte `(bits k + b) // 8`. So 4
    bits are two integers a byte, the even one in the low half; 2 bits four a byte; and
    3 bits eight in three bytes. Bits after the last integer are 0.

    Args:
        values: int8 or uint8 [..., K].
        bits: bits that are kept of an integer, 1 to 7.

    Returns:
        uint8 [..., ceil(K bits / 8)].
    """
    size = values.shape[-1]
    each, length = _unit(bits)
    if 8 * length > 32:
        each_bit = np.arange(bits, dtype=np.uint8).reshape((1,) * values.ndim + (bits,))
        single = (values.astype(jnp.uint8)[..., None] >> each_bit) & np.uint8(1)
        flat = single.reshape(*values.shape[:-1], size * bits)
        return jnp.packbits(flat, axis=-1, bitorder="little")
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
    return stream[..., : stream_size(size, bits)]


def unpack_codes(packed: jax.Array, size: int, bits: int) -> jax.Array:
    """The integers that `pack_codes` packed, in two's complement: int8 [..., size]."""
    each, length = _unit(bits)
    rank = packed.ndim
    if 8 * length > 32:
        single = jnp.unpackbits(
            packed, axis=-1, count=size * bits, bitorder="little"
        ).reshape(*packed.shape[:-1], size, bits)
        # The last bit counts negative.
        powers = np.array([*(1 << b for b in range(bits - 1)), -(1 << (bits - 1))])
        weighted = single.astype(jnp.int8) * powers.astype(np.int8).reshape(
            (1,) * rank + (bits,)
        )
        return jnp.sum(weighted, axis=-1, dtype=jnp.int8)
    if length == 1:
        signed = jax.lax.bitcast_convert_type(packed, jnp.int8)[..., None]
        raised = signed << np.arange(8 - bits, -1, -bits, dtype=np.int8).reshape(
            (1,) * rank + (each,)
        )
        places = raised >> np.int8(8 - bits)
    else:
        pad = [(0, 0)] * (rank - 1) + [(0, -packed.shape[-1] % length)]
        whole = jnp.pad(packed, pad)
        split = whole.reshape(*whole.shape[:-1], whole.shape[-1] // length, length)
        starts = np.arange(0, 8 * length, 8, dtype=np.int32)
        word = jnp.sum(
            split.astype(jnp.int32) << starts.reshape((1,) * rank + (length,)),
            axis=-1,
            keepdims=True,
            dtype=jnp.int32,
        )
        top = np.arange(32 - bits, 32 - bits * each - 1, -bits, dtype=np.int32)
        raised = word << top.reshape((1,) * rank + (each,))
        places = (raised >> np.int32(32 - bits)).astype(jnp.int8)
    values = places.reshape(*packed.shape[:-1], places.shape[-2] * each)
    return values[..., :size]


def unpack_apart(packed: jax.Array, bits: int) -> list[jax.Array]:
    """The integers that `pack_codes` packed, those of each place in a byte apart.

    In their own order neighbours come from one byte by different shifts, which XLA
    makes one by one on CPUs; here a vector of bytes gives a vector of numbers.

    Args:
        packed: uint8 [..., B], with full bytes.
        bits: 1, 2 or 4.

    Returns:
        P = 8 / bits arrays, float32 [..., B], of the integers p, p + P, p + 2P, ...
    """
    # From 32 bits, of which processors shift vectors, as they do not of 8.
    wide = jax.lax.bitcast_convert_type(packed, jnp.int8).astype(jnp.int32)
    down = np.int32(32 - bits)
    return [
        ((wide << np.int32(up)) >> down).astype(jnp.float32)
        for up in range(32 - bits, 23, -bits)
    ]


def _unit(bits: int) -> tuple[int, int]:
    """The least number of integers that fills whole bytes, and that of the bytes."""
    whole = math.lcm(bits, 8)
    return whole // bits, whole // 8


def is_packed(bits: int) -> bool:
    """Whether kernels take integers of these bits as a stream (else one a byte)."""
    return bits <= 4


def stored_dtype(bits: int) -> np.dtype[np.uint8] | np.dtype[np.int8]:
    """What kernels take: uint8 for a stream of bits, int8 for one integer a byte."""
    return np.dtype(np.uint8) if is_packed(bits) else np.dtype(np.int8)


def packed_size(size: int, bits: int) -> int:
    """Bytes of `size` integers for kernels: a stream up to 4 bits, else one a byte."""
    return stream_size(size, bits) if is_packed(bits) else size


def pack_bits(values: jax.Array, bits: int) -> jax.Array:
    """Pack integers as kernels take them: `pack_codes` up to 4 bits, else as they are.

    Args:
        values: int8 [..., K], each in [-2^(bits - 1), 2^(bits - 1) - 1].
        bits: bits of an integer, 2 to 8.
    """
    return pack_codes(values, bits) if is_packed(bits) else values


def unpack_bits(packed: jax.Array, size: int, bits: int) -> jax.Array:
    """The int8 [..., size] integers that `pack_bits` packed."""
    return unpack_codes(packed, size, bits) if is_packed(bits) else packed
