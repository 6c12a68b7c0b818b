"""The container of GGUF written, one tensor in memory at a time."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcompress.interchange.files import Path, replacing
from jcompress.interchange.gguf_types import (
    ALIGNMENT,
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    SCALARS,
    STRING,
    PlannedTensor,
    Tensor,
)

_NUMBERS = {dtype: number for number, dtype in SCALARS.items()}


def write_container(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, PlannedTensor]
) -> None:
    """Write a GGUF file of version 3, one tensor in memory at a time.

    Raises:
        ValueError: a metadatum has no type of the format; it is named.
    """
    alignment = int(metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT))
    if alignment < 8 or alignment % 8:
        raise ValueError(f"{path}: {ALIGNMENT!r} is {alignment}, no multiple of 8")
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        if key == ALIGNMENT:
            value = np.uint32(alignment)
        kind, raw = _encoded(value, f"{path}: metadata {key!r}")
        parts += [_text(key), struct.pack("<I", kind), raw]
    offset = 0
    for name, tensor in tensors.items():
        axes = tensor.shape[::-1]
        parts += [
            _text(name),
            struct.pack(f"<I{len(axes)}Q", len(axes), *axes),
            struct.pack("<IQ", tensor.type.value, offset),
        ]
        size = Tensor(tensor.type, tensor.shape, 0).size
        offset += size + -size % alignment
    head = b"".join(parts)
    with replacing(path) as file:
        file.write(head + bytes(-len(head) % alignment))
        for name, tensor in tensors.items():
            raw = tensor.make().tobytes()
            if len(raw) != Tensor(tensor.type, tensor.shape, 0).size:
                raise AssertionError(f"{name}: {len(raw)} bytes")
            file.write(raw + bytes(-len(raw) % alignment))


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encoded(value: Any, what: str) -> tuple[int, bytes]:
    """The number of the type of a metadatum, and its bytes."""
    if isinstance(value, str):
        return STRING, _text(value)
    if isinstance(value, list | tuple):
        parts = [_encoded(entry, what) for entry in value]
        kinds = {kind for kind, _ in parts}
        if len(kinds) > 1:
            raise ValueError(f"{what} is a list of values of different types")
        # An empty list is one of strings.
        kind = kinds.pop() if kinds else STRING
        head = struct.pack("<IQ", kind, len(parts))
        return ARRAY, head + b"".join(raw for _, raw in parts)
    array = np.asarray(_narrow(value) if isinstance(value, int | float) else value)
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NUMBERS or array.ndim > 1:
        raise ValueError(
            f"{what} is a {type(value).__name__}; it may be a bool, a number, a str, "
            "an array of numbers of one axis, or a list of those"
        )
    raw = array.astype(dtype).tobytes()
    if not array.ndim:
        return _NUMBERS[dtype], raw
    return ARRAY, struct.pack("<IQ", _NUMBERS[dtype], array.size) + raw


def _narrow(value: bool | int | float) -> Any:
    """Numbers of Python as llama.cpp expects them: int32 and float32, if they fit."""
    if isinstance(value, bool | np.generic):
        return value
    if isinstance(value, float):
        return np.float32(value)
    return np.int32(value) if -(2**31) <= value < 2**31 else np.int64(value)
