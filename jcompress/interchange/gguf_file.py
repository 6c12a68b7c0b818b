"""The container of GGUF: metadata, the tensors' names and shapes, aligned data."""

import enum
import math
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jcompress.interchange.files import FileFormatError, Host, Path, mapped, replacing

_MAGIC = b"GGUF"
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MOST_AXES = 4
_DEEPEST = 4
"""Arrays within arrays of metadata."""
_LONGEST_NAME = 2**16

_KINDS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_SCALARS: dict[int, np.dtype[Any]] = {n: np.dtype(kind) for n, kind in _KINDS.items()}
_NUMBERS = {dtype: number for number, dtype in _SCALARS.items()}
_STRING, _ARRAY = 8, 9


class GgmlType(enum.Enum):
    """How the numbers of a tensor in a GGUF file are stored.

    The types of blocks are those of llama.cpp; each line says how they are read.

    Attributes:
        F32: float32.
        F16: float16.
        BF16: bfloat16.
        F64: float64.
        I8: int8.
        I16: int16.
        I32: int32.
        I64: int64.
        Q4_0: 4 bits, a scale for 32; a `QTensor`.
        Q4_1: 4 bits, a scale and a minimum for 32; a `QTensor` if all minima are whole
            numbers of steps, else dense.
        Q5_0: 5 bits, a scale for 32; a `QTensor`.
        Q8_0: 8 bits, a scale for 32; a `QTensor`.
        Q4_K: 4 bits, a scale and a minimum of 6 bits for 32, a scale of those for 256;
            as of Q4_1.
        Q6_K: 6 bits, a scale of 8 bits for 16, a scale of those for 256; a `QTensor`.
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q8_0 = 8
    Q4_K = 12
    Q6_K = 14
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    BF16 = 30

    @property
    def block(self) -> tuple[int, int]:
        """How many numbers a block has, and how many bytes."""
        return _BLOCKS.get(self.name) or (1, PLAIN[self].itemsize)


PLAIN: dict[GgmlType, np.dtype[Any]] = {
    GgmlType.F32: np.dtype(np.float32),
    GgmlType.F16: np.dtype(np.float16),
    GgmlType.BF16: np.dtype(ml_dtypes.bfloat16),
    GgmlType.F64: np.dtype(np.float64),
    GgmlType.I8: np.dtype(np.int8),
    GgmlType.I16: np.dtype(np.int16),
    GgmlType.I32: np.dtype(np.int32),
    GgmlType.I64: np.dtype(np.int64),
}
"""The types that are arrays as they are."""

_BLOCKS = {
    "Q4_0": (32, 2 + 16),
    "Q4_1": (32, 2 + 2 + 16),
    "Q5_0": (32, 2 + 4 + 16),
    "Q8_0": (32, 2 + 32),
    "Q4_K": (256, 2 + 2 + 12 + 128),
    "Q6_K": (256, 128 + 64 + 16 + 2),
}


class PlannedTensor(NamedTuple):
    """A tensor whose bytes are made when they are written.

    Attributes:
        type: how it is stored.
        shape: its axes, that of the blocks last.
        make: its bytes, uint8 of any shape.
    """

    type: GgmlType
    shape: tuple[int, ...]
    make: Callable[[], Host]


class Tensor(NamedTuple):
    """A tensor of a file.

    Attributes:
        type: how it is stored.
        shape: its axes, that of the blocks last.
        begin: where its bytes begin in the file.
    """

    type: GgmlType
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Its bytes."""
        count, size = self.type.block
        return math.prod(self.shape) // count * size


