"""A file of errors that are written as they come, and read again after a break."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError


class ResumeError(MismatchError):
    """A file of errors that cannot be gone on with; the message names it."""


_WORDS = {
    "candidates": "other candidates",
    "model": "another model",
    "data": "other data",
    "measure": "another measure",
}


class Results:
    """Errors by row and candidate, in memory and in a file if there is one.

    The file has a JSON object on each line: what it is about, then one line for each
    error. A line that an interruption cut short is dropped. Numbers that are not
    finite are null, and NaN here.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = None if path is None else pathlib.Path(path)
        self._known: dict[tuple[str, int], float] = {}

    def open(self, about: Mapping[str, str]) -> None:
        """Read what is there, and make sure that it is about the same.

        Raises:
            ResumeError: it is about something else, or no such file.
            OSError: it cannot be read or written.
        """
        path = self._path
        assert path is not None
        text = path.read_text() if path.exists() else ""
        lines = [line for line in text.splitlines(True) if line.endswith("\n")]
        head = {"sensitivity": 1, **about}
        if lines:
            self._check(path, lines[0], head)
            for line in lines[1:]:
                self._read(path, line)
        elif text:
            raise ResumeError(f"{path} is no file of errors; give another one")
        draft = path.with_name(f"{path.name}.tmp")
        try:
            draft.write_text("".join(lines) or json.dumps(head) + "\n")
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def _check(self, path: pathlib.Path, line: str, wanted: Mapping[str, Any]) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "sensitivity" not in found:
            raise ResumeError(f"{path} is no file of errors; give another one")
        for key, value in wanted.items():
            if found.get(key) != value:
                what = _WORDS.get(key, "another version")
                raise ResumeError(
                    f"{path} holds errors of {what}; give another file, or remove it"
                )

    def _read(self, path: pathlib.Path, line: str) -> None:
        try:
            entry = json.loads(line)
            name, number, error = entry["row"], entry["candidate"], entry["error"]
        except (ValueError, KeyError, TypeError) as cause:
            raise ResumeError(
                f"{path} is damaged: {line.strip()[:60]!r} is no error; give another "
                "file, or remove it"
            ) from cause
        self._known[name, number] = math.nan if error is None else error

    def __contains__(self, cell: tuple[str, int]) -> bool:
        return cell in self._known

    def __getitem__(self, cell: tuple[str, int]) -> float:
        return self._known[cell]

    def add(self, row: str, candidate: int, error: float) -> None:
        """Keep an error, safe from an interruption."""
        value = float(error) if math.isfinite(error) else math.nan
        self._known[row, candidate] = value
        if self._path is None:
            return
        told = None if math.isnan(value) else value
        entry = {"row": row, "candidate": candidate, "error": told}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def fingerprint(tree: Any) -> str:
    """A short text that is the same for equal arrays, texts and numbers.

    Args:
        tree: a pytree, or a frozen dataclass of them; functions count by name.
    """
    digest = hashlib.sha256()
    _add(digest, tree)
    return digest.hexdigest()[:16]


def _add(digest: Any, value: Any) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(type(value).__name__.encode())
        for field in dataclasses.fields(value):
            _add(digest, getattr(value, field.name))
        return
    for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        if callable(leaf):
            digest.update(getattr(leaf, "__name__", type(leaf).__name__).encode())
        elif isinstance(leaf, str | int | float | bool | complex):
            digest.update(repr(leaf).encode())
        elif hasattr(leaf, "dtype"):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            host = np.asarray(leaf)
            digest.update(f"{host.dtype}{host.shape}".encode())
            digest.update(host.tobytes())
        else:
            digest.update(type(leaf).__name__.encode())
