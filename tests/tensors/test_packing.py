"""Streams of bits: their layout, their size, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcompress.formats.packing import pack_bits, packed_size, unpack_apart, unpack_bits


@settings(max_examples=30)
@given(
    bits=st.integers(2, 8),
    rows=st.integers(0, 3),
    size=st.integers(0, 19),
    seed=st.integers(0, 2**31 - 1),
)
def test_round_trip(bits: int, rows: int, size: int, seed: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = np.random.default_rng(seed).integers(low, high, (rows, size), np.int8)
    packed = pack_bits(jnp.asarray(values), bits)
    assert packed.dtype == (jnp.uint8 if bits <= 4 else jnp.int8)
    assert packed.shape == (rows, packed_size(size, bits))
    np.testing.assert_array_equal(unpack_bits(packed, size, bits), values)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bit_by_bit(bits: int) -> None:
    size = 29
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = np.random.default_rng(0).integers(low, high, size, np.int8)
    stream = 0
    for place, value in enumerate(values.tolist()):
        stream |= (value % 2**bits) << (bits * place)
    expected = stream.to_bytes(-(-size * bits // 8), "little")
    assert np.asarray(pack_bits(jnp.asarray(values), bits)).tobytes() == expected


@pytest.mark.parametrize("bits", [2, 4])
def test_apart_are_the_integers_of_each_place_in_a_byte(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = np.random.default_rng(0).integers(low, high, (3, 16), np.int8)
    parts = unpack_apart(pack_bits(jnp.asarray(values), bits), bits)
    assert len(parts) == 8 // bits
    for place, part in enumerate(parts):
        np.testing.assert_array_equal(part, values[:, place :: len(parts)])


def test_known_bytes() -> None:
    four = pack_bits(jnp.asarray([1, -2, 7, -8, 3], jnp.int8), 4)
    np.testing.assert_array_equal(four, [0xE1, 0x87, 0x03])
    three = pack_bits(jnp.asarray([0, 1, 2, 3, -4, -3, -2, -1], jnp.int8), 3)
    np.testing.assert_array_equal(three, [0b10001000, 0b11000110, 0b11111010])
    two = pack_bits(jnp.asarray([0, 1, -2, -1, 1], jnp.int8), 2)
    np.testing.assert_array_equal(two, [0b11100100, 0b01])


def test_in_a_jitted_and_a_mapped_function() -> None:
    values = jnp.asarray(np.arange(24).reshape(2, 12) % 8 - 4, jnp.int8)

    def there_and_back(row: jax.Array) -> jax.Array:
        return unpack_bits(pack_bits(row, 3), row.shape[-1], 3)

    np.testing.assert_array_equal(jax.jit(jax.vmap(there_and_back))(values), values)
