"""GGUF files and blocks of them made and read number by number."""

import struct

import numpy as np


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def tensor_info(name: str, sizes: list[int], kind: int, offset: int) -> bytes:
    head = text(name) + struct.pack("<I", len(sizes))
    return head + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)


def gguf_bytes(
    metadata: list[bytes],
    infos: list[bytes],
    data: bytes,
    *,
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(metadata))
    head += b"".join(metadata) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def half(raw: bytes) -> np.float32:
    return np.float32(struct.unpack("<e", raw)[0])


def decode(raw: bytes, kind: str) -> list[np.float32]:
    """The numbers of one block, as the definitions of ggml read."""
    d = half(raw[-2:] if kind == "Q6_K" else raw[:2])
    if kind == "Q8_0":
        return [
            d * np.float32(struct.unpack_from("<b", raw, 2 + i)[0]) for i in range(32)
        ]
    if kind in ("Q4_0", "Q4_1"):
        start, shift = (2, 8) if kind == "Q4_0" else (4, 0)
        m = np.float32(0) if kind == "Q4_0" else half(raw[2:4])
        nibbles = [raw[start + i % 16] >> (4 * (i // 16)) & 15 for i in range(32)]
        return [d * np.float32(q - shift) + m for q in nibbles]
    if kind == "Q5_0":
        (fifth,) = struct.unpack_from("<I", raw, 2)
        low = [raw[6 + i % 16] >> (4 * (i // 16)) & 15 for i in range(32)]
        return [
            d * np.float32((q | (fifth >> i & 1) << 4) - 16) for i, q in enumerate(low)
        ]
    numbers = []
    if kind == "Q4_K":
        dmin, small = half(raw[2:4]), raw[4:16]
        for i in range(256):
            j = i // 32
            if j < 4:
                scale, minimum = small[j] & 63, small[j + 4] & 63
            else:
                scale = small[j + 4] & 15 | small[j - 4] >> 6 << 4
                minimum = small[j + 4] >> 4 | small[j] >> 6 << 4
            q = raw[16 + 32 * (i // 64) + i % 32] >> (4 * (j % 2)) & 15
            step = d * np.float32(scale)
            numbers.append(step * np.float32(q) - dmin * np.float32(minimum))
        return numbers
    assert kind == "Q6_K"
    for i in range(256):
        part, rest = divmod(i, 128)
        row, column = divmod(rest, 32)
        low = raw[64 * part + 32 * (row % 2) + column] >> (4 * (row // 2)) & 15
        high = raw[128 + 32 * part + column] >> (2 * row) & 3
        (scale,) = struct.unpack_from("<b", raw, 192 + i // 16)
        numbers.append(d * np.float32(scale) * np.float32((low | high << 4) - 32))
    return numbers
