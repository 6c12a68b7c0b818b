"""Small unsigned integers in bytes and words, as files of weights hold them."""

import math
from typing import Any

import numpy as np

from jcompress.interchange.files import Host

_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns is in each four bits of an AWQ word, from the lowest."""


def unpack(stream: Host, size: int, bits: int) -> Host:
    """Numbers from a stream of bits, the lowest first.

    Args:
        stream: uint8 [..., B], B >= ceil(size bits / 8).
        size: how many numbers.
        bits: bits of a number, 1 to 8.

    Returns:
        uint8 [..., size].
    """
    if bits == 8:
        return stream[..., :size]
    each, length = _unit(bits)
    pad = [(0, 0)] * (stream.ndim - 1) + [(0, -stream.shape[-1] % length)]
    parts = np.pad(stream, pad).reshape(*stream.shape[:-1], -1, length)
    word = parts[..., 0]
    if length > 1:
        places = np.arange(0, 8 * length, 8, dtype=np.uint64)
        word = (parts.astype(np.uint64) << places).sum(axis=-1, dtype=np.uint64)
    shifts = np.arange(0, bits * each, bits).astype(word.dtype)
    values = (word[..., None] >> shifts) & word.dtype.type(2**bits - 1)
    flat: Host = values.astype(np.uint8).reshape(*stream.shape[:-1], -1)
    return flat[..., :size]


def pack(values: Host, bits: int) -> Host:
    """The stream of `unpack`, whose last byte is filled up with 0.

    Args:
        values: uint8 [..., size], each below 2^bits.
        bits: bits of a number, 1 to 8.

    Returns:
        uint8 [..., ceil(size bits / 8)].
    """
    if bits == 8:
        return values
    size = values.shape[-1]
    each, length = _unit(bits)
    pad = [(0, 0)] * (values.ndim - 1) + [(0, -size % each)]
    parts = np.pad(values, pad).reshape(*values.shape[:-1], -1, each)
    kind: Any = np.uint8 if length == 1 else np.uint64
    shifts = np.arange(0, bits * each, bits).astype(kind)
    word: Host = np.bitwise_or.reduce(parts.astype(kind) << shifts, axis=-1)
    if length > 1:
        places = np.arange(0, 8 * length, 8, dtype=np.uint64)
        split = (word[..., None] >> places).astype(np.uint8)
        word = split.reshape(*values.shape[:-1], -1)
    return word[..., : (size * bits + 7) // 8]


def from_words(words: Host, size: int, bits: int) -> Host:
    """Numbers along the last axis of words: int32 [..., W] -> uint8 [..., size]."""
    raw = np.ascontiguousarray(words).astype("<u4").view(np.uint8)
    return unpack(raw, size, bits)


def to_words(values: Host, bits: int) -> Host:
    """Numbers packed along the last axis, the last word filled up with 0.

    Returns:
        int32 [..., ceil(size bits / 32)].
    """
    stream = pack(values, bits)
    pad = [(0, 0)] * (stream.ndim - 1) + [(0, -stream.shape[-1] % 4)]
    raw = np.ascontiguousarray(np.pad(stream, pad))
    return raw.view("<u4").astype(np.uint32).view(np.int32)


def from_awq_words(words: Host) -> Host:
    """Numbers of 4 bits along the last axis: int32 [R, N / 8] -> uint8 [R, N]."""
    stored = from_words(words, 8 * words.shape[-1], 4)
    return _moved(stored, np.argsort(_AWQ))


def to_awq_words(values: Host) -> Host:
    """The words of `from_awq_words`: uint8 [R, N] -> int32 [R, N / 8]."""
    return to_words(_moved(values, np.asarray(_AWQ)), 4)


def _moved(values: Host, order: Host) -> Host:
    eights = values.reshape(*values.shape[:-1], -1, 8)
    return eights[..., order].reshape(values.shape)


def _unit(bits: int) -> tuple[int, int]:
    """The least number of integers that fills whole bytes, and that of the bytes."""
    whole = math.lcm(bits, 8)
    return whole // bits, whole // 8
