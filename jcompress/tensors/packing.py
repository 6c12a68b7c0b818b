"""Two 4-bit integers in a byte."""

import jax
import jax.numpy as jnp
import numpy as np


def packed_size(size: int) -> int:
    """Bytes that hold `size` 4-bit integers."""
    return (size + 1) // 2


def pack_nibbles(values: jax.Array) -> jax.Array:
    """Pack integers of at most 4 bits along the last axis.

    Args:
        values: int8 [..., K], each in [-8, 7].

    Returns:
        uint8 [..., ceil(K / 2)] of two's-complement nibbles: element 2 i in the low
        one of byte i, element 2 i + 1 in the high one, 0 after the last of an odd K.
    """
    odd = values.shape[-1] % 2
    pad = [(0, 0)] * (values.ndim - 1) + [(0, odd)]
    nibbles = jnp.pad(values, pad).astype(jnp.uint8) & np.uint8(15)
    return nibbles[..., ::2] | (nibbles[..., 1::2] << np.uint8(4))


def unpack_nibbles(packed: jax.Array, size: int) -> jax.Array:
    """The int8 [..., size] integers that `pack_nibbles` packed."""
    signed = jax.lax.bitcast_convert_type(packed, jnp.int8)
    low = (signed << np.int8(4)) >> np.int8(4)
    pairs = jnp.stack([low, signed >> np.int8(4)], axis=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])[..., :size]
