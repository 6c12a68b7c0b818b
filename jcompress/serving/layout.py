"""The file of an exported model: a program of `jax.export`, and what describes it.

    the bytes of jax.export   the description, JSON in UTF-8   its length   mark
                                                               8 bytes      8 bytes

The program comes first, and who reads it stops at its end. So one line runs the file in
a process that has JAX alone: `jax.export.deserialize(path.read_bytes()).call(x)`. The
description stands at the end, where a file that is cut off has none.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FORMAT = 1
"""The version of the description; it changes when a key changes its meaning."""

MARK = b"\x89JCPROG\n"
_LENGTH = 8


class ProgramError(ValueError):
    """A file, or an input, that is not what is needed; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """An input or an output of a program.

    Attributes:
        name: what requests call it.
        shape: sizes of the axes; a string is a size that each call chooses.
        dtype: its name in NumPy.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "ArraySpec":
        """What `to_json` gave."""
        shape = tuple(n if isinstance(n, int) else str(n) for n in found["shape"])
        return cls(name=str(found["name"]), shape=shape, dtype=str(found["dtype"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a file says of its program.

    Attributes:
        inputs: the arrays that it takes, in order.
        outputs: the arrays that it gives, in order.
        platforms: what it is compiled for, such as "cpu".
        kernels: the compiled kernels that it calls; empty if it is portable.
        layout: version of the arrays that these kernels agree on.
        jcompress: the version that wrote it.
        jax: the version of JAX that wrote it.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    platforms: tuple[str, ...]
    kernels: tuple[str, ...]
    layout: int
    jcompress: str
    jax: str

    @property
    def kind(self) -> str:
        """Whether it needs the compiled kernels: "native" or "portable"."""
        return "native" if self.kernels else "portable"

    @property
    def batch(self) -> int | str | None:
        """The first size of all inputs and outputs; None if they have none in common.

        A string is open: each call chooses it.
        """
        firsts = {each.shape[:1] for each in (*self.inputs, *self.outputs)}
        first = firsts.pop() if len(firsts) == 1 else ()
        return first[0] if first else None

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return {
            "format": FORMAT,
            "jcompress": self.jcompress,
            "jax": self.jax,
            "kind": self.kind,
            "platforms": list(self.platforms),
            "kernels": list(self.kernels),
            "layout": self.layout,
            "inputs": [each.to_json() for each in self.inputs],
            "outputs": [each.to_json() for each in self.outputs],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Description":
        """What `to_json` gave."""
        return cls(
            inputs=tuple(map(ArraySpec.from_json, found["inputs"])),
            outputs=tuple(map(ArraySpec.from_json, found["outputs"])),
            platforms=tuple(map(str, found["platforms"])),
            kernels=tuple(map(str, found["kernels"])),
            layout=int(found["layout"]),
            jcompress=str(found["jcompress"]),
            jax=str(found["jax"]),
        )


def packed(program: bytes | bytearray, description: Description) -> bytes:
    """The bytes of a file."""
    about = {
        **description.to_json(),
        "bytes": len(program),
        "crc32": zlib.crc32(program),
    }
    text = json.dumps(about).encode()
    return bytes(program) + text + len(text).to_bytes(_LENGTH, "little") + MARK


def unpacked(data: bytes, name: str) -> tuple[bytes, Description]:
    """The program of a file, and its description.

    Args:
        data: the bytes of the file.
        name: the file, for messages.

    Raises:
        ProgramError: it is cut off, damaged, of another kind or of a newer version.
    """
    end = len(data) - len(MARK) - _LENGTH
    if end < 0 or data[end + _LENGTH :] != MARK:
        raise ProgramError(
            f"{name}: its end is missing, or it is no program that jcompress exported "
            f"({len(data):,} bytes); copy or export it again"
        )
    length = int.from_bytes(data[end : end + _LENGTH], "little")
    try:
        about = json.loads(data[max(end - length, 0) : end])
        made, size = int(about["format"]), int(about["bytes"])
        by = str(about["jcompress"])
        checksum = int(about["crc32"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProgramError(f"{name} is damaged: it has no description") from error
    if made > FORMAT:
        raise ProgramError(
            f"{name} was made by a newer version: jcompress {by}, format {made}; this "
            f"one reads format {FORMAT}; update jcompress"
        )
    if size != end - length:
        raise ProgramError(
            f"{name} is damaged: its program has {end - length:,} bytes instead of "
            f"{size:,}"
        )
    program = data[:size]
    if zlib.crc32(program) != checksum:
        raise ProgramError(f"{name} is damaged: its checksum differs")
    try:
        return program, Description.from_json(about)
    except (ValueError, KeyError, TypeError) as error:
        raise ProgramError(f"{name} is damaged: its description is incomplete") from (
            error
        )


def check_arrays(specs: Sequence[ArraySpec], given: Sequence[Any]) -> None:
    """Refuse arrays that a program does not take; nothing is computed.

    Args:
        specs: what it takes.
        given: NumPy or JAX arrays.

    Raises:
        ProgramError: names the input, what arrived and what is taken.
    """
    if len(given) != len(specs):
        wanted = ", ".join(f"{each.name!r} {each}" for each in specs)
        raise ProgramError(f"{len(given)} inputs arrived; it takes {wanted}")
    sizes: dict[str, int] = {}
    for spec, array in zip(specs, given, strict=True):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            kind = type(array).__name__
            raise ProgramError(
                f"input {spec.name!r} is of type {kind}; it takes {spec}"
            )
        arrived = f"{np.dtype(array.dtype).name} [{', '.join(map(str, array.shape))}]"
        if not _fits(spec, array, sizes):
            bound = "".join(
                f", with {name} = {size} as in the inputs before it"
                for name, size in sizes.items()
                if name in spec.shape
            )
            raise ProgramError(
                f"input {spec.name!r} is {arrived}; it takes {spec}{bound}"
            )


def _fits(spec: ArraySpec, array: Any, sizes: dict[str, int]) -> bool:
    """Whether it fits; sizes that are free are bound to what arrived."""
    if np.dtype(array.dtype).name != spec.dtype or len(array.shape) != len(spec.shape):
        return False
    known = dict(sizes)
    for size, arrived in zip(spec.shape, array.shape, strict=True):
        if isinstance(size, int):
            if size != arrived:
                return False
        elif arrived < 1 or (
            size.isidentifier() and known.setdefault(size, arrived) != arrived
        ):
            return False
    sizes |= known
    return True
