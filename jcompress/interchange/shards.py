"""The arrays of a model in one or several safetensors files, and checks of them."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jcompress.interchange.files import FileFormatError, Host, Path
from jcompress.interchange.safetensors import SafetensorsFile


class Shards:
    """All arrays of a file, or of the safetensors files of a folder.

    Large models are cut into files between any two arrays, those of one layer included.

    Attributes:
        path: the file or the folder.
        folder: where files of settings are looked for.
        metadata: what the headers say besides arrays.

    Raises:
        FileFormatError: a file is damaged, two have arrays of one name, or the folder
            has none.
    """

    def __init__(self, path: Path) -> None:
        self.path = pathlib.Path(path)
        whole = self.path.is_dir()
        self.folder = self.path if whole else self.path.parent
        paths = sorted(self.path.glob("*.safetensors")) if whole else [self.path]
        if not paths:
            raise FileFormatError(f"{path}: the folder has no '*.safetensors'")
        self.metadata: dict[str, str] = {}
        self._files: dict[str, SafetensorsFile] = {}
        for file in map(SafetensorsFile, paths):
            self.metadata |= file.metadata
            for name in file:
                if name in self._files:
                    raise self.error(name, f"is in {file.path.name}, too")
                self._files[name] = file

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return self._files[name].shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of an array."""
        return self._files[name].dtype(name)

    def read(self, name: str) -> Host:
        """An array, as a view of its file that cannot be written to."""
        return self._files[name].read(name)

    def error(self, name: str, said: str) -> FileFormatError:
        """The error about one tensor, with the file that has it."""
        path = self._files[name].path if name in self._files else self.path
        return FileFormatError(f"{path}: {name!r} {said}")

    def need(self, name: str, dtypes: tuple[Any, ...], shape: tuple[int, ...]) -> Host:
        """An array that must be there, of one of these dtypes and of this shape."""
        if name not in self:
            raise self.error(name, "is missing")
        if self.shape(name) != shape or self.dtype(name) not in map(np.dtype, dtypes):
            kinds = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
            raise self.error(
                name,
                f"is {self.dtype(name)} {list(self.shape(name))}, not {kinds} "
                f"{list(shape)}",
            )
        return self.read(name)
