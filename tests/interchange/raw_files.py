"""Files of weights written bit by bit, by other means than the library's."""

import json
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

KINDS = {
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "float16": "F16",
    "float32": "F32",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
}


def safetensors_bytes(
    arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        ends = [len(data), len(data) + len(raw)]
        kind = KINDS[array.dtype.name]
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": ends,
        }
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_raw(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, found without the library."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    names = {kind: name for name, kind in KINDS.items()}
    found = {}
    for name, said in header.items():
        dtype_name = names[said["dtype"]]
        dtype = np.dtype(getattr(ml_dtypes, dtype_name, None) or dtype_name)
        begin, end = said["data_offsets"]
        part = raw[8 + length + begin : 8 + length + end]
        found[name] = np.frombuffer(part, dtype).reshape(said["shape"])
    return found


def pack_line(numbers: list[int], bits: int) -> list[int]:
    """One line of numbers as signed words of 32 bits, through one long integer."""
    whole = 0
    for place, number in enumerate(numbers):
        for bit in range(bits):
            whole |= ((number >> bit) & 1) << (place * bits + bit)
    count = -(-len(numbers) * bits // 32)
    words = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def pack_axis(numbers: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """A matrix of numbers packed along one of its axes, int32."""
    lines = numbers.T if axis == 0 else numbers
    words = np.array([pack_line([int(n) for n in line], bits) for line in lines])
    return (words.T if axis == 0 else words).astype(np.int32)


def unpack_line(words: list[int], size: int, bits: int) -> list[int]:
    whole = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    return [(whole >> (bits * i)) & ((1 << bits) - 1) for i in range(size)]
