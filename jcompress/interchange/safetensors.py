"""The container of safetensors: eight bytes of length, a header in JSON, raw arrays."""

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from jcompress.interchange.files import FileFormatError, Host, Path, mapped, replacing

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "U16": np.uint16,
        "I16": np.int16,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "U32": np.uint32,
        "I32": np.int32,
        "F32": np.float32,
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
    }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000
"""Bytes; the limit that the format sets."""


class Planned(NamedTuple):
    """An array that is made when it is written, so that there is one at a time."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    make: Callable[[], Host]


class _Entry(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int


class SafetensorsFile:
    """The arrays of a safetensors file, mapped into memory.

    Attributes:
        path: the file.
        metadata: what the header says besides the arrays.

    Raises:
        FileFormatError: the header is not of the format, or arrays overlap, leave gaps
            or reach beyond the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = pathlib.Path(path)
        raw = mapped(path)
        if raw.size < 8:
            raise FileFormatError(f"{path}: {raw.size} bytes are no safetensors file")
        length = int.from_bytes(raw[:8].tobytes(), "little")
        if length > min(raw.size - 8, _LONGEST_HEADER):
            raise FileFormatError(
                f"{path}: its header of {length} bytes does not fit in a file of "
                f"{raw.size}; the file is cut short or no safetensors file"
            )
        header = self._header(raw[8 : 8 + length].tobytes())
        self.metadata = self._metadata(header.pop("__metadata__", {}))
        self._data = raw[8 + length :]
        self._entries = {name: self._entry(name, header[name]) for name in header}
        self._check_layout()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of an array."""
        return self._entries[name].dtype

    def read(self, name: str) -> Host:
        """An array, as a view of the file that cannot be written to."""
        dtype, shape, begin = self._entries[name]
        count = math.prod(shape)
        # Of an empty array nothing is there to view.
        flat = (
            np.frombuffer(self._data, dtype, count, begin)
            if count
            else np.empty(0, dtype)
        )
        return flat.reshape(shape)

    def _error(self, name: str, said: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {name!r} {said}")

    def _header(self, text: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) < len(pairs):
                raise ValueError("a name stands twice in it")
            return found

        try:
            header = json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(
                f"{self.path}: its header cannot be read: {error}"
            ) from error
        if not isinstance(header, dict):
            raise FileFormatError(f"{self.path}: its header is no JSON object")
        return header

    def _metadata(self, found: Any) -> dict[str, str]:
        if not isinstance(found, dict) or not all(
            isinstance(value, str) for value in found.values()
        ):
            raise self._error("__metadata__", "is no object of strings")
        return found

    def _entry(self, name: str, said: Any) -> _Entry:
        given = said if isinstance(said, dict) else {}
        kind, shape, ends = (given.get(k) for k in ("dtype", "shape", "data_offsets"))
        if not isinstance(kind, str) or kind not in _DTYPES:
            raise self._error(
                name, f"has the dtype {kind!r}; those that can be read: {list(_DTYPES)}"
            )
        if not _are_sizes(shape) or not _are_sizes(ends) or len(ends) != 2:
            raise self._error(name, f"has shape {shape!r} and data_offsets {ends!r}")
        dtype = _DTYPES[kind]
        wanted = math.prod(shape) * dtype.itemsize
        if ends[1] - ends[0] != wanted:
            raise self._error(
                name,
                f"is {kind} {shape}, {wanted} bytes, but its data_offsets {ends} hold "
                f"{ends[1] - ends[0]}",
            )
        if ends[1] > self._data.size:
            raise self._error(
                name,
                f"ends at byte {ends[1]} of the data, of which the file has "
                f"{self._data.size}; the file is cut short",
            )
        return _Entry(dtype, tuple(shape), ends[0])

    def _check_layout(self) -> None:
        reached = 0
        for name, entry in sorted(self._entries.items(), key=lambda e: e[1].begin):
            size = math.prod(entry.shape) * entry.dtype.itemsize
            if entry.begin != reached and size:
                how = "overlaps another" if entry.begin < reached else "leaves a gap"
                raise self._error(
                    name, f"begins at {entry.begin} of the data and {how}"
                )
            reached += size
        if reached != self._data.size:
            raise FileFormatError(
                f"{self.path}: {self._data.size - reached} bytes of data belong to no "
                "tensor"
            )


def _are_sizes(found: Any) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(
        type(size) is int and 0 <= size < 2**63 for size in found
    )


def planned(array: Any) -> Planned:
    """A whole array, as it is."""
    return Planned(np.dtype(array.dtype), tuple(array.shape), lambda: np.asarray(array))


def write_safetensors(
    path: Path, arrays: Mapping[str, Planned], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, one array in memory at a time.

    Raises:
        ValueError: an array is of a dtype that the format has no name for.
    """
    # Wide items first, so that each array is aligned to its own.
    names = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    reached = 0
    for name in names:
        dtype, shape, _ = arrays[name]
        if dtype not in _NAMES:
            raise ValueError(f"{path}: {name!r} is {dtype}, of which there is no name")
        end = reached + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [reached, end],
        }
        reached = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            dtype, shape, make = arrays[name]
            made = make()
            if made.dtype != dtype or made.shape != shape:
                raise AssertionError(f"{name}: {made.dtype} {made.shape}")
            file.write(np.ascontiguousarray(made).tobytes())
