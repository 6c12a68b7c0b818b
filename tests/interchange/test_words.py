"""Numbers in bytes and words, of any number of bits."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import pack_line

from jcompress.interchange.words import (
    from_awq_words,
    from_words,
    pack,
    to_awq_words,
    to_words,
    unpack,
)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_both_ways(data: Any) -> None:
    bits, size = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.integers(0, 2**bits, (2, size), np.uint8)
    words = to_words(values, bits)
    for row, line in zip(values, words, strict=True):
        assert line.tolist() == pack_line([int(n) for n in row], bits)
    np.testing.assert_array_equal(from_words(words, size, bits), values)
    stream = pack(values, bits)
    assert stream.shape == (2, -(-size * bits // 8))
    np.testing.assert_array_equal(unpack(stream, size, bits), values)


def test_awq_words_both_ways() -> None:
    values = np.random.default_rng(0).integers(0, 16, (3, 24), np.uint8)
    words = to_awq_words(values)
    assert (words.shape, words.dtype) == ((3, 3), np.int32)
    np.testing.assert_array_equal(from_awq_words(words), values)
