"""Saving and loading parameter trees, compressed leaves included, without pickles."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from jcompress.checkpoint.manifest import CheckpointError as CheckpointError
from jcompress.checkpoint.manifest import (
    StoredFunction,
    from_manifest,
    function_name,
    is_function,
    to_manifest,
)
from jcompress.checkpoint.storage import (
    DRAFT,
    is_number,
    read,
    require_orbax,
    versions,
    write,
)
from jcompress.kv_cache import KVCache
from jcompress.leaves import path_name
from jcompress.tensors import is_compressed

FORMAT = 1
"""The version of the manifest that `save` writes and the newest that `load` reads."""

Path = str | os.PathLike[str]


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
            strings, compressed leaves, and caches of `jcompress.kv_cache`. Its leaf
            names must be unique. Of functions
            among the leaves, such as the activations of an Equinox module, only the
            name is stored; `load` takes them from its template.

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: `path` holds something else than a checkpoint.
        OSError: it cannot be written, for example since the file system is full; the
            version before is whole.
        TypeError: a leaf cannot be stored; the message names it.
    """
    require_orbax()
    folder = pathlib.Path(path).absolute()
    _refuse_foreign(folder)
    arrays: dict[str, np.ndarray[Any, Any] | jax.Array] = {}
    leaves: dict[str, Any] = {}
    for name, leaf in _named(tree):
        if name in leaves:
            raise CheckpointError(
                f"save: two leaves of the tree are named {name!r}; keys that contain "
                "a slash or differ only in type cannot be told apart"
            )
        # A tree that is one leaf has no name, which some versions of Orbax need.
        leaves[name] = to_manifest(leaf, name or "leaf", arrays)
    # Orbax refuses arrays without elements; the manifest says all there is to them.
    stored = {key: value for key, value in arrays.items() if value.size}
    manifest = {"format": FORMAT, "leaves": leaves, "arrays": list(stored)}
    write(folder, manifest, stored)


def load(path: Path, like: Any = None) -> Any:
    """Read back what `save` stored.

    Args:
        path: the directory.
        like: a tree with the wanted structure, of arrays or `jax.ShapeDtypeStruct`.
            Each leaf must have the name, shape and dtype of a stored one; a stored
            compressed leaf takes the place of the dense array it stands for. Arrays
            are put where the template's arrays are. Functions stay, if their names are
            the stored ones. Needed if the saved tree had functions among its leaves.

    Returns:
        `like` with the stored leaves; without `like` nested dicts by leaf name, which
        is what Flax calls variables (entries of lists and tuples are then named by
        their number).

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: no checkpoint is there, it is damaged, or it does not fit
            `like`; the leaf is named.
    """
    found = load_leaves(path)
    where = f"load: {pathlib.Path(path)}"
    return _nested(found, where) if like is None else _placed(found, like, where)


def load_leaves(path: Path) -> dict[str, Any]:
    """Read the leaves of a checkpoint by their names, whatever tree they are of.

    Args:
        path: the directory.

    Returns:
        Every leaf that was saved. In the place of a function, of which only the name is
        stored, is a value that has it as `name`.

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: no checkpoint is there, or it is damaged.
    """
    require_orbax()
    folder = pathlib.Path(path).absolute()
    if not folder.is_dir():
        raise CheckpointError(f"load: there is no directory {folder}")
    finished = versions(folder)
    if not finished:
        raise CheckpointError(f"load: {folder} holds no finished checkpoint")
    manifest, arrays = read(folder / str(finished[-1]), FORMAT)
    return {
        name: from_manifest(entry, name, arrays)
        for name, entry in manifest["leaves"].items()
    }


def exists(path: Path) -> bool:
    """Whether a finished checkpoint is in the directory `path`; it is not read."""
    folder = pathlib.Path(path)
    return folder.is_dir() and bool(versions(folder))


def _is_whole(node: Any) -> bool:
    """Whether a node of a tree is stored as one leaf, with its static fields."""
    return is_compressed(node) or isinstance(node, KVCache)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_whole)
    return [(path_name(path), leaf) for path, leaf in leaves]


def _refuse_foreign(folder: pathlib.Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"save: {folder} is a file, not a directory")
    for entry in folder.iterdir():
        number = entry.name.partition(DRAFT)[0]
        if not (is_number(number) and entry.is_dir() and not entry.is_symlink()):
            raise CheckpointError(
                f"save: {folder} holds {entry.name!r}, which no checkpoint contains; "
                "give a directory of its own"
            )


def _nested(found: dict[str, Any], where: str) -> Any:
    for name, leaf in found.items():
        if isinstance(leaf, StoredFunction):
            raise CheckpointError(
                f"{where}: {name!r} was {_kind(leaf)}, of which a checkpoint holds the "
                "name only; give load the saved tree's structure with like="
            )
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
                f"{where}: the name {name!r} is also the beginning of another leaf's "
                "name; give load the structure with like="
            )
        place[last] = leaf
    return tree


def _placed(found: dict[str, Any], like: Any, where: str) -> Any:
    wanted = _named(like)
    names = [name for name, _ in wanted]
    absent = [name for name in names if name not in found]
    surplus = [name for name in found if name not in names]
    if absent or surplus:
        stored = ", ".join(map(repr, list(found)[:8]))
        which = (
            f"{absent[0]!r} of the template is not stored"
            if absent
            else f"the stored leaf {surplus[0]!r} is not in the template"
        )
        raise CheckpointError(f"{where}: {which}; stored are {stored}")
    leaves = [_fitted(name, found[name], leaf, where) for name, leaf in wanted]
    structure = jax.tree.structure(like, is_leaf=_is_whole)
    return jax.tree.unflatten(structure, leaves)


def _fitted(name: str, stored: Any, template: Any, where: str) -> Any:
    wanted, given = _kind(template), _kind(stored)
    if wanted != given:
        raise CheckpointError(
            f"{where}: {name!r} is stored as {given}, the template says {wanted}"
        )
    if isinstance(stored, StoredFunction):
        return template
    if isinstance(stored, KVCache):
        return jax.tree.map(_moved, stored, template)
    return _moved(stored, template)


def _moved(stored: Any, template: Any) -> Any:
    """An array, where the template's array is."""
    if isinstance(stored, jax.Array) and isinstance(
        template, jax.Array | jax.ShapeDtypeStruct
    ):
        sharding = template.sharding
        return stored if sharding is None else jax.device_put(stored, sharding)
    return stored


def _kind(leaf: Any) -> str:
    if isinstance(leaf, KVCache):
        keys, values = leaf.keys, leaf.values
        scaled = "" if leaf.key_scales is None else ", keys scaled"
        return (
            f"KVCache{list(keys.numbers.shape[:3])} of {keys.size} {keys.dtype}, keys "
            f"{keys.spec}, values {values.spec}{scaled}"
        )
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    if isinstance(leaf, StoredFunction):
        return f"the function {leaf.name}"
    if is_function(leaf):
        return f"the function {function_name(leaf)}"
    return type(leaf).__name__
