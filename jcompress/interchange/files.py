"""Files that are read without being trusted, and replaced as a whole or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

Host = np.ndarray[Any, Any]

Path = str | os.PathLike[str]


class FileFormatError(ValueError):
    """A file of weights is damaged, or holds what cannot be read.

    The message names the file and the tensor; it is raised before memory is taken for
    what the file claims to hold.
    """


def mapped(path: Path) -> Host:
    """The bytes of a file, uint8, mapped into memory and not yet read.

    Raises:
        FileFormatError: the file is empty or a directory.
        OSError: it is not there, or may not be read.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        raise FileFormatError(f"{place}: a directory; give one file")
    if not place.stat().st_size:
        raise FileFormatError(f"{place}: the file is empty")
    return np.memmap(place, np.uint8, "r").view(np.ndarray)


def refuse_place(path: Path) -> None:
    """Raise OSError if no file can be written at `path`, before work on its content."""
    place = pathlib.Path(path).absolute()
    code = 0
    if place.is_dir():
        code = errno.EISDIR
    elif not place.parent.is_dir():
        code = errno.ENOTDIR if place.parent.exists() else errno.ENOENT
    if code:
        raise OSError(code, os.strerror(code), str(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside `path` that takes its place when all is on the disk.

    If anything is raised on the way, what stood at `path` stays.
    """
    place = pathlib.Path(path).absolute()
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        # Until its directory is on the disk, too, the new name may be lost.
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
