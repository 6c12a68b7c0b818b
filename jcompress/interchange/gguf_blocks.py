"""The blocks of GGUF tensors, as llama.cpp defines them, in NumPy.

Rows of numbers are cut into blocks; what a block of each type holds is in its function.
All numbers of more than a byte are little-endian.
"""

from typing import NamedTuple

import numpy as np

from jcompress.interchange.files import Host
from jcompress.interchange.gguf_types import GgmlType


class Groups(NamedTuple):
    """Groups of numbers that stand for `values * scales + offsets`.

    Attributes:
        values: uint8 [M, groups, size], each below 2^bits.
        scales: float32 [M, groups].
        offsets: float32 [M, groups]; None: -2^(bits - 1) scales.
        bits: bits of a number.
    """

    values: Host
    scales: Host
    offsets: Host | None
    bits: int


def opened(raw: Host, type: GgmlType) -> Groups:
    """The numbers of M blocks.

    Args:
        raw: uint8 [M, bytes of a block].
        type: one of blocks.
    """
    return _OPENED[type](raw)


def _half(raw: Host) -> Host:
    """float16 in bytes [M, 2] -> float32 [M, 1]."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: Host) -> Host:
    """Low halves of all bytes, then the high ones: [..., B] -> [..., 2 B]."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1)


def _q4_0(raw: Host) -> Groups:
    """Scale d; 16 bytes of nibbles: number i in byte i % 16. (q - 8) d."""
    return Groups(_nibbles(raw[:, 2:])[:, None], _half(raw[:, :2]), None, 4)


def _q4_1(raw: Host) -> Groups:
    """Scale d, minimum m; nibbles as of Q4_0. q d + m."""
    return Groups(
        _nibbles(raw[:, 4:])[:, None], _half(raw[:, :2]), _half(raw[:, 2:4]), 4
    )


def _q5_0(raw: Host) -> Groups:
    """Scale d; 32 fifth bits; nibbles as of Q4_0. (q - 16) d."""
    fifth = np.unpackbits(raw[:, 2:6], axis=-1, bitorder="little")
    values = _nibbles(raw[:, 6:]) | (fifth << np.uint8(4))
    return Groups(values[:, None], _half(raw[:, :2]), None, 5)


def _q8_0(raw: Host) -> Groups:
    """Scale d; 32 signed bytes. q d."""
    values = raw[:, 2:] + np.uint8(128)
    return Groups(values[:, None], _half(raw[:, :2]), None, 8)


def _q4_k(raw: Host) -> Groups:
    """Scales d of scales and e of minima; 8 of each, of 6 bits; nibbles. q d s - e m.

    64 numbers are in 32 bytes: the first 32 in their low halves.
    """
    small = raw[:, 4:16]
    first, second, last = small[:, :4], small[:, 4:8], small[:, 8:]
    low = np.uint8(63)
    steps = [first & low, (last & np.uint8(15)) | _above(first)]
    minima = [second & low, (last >> np.uint8(4)) | _above(second)]
    values = _nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    scales = _half(raw[:, :2]) * np.concatenate(steps, -1).astype(np.float32)
    offsets = -_half(raw[:, 2:4]) * np.concatenate(minima, -1).astype(np.float32)
    return Groups(values, scales, offsets, 4)


def _above(small: Host) -> Host:
    """The highest two of 8 bits, as the fifth and sixth."""
    return small >> np.uint8(6) << np.uint8(4)


def _q6_k(raw: Host) -> Groups:
    """128 bytes of low halves, 64 of pairs of bits above, 16 scales, d. (q - 32) s d.

    128 numbers are in 64 low bytes and 32 high ones: number 32 j + i in the low half of
    byte 32 (j % 2) + i (j < 2), or its high half, and in bits 2 j of high byte i.
    """
    low = _nibbles(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
    pairs = (raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    values = (low | (pairs << np.uint8(4))).reshape(-1, 16, 16)
    steps = raw[:, 192:208].view(np.int8).astype(np.float32)
    return Groups(values, _half(raw[:, 208:]) * steps, None, 6)


_OPENED = {
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q4_1: _q4_1,
    GgmlType.Q5_0: _q5_0,
    GgmlType.Q8_0: _q8_0,
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q6_K: _q6_k,
}


def close_q4_0(values: Host, scales: Host) -> Host:
    """Blocks of Q4_0: uint8 [M, 32] below 16, float16 [M] -> uint8 [M, 18]."""
    return np.concatenate([_bytes(scales), _halves(values)], axis=-1)


def close_q4_1(values: Host, scales: Host, minima: Host) -> Host:
    """Blocks of Q4_1: uint8 [M, 32] below 16, float16 [M] twice -> uint8 [M, 20]."""
    parts = [_bytes(scales), _bytes(minima), _halves(values)]
    return np.concatenate(parts, axis=-1)


def close_q8_0(values: Host, scales: Host) -> Host:
    """Blocks of Q8_0: uint8 [M, 32], 128 for 0, float16 [M] -> uint8 [M, 34]."""
    return np.concatenate([_bytes(scales), values - np.uint8(128)], axis=-1)


def close_q4_k(
    values: Host, steps: Host, minima: Host, scale: Host, minimum: Host
) -> Host:
    """Blocks of Q4_K.

    Args:
        values: uint8 [M, 256], below 16.
        steps: uint8 [M, 8], below 64.
        minima: uint8 [M, 8], below 64.
        scale: float16 [M], of the steps.
        minimum: float16 [M], of the minima.

    Returns:
        uint8 [M, 144].
    """
    four, two = np.uint8(4), np.uint8(2)
    top = np.uint8(0x30)
    first = steps[:, :4] | ((steps[:, 4:] & top) << two)
    second = minima[:, :4] | ((minima[:, 4:] & top) << two)
    last = (steps[:, 4:] & np.uint8(15)) | (minima[:, 4:] << four)
    numbers = _halves(values.reshape(-1, 4, 64)).reshape(-1, 128)
    parts = [_bytes(scale), _bytes(minimum), first, second, last, numbers]
    return np.concatenate(parts, axis=-1)


def _bytes(scales: Host) -> Host:
    """float16 [M] -> uint8 [M, 2]."""
    return np.ascontiguousarray(scales, "<f2").view(np.uint8).reshape(-1, 2)


def _halves(values: Host) -> Host:
    """Undo `_nibbles`: [..., 2 B] -> [..., B]."""
    low, high = np.split(values, 2, axis=-1)
    both: Host = low | (high << np.uint8(4))
    return both
