"""Reading and writing one version of a checkpoint through Orbax."""

import concurrent.futures
import contextlib
import errno
import importlib
import json
import logging
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from jcompress.checkpoint.manifest import CheckpointError, check_manifest

T = TypeVar("T")

DRAFT = ".tmp"
"""What the name of an unfinished version contains after its number."""
_SUMS = "checksums.json"
_LEAST_FREE = 64 << 10
"""Bytes that a checkpoint takes besides its arrays, at least."""


def require_orbax() -> ModuleType:
    """Import `orbax.checkpoint`, before work whose result is to be saved.

    Raises:
        ImportError: it is not installed; the extra that brings it is named.
    """
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "jcompress.checkpoint needs Orbax: pip install 'jcompress[checkpoint]'"
        ) from error


def versions(folder: pathlib.Path) -> list[int]:
    """The numbers of the finished versions, in increasing order."""
    return sorted(
        int(entry.name) for entry in folder.iterdir() if is_number(entry.name)
    )


def is_number(name: str) -> bool:
    """Whether a name is a number as versions are numbered: no 007, no other digits."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def write(
    folder: pathlib.Path, manifest: dict[str, Any], arrays: Mapping[str, Any]
) -> None:
    """Add a version and delete those before it; on failure they stay.

    Raises:
        OSError: it cannot be written, for example since the file system is full.
    """
    ocp = require_orbax()
    items = {"manifest": ocp.args.JsonSave(manifest)}
    if arrays:
        items["arrays"] = ocp.args.PyTreeSave(dict(arrays))
    _to_the_end(lambda: _add_version(ocp, folder, ocp.args.Composite(**items)))


def _add_version(ocp: ModuleType, folder: pathlib.Path, items: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    before = versions(folder)
    _delete(folder, keep=before[-1:])
    new = before[-1] + 1 if before else 0
    draft = folder / f"{new}{DRAFT}"
    try:
        if shutil.disk_usage(folder).free < _LEAST_FREE:
            # Orbax would fail in several tasks at once, each with a traceback.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with _quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as saver:
            saver.save(draft, args=items)
        (draft / _SUMS).write_text(json.dumps(_sums(draft)))
        draft.rename(folder / str(new))
    except Exception as error:
        _delete(folder, keep=before[-1:], ignore_errors=True)
        code = _error_code(error)
        if code is None:
            raise
        # The one line that counts, with the directory that the user named.
        raise OSError(code, os.strerror(code), str(folder)) from error
    _delete(folder, keep=[new])


def read(version: pathlib.Path, format: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the arrays of a version, on the host.

    Raises:
        CheckpointError: a file is missing or changed, or the manifest does not describe
            the arrays that are stored; raised before they are read.
    """
    ocp = require_orbax()
    _check_files(version)

    def load() -> tuple[dict[str, Any], dict[str, Any]]:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:

            def item(name: str, args: Any) -> Any:
                composite = ocp.args.Composite(**{name: args})
                return checkpointer.restore(version, args=composite)[name]

            manifest = item("manifest", ocp.args.JsonRestore())
            check_manifest(manifest, version, format, _stored(ocp, version))
            # On the host first: the devices of the saving process may not exist here.
            args = {
                name: ocp.RestoreArgs(restore_type=np.ndarray)
                for name in manifest["arrays"]
            }
            if not args:
                return manifest, {}
            arrays = item("arrays", ocp.args.PyTreeRestore(restore_args=args))
            return manifest, dict(arrays)

    return _to_the_end(load)


def _stored(ocp: ModuleType, version: pathlib.Path) -> dict[str, tuple[Any, str]]:
    """Shape and name of the dtype of each stored array, without reading it."""
    if not (version / "arrays").is_dir():
        return {}
    found = ocp.PyTreeCheckpointHandler().metadata(version / "arrays")
    return {
        name: (tuple(array.shape), np.dtype(array.dtype).name)
        for name, array in found.tree.items()
    }


def _delete(
    folder: pathlib.Path, *, keep: list[int], ignore_errors: bool = False
) -> None:
    for entry in folder.iterdir():
        if entry.name not in map(str, keep):
            shutil.rmtree(entry, ignore_errors=ignore_errors)


def _sums(version: pathlib.Path) -> dict[str, int]:
    return {
        file.relative_to(version).as_posix(): zlib.crc32(file.read_bytes())
        for file in sorted(version.rglob("*"))
        if file.is_file() and file.name != _SUMS
    }


def _check_files(version: pathlib.Path) -> None:
    """Find damage before Orbax, which reports part of it from background tasks."""
    damaged = f"load: {version} is incomplete or damaged"
    for entry in (version, *version.rglob("*")):
        # Which `save` never writes: what is read would lie somewhere else.
        if entry.is_symlink():
            raise CheckpointError(f"load: {entry} is a link, not part of a checkpoint")
    try:
        wanted = dict(json.loads((version / _SUMS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{damaged}: {_SUMS} cannot be read") from error
    found = _sums(version)
    for name in sorted({*wanted, *found}):
        if found.get(name) != wanted.get(name):
            what = "changed" if name in found else "missing"
            raise CheckpointError(f"{damaged}: {name} is {what}")


def _error_code(error: BaseException | None) -> int | None:
    """The operating system's number of what went wrong; None if it was not that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        # TensorStore has the number in its message only.
        said = re.search(r"os_error_code='(\d+)'", str(error))
        if said:
            return int(said[1])
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's threads from printing the error that is raised anyway."""

    def below_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(below_error)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(below_error)


def _to_the_end(work: Callable[[], T]) -> T:
    """Let Orbax finish before KeyboardInterrupt goes on.

    Its background threads report errors of their own if the interpreter ends while
    they write. An interrupt reaches the main thread, so the work is done in another.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()