class GgufContainer:
    """The metadata and the tensors of a GGUF file, mapped into memory.

    Attributes:
        path: the file.
        metadata: what the file says of the model.
        tensors: by name.

    Raises:
        FileFormatError: the file is not of the format, or damaged; tensors are of an
            unknown type, overlap, or reach beyond the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = pathlib.Path(path)
        self._raw = mapped(path)
        self._place = 0
        self.metadata: dict[str, Any] = {}
        if self._take(4, "its first four bytes").tobytes() != _MAGIC:
            raise self._error("is no GGUF file: it does not begin with 'GGUF'")
        version = self._number("<u4", "its version")
        if version not in (2, 3):
            raise self._error(
                f"is of version {version}; little-endian files of version 2 and 3 can "
                "be read"
            )
        tensors = self._number("<u8", "its number of tensors")
        keys = self._number("<u8", "its number of metadata")
        for number in range(keys):
            key = self._string(f"the name of metadata {number}", _LONGEST_NAME)
            if key in self.metadata:
                raise self._error(f"metadata {key!r} stands twice")
            kind = self._number("<u4", f"metadata {key!r}")
            self.metadata[key] = self._value(kind, f"metadata {key!r}", 0)
        infos = [self._info(number) for number in range(tensors)]
        self.tensors = self._placed(infos)

    def read(self, name: str) -> Host:
        """The bytes of a tensor, uint8, a view of the file."""
        tensor = self.tensors[name]
        return self._raw[tensor.begin : tensor.begin + tensor.size]

    def _error(self, said: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {said}")

    def _take(self, size: int, what: str) -> Host:
        end = self._place + size
        if end > self._raw.size:
            raise self._error(
                f"{what} reaches to byte {end} of {self._raw.size}; the file is cut "
                "short or damaged"
            )
        taken = self._raw[self._place : end]
        self._place = end
        return taken

    def _number(self, dtype: str, what: str) -> int:
        kind = np.dtype(dtype)
        return int(self._take(kind.itemsize, what).view(kind)[0])

    def _string(self, what: str, longest: int = 2**63) -> str:
        size = self._number("<u8", what)
        if size > longest:
            raise self._error(f"{what} has {size} bytes, more than {longest}")
        try:
            return self._take(size, what).tobytes().decode()
        except UnicodeDecodeError as error:
            raise self._error(f"{what} is not UTF-8") from error

    def _value(self, kind: int, what: str, depth: int) -> Any:
        if kind in _SCALARS:
            dtype = _SCALARS[kind]
            value = self._take(dtype.itemsize, what).view(dtype)[0]
            return bool(value) if dtype == np.bool_ else value
        if kind == _STRING:
            return self._string(what)
        if kind != _ARRAY or depth == _DEEPEST:
            raise self._error(f"{what} is of type {kind}, which cannot be read")
        inner = self._number("<u4", what)
        count = self._number("<u8", what)
        if inner in _SCALARS:
            dtype = _SCALARS[inner]
            return self._take(count * dtype.itemsize, what).view(dtype).copy()
        # A string takes 8 bytes at least, an array 12.
        if 8 * count > self._raw.size - self._place:
            raise self._error(f"{what} has {count} entries, more than fit in the file")
        return [self._value(inner, what, depth + 1) for _ in range(count)]

    def _info(self, number: int) -> tuple[str, Tensor]:
        name = self._string(f"the name of tensor {number}", _LONGEST_NAME)
        what = f"tensor {name!r}"
        axes = self._number("<u4", what)
        if axes > _MOST_AXES:
            raise self._error(f"{what} has {axes} axes, more than {_MOST_AXES}")
        sizes = [self._number("<u8", what) for _ in range(axes)]
        kind = self._number("<u4", what)
        begin = self._number("<u8", what)
        try:
            type = GgmlType(kind)
        except ValueError as error:
            raise self._error(
                f"{what} is of type {kind}; those that can be read: "
                f"{[type.name for type in GgmlType]}"
            ) from error
        count, _ = type.block
        if count > 1 and (not sizes or sizes[0] % count):
            raise self._error(
                f"{what} is {type.name} {sizes[::-1]}; its last axis is not of whole "
                f"blocks of {count}"
            )
        return name, Tensor(type, tuple(sizes[::-1]), begin)

    def _placed(self, infos: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors, whose places in the data are those in the file from now on."""
        alignment = self.metadata.get(_ALIGNMENT, np.uint32(_DEFAULT_ALIGNMENT))
        if not isinstance(alignment, np.integer) or alignment < 1 or alignment % 8:
            raise self._error(
                f"metadata {_ALIGNMENT!r} is {alignment!r}, no multiple of 8"
            )
        start = self._place + -self._place % int(alignment)
        tensors: dict[str, Tensor] = {}
        for name, info in infos:
            offset = info.begin
            tensor = info._replace(begin=start + offset)
            end = tensor.begin + tensor.size
            if name in tensors:
                raise self._error(f"tensor {name!r} stands twice")
            if offset % int(alignment):
                raise self._error(
                    f"tensor {name!r} begins at {offset} of the data, which is not "
                    f"aligned to {alignment}"
                )
            if end > self._raw.size:
                raise self._error(
                    f"tensor {name!r} reaches to byte {end} of {self._raw.size}; the "
                    "file is cut short or damaged"
                )
            tensors[name] = tensor
        reached = start
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            if tensor.size and tensor.begin < reached:
                raise self._error(f"tensor {name!r} overlaps another")
            reached = max(reached, tensor.begin + tensor.size)
        return tensors


def write_container(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, PlannedTensor]
) -> None:
    """Write a GGUF file of version 3, one tensor in memory at a time.

    Raises:
        ValueError: a metadatum has no type of the format; it is named.
    """
    alignment = int(metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT))
    if alignment < 8 or alignment % 8:
        raise ValueError(f"{path}: {_ALIGNMENT!r} is {alignment}, no multiple of 8")
    parts = [_MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        if key == _ALIGNMENT:
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
        return _STRING, _text(value)
    if isinstance(value, list | tuple):
        parts = [_encoded(entry, what) for entry in value]
        kinds = {kind for kind, _ in parts}
        if len(kinds) > 1:
            raise ValueError(f"{what} is a list of values of different types")
        # An empty list is one of strings.
        kind = kinds.pop() if kinds else _STRING
        head = struct.pack("<IQ", kind, len(parts))
        return _ARRAY, head + b"".join(raw for _, raw in parts)
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
    return _ARRAY, struct.pack("<IQ", _NUMBERS[dtype], array.size) + raw


def _narrow(value: bool | int | float) -> Any:
    """Numbers of Python as llama.cpp expects them: int32 and float32, if they fit."""
    if isinstance(value, bool | np.generic):
        return value
    if isinstance(value, float):
        return np.float32(value)
    return np.int32(value) if -(2**31) <= value < 2**31 else np.int64(value)
