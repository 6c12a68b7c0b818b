"""Saving and loading parameter trees, compressed leaves included, without pickles."""

import concurrent.futures
import importlib
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np

from jcompress.checkpoint.manifest import CheckpointError as CheckpointError
from jcompress.checkpoint.manifest import from_manifest, to_manifest
from jcompress.leaves import named_leaves
from jcompress.tensors import is_compressed

FORMAT = 1
"""The version of the manifest that `save` writes and the newest that `load` reads."""

Path = str | os.PathLike[str]
T = TypeVar("T")


def save(path: Path, tree: Any) -> None:
    """Store a tree of arrays and compressed leaves in the directory `path`.

    The arrays go through Orbax, packed as they are in memory: an int4 leaf takes half
    a byte an element. A JSON manifest beside them holds the names and the static
    fields of compressed leaves.

    The directory holds numbered versions, each with a checksum of every file. A new
    one is written beside the old one, appears by a rename when it is complete, and
    only then is the old one deleted; so at every moment a complete one is there.

    Args:
        path: the directory; made if absent.
        tree: any pytree of JAX and NumPy arrays, typed random keys, Python numbers and
            strings, and compressed leaves. Its leaf names must be unique.

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: `path` holds something else than a checkpoint.
        TypeError: a leaf is of no kind that can be stored; names it.
    """
    ocp = require_orbax()
    folder = pathlib.Path(path).absolute()
    _refuse_foreign(folder)
    arrays: dict[str, np.ndarray[Any, Any] | jax.Array] = {}
    leaves: dict[str, Any] = {}
    for name, leaf in named_leaves(tree):
        if name in leaves:
            raise CheckpointError(
                f"save: two leaves of the tree are named {name!r}; keys that contain "
                "a slash or differ only in type cannot be told apart"
            )
        leaves[name] = to_manifest(leaf, name, arrays)
    # Orbax refuses arrays without elements; the manifest says all there is to them.
    stored = {key: value for key, value in arrays.items() if value.size}
    manifest = {"format": FORMAT, "leaves": leaves, "arrays": list(stored)}
    items = {"manifest": ocp.args.JsonSave(manifest)}
    if stored:
        items["arrays"] = ocp.args.PyTreeSave(stored)
    _to_the_end(lambda: _write(ocp, folder, ocp.args.Composite(**items)))


def load(path: Path, like: Any = None) -> Any:
    """Read back what `save` stored.

    Args:
        path: the directory.
        like: a tree with the wanted structure, of arrays or `jax.ShapeDtypeStruct`.
            Each leaf must have the name, shape and dtype of a stored one; a stored
            compressed leaf takes the place of the dense array it stands for. Arrays
            are put where the template's arrays are.

    Returns:
        `like` with the stored leaves; without `like` nested dicts by leaf name, which
        is what Flax calls variables (entries of lists and tuples are then named by
        their number).

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: no checkpoint is there, it is damaged, or it does not fit
            `like`; the leaf is named.
    """
    ocp = require_orbax()
    folder = pathlib.Path(path).absolute()
    if not folder.is_dir():
        raise CheckpointError(f"load: there is no directory {folder}")
    versions = _versions(folder)
    if not versions:
        raise CheckpointError(f"load: {folder} holds no finished checkpoint")
    manifest, arrays = _to_the_end(lambda: _read(ocp, folder / str(versions[-1])))
    found = {
        name: from_manifest(entry, name, arrays)
        for name, entry in manifest["leaves"].items()
    }
    return _nested(found) if like is None else _placed(found, like)


def exists(path: Path) -> bool:
    """Whether a finished checkpoint is in the directory `path`; it is not read."""
    folder = pathlib.Path(path)
    return folder.is_dir() and bool(_versions(folder))


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


_DRAFT = ".tmp"
_SUMS = "checksums.json"


