"""The container of GGUF read: metadata, names and shapes of tensors, aligned data."""

import pathlib
from typing import Any

import numpy as np

from jcompress.interchange.files import FileFormatError, Host, Path, mapped
from jcompress.interchange.gguf_types import (
    ALIGNMENT,
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MOST_AXES,
    SCALARS,
    STRING,
    GgmlType,
    Tensor,
)

_DEEPEST = 4
"""Arrays within arrays of metadata."""
_LONGEST_NAME = 2**16


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
        if self._take(4, "its first four bytes").tobytes() != MAGIC:
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
        if kind in SCALARS:
            dtype = SCALARS[kind]
            value = self._take(dtype.itemsize, what).view(dtype)[0]
            return bool(value) if dtype == np.bool_ else value
        if kind == STRING:
            return self._string(what)
        if kind != ARRAY or depth == _DEEPEST:
            raise self._error(f"{what} is of type {kind}, which cannot be read")
        inner = self._number("<u4", what)
        count = self._number("<u8", what)
        if inner in SCALARS:
            dtype = SCALARS[inner]
            return self._take(count * dtype.itemsize, what).view(dtype).copy()
        # A string takes 8 bytes at least, an array 12.
        if 8 * count > self._raw.size - self._place:
            raise self._error(f"{what} has {count} entries, more than fit in the file")
        return [self._value(inner, what, depth + 1) for _ in range(count)]

    def _info(self, number: int) -> tuple[str, Tensor]:
        name = self._string(f"the name of tensor {number}", _LONGEST_NAME)
        what = f"tensor {name!r}"
        axes = self._number("<u4", what)
        if axes > MOST_AXES:
            raise self._error(f"{what} has {axes} axes, more than {MOST_AXES}")
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
        alignment = self.metadata.get(ALIGNMENT, np.uint32(DEFAULT_ALIGNMENT))
        if not isinstance(alignment, np.integer) or alignment < 1 or alignment % 8:
            raise self._error(
                f"metadata {ALIGNMENT!r} is {alignment!r}, no multiple of 8"
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