def _versions(folder: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def _delete(folder: pathlib.Path, *, keep: list[int]) -> None:
    for entry in folder.iterdir():
        if entry.name not in map(str, keep):
            shutil.rmtree(entry)


def _refuse_foreign(folder: pathlib.Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"save: {folder} is a file, not a directory")
    for entry in folder.iterdir():
        number = entry.name.partition(_DRAFT)[0]
        if not (number.isdigit() and entry.is_dir()):
            raise CheckpointError(
                f"save: {folder} holds {entry.name!r}, which no checkpoint contains; "
                "give a directory of its own"
            )


def _sums(version: pathlib.Path) -> dict[str, int]:
    return {
        file.relative_to(version).as_posix(): zlib.crc32(file.read_bytes())
        for file in sorted(version.rglob("*"))
        if file.is_file() and file.name != _SUMS
    }


def _check_files(version: pathlib.Path) -> None:
    """Find damage before Orbax, which reports part of it from background tasks."""
    damaged = f"load: {version} is incomplete or damaged"
    try:
        wanted = dict(json.loads((version / _SUMS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{damaged}: {_SUMS} cannot be read") from error
    found = _sums(version)
    for name in sorted({*wanted, *found}):
        if found.get(name) != wanted.get(name):
            what = "changed" if name in found else "missing"
            raise CheckpointError(f"{damaged}: {name} is {what}")


def _to_the_end(work: Callable[[], T]) -> T:
    """Let Orbax finish before KeyboardInterrupt goes on.

    Its background threads report errors of their own if the interpreter ends while
    they write. An interrupt reaches the main thread, so the work is done in another.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


def _write(ocp: ModuleType, folder: pathlib.Path, items: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    versions = _versions(folder)
    _delete(folder, keep=versions[-1:])
    new = versions[-1] + 1 if versions else 0
    draft = folder / f"{new}{_DRAFT}"
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(draft, args=items)
    (draft / _SUMS).write_text(json.dumps(_sums(draft)))
    draft.rename(folder / str(new))
    _delete(folder, keep=[new])


def _read(
    ocp: ModuleType, version: pathlib.Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    _check_files(version)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:

        def item(name: str, args: Any) -> Any:
            composite = ocp.args.Composite(**{name: args})
            return checkpointer.restore(version, args=composite)[name]

        manifest = item("manifest", ocp.args.JsonRestore())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"load: {version} has format {manifest['format']!r}; this version "
                f"of jcompress reads format {FORMAT}"
            )
        # On the host first: the devices of the saving process may not exist here.
        args = {
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            for name in manifest["arrays"]
        }
        if not args:
            return manifest, {}
        return manifest, item("arrays", ocp.args.PyTreeRestore(restore_args=args))


def _nested(found: dict[str, Any]) -> Any:
    if set(found) == {""}:
        return found[""]
    tree: dict[str, Any] = {}
    for name, leaf in found.items():
        *parents, last = name.split("/")
        place: Any = tree
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or last in place:
            raise CheckpointError(
                f"load: the name {name!r} is also the beginning of another leaf's "
                "name; give load the structure with like="
            )
        place[last] = leaf
    return tree


def _placed(found: dict[str, Any], like: Any) -> Any:
    names = [name for name, _ in named_leaves(like)]
    absent = [name for name in names if name not in found]
    surplus = [name for name in found if name not in names]
    if absent or surplus:
        stored = ", ".join(map(repr, list(found)[:8]))
        which = (
            f"{absent[0]!r} of the template is not stored"
            if absent
            else f"the stored leaf {surplus[0]!r} is not in the template"
        )
        raise CheckpointError(f"load: {which}; stored are {stored}")
    leaves = [_fitted(name, found[name], leaf) for name, leaf in named_leaves(like)]
    structure = jax.tree.structure(like, is_leaf=is_compressed)
    return jax.tree.unflatten(structure, leaves)


def _fitted(name: str, stored: Any, template: Any) -> Any:
    wanted, given = _kind(template), _kind(stored)
    if wanted != given:
        raise CheckpointError(
            f"load: {name!r} is stored as {given}, the template says {wanted}"
        )
    if isinstance(stored, jax.Array) and isinstance(
        template, jax.Array | jax.ShapeDtypeStruct
    ):
        sharding = template.sharding
        return stored if sharding is None else jax.device_put(stored, sharding)
    return stored


def _kind(leaf: Any) -> str:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__
