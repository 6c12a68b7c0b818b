"""How a checkpoint writes leaves down as JSON: the codec of its manifest."""

import dataclasses
import enum
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.checkpoint.registry import class_of, name_of, registered


class CheckpointError(ValueError):
    """A checkpoint is absent, damaged, or does not fit the tree it is loaded into."""


@dataclasses.dataclass(frozen=True)
class StoredFunction:
    """Stands for a function that was a leaf of the saved tree.

    Attributes:
        name: the function's `__name__`.
    """

    name: str


def is_function(value: Any) -> bool:
    """Whether a leaf is a function, which a checkpoint holds by name only."""
    return callable(value) and not hasattr(value, "shape")


def function_name(value: Any) -> str:
    """What is stored of a function."""
    return str(getattr(value, "__name__", type(value).__name__))


def check_manifest(
    manifest: Any,
    version: pathlib.Path,
    format: int,
    stored: Mapping[str, tuple[tuple[int, ...], str]],
) -> None:
    """Refuse a manifest that does not describe what is stored beside it.

    Args:
        manifest: what was read.
        version: its directory, for messages.
        format: the format that can be read.
        stored: shape and dtype of each array that is there.

    Raises:
        CheckpointError: names the array that is wrong.
    """
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != format:
        raise CheckpointError(
            f"load: {version} has format {found!r}; this version of jcompress reads "
            f"format {format}"
        )
    leaves, names = manifest.get("leaves"), manifest.get("arrays")
    if not isinstance(leaves, dict) or not isinstance(names, list):
        raise CheckpointError(f"load: the manifest of {version} is not a checkpoint's")
    for name in names:
        if name not in stored:
            raise CheckpointError(
                f"load: the manifest of {version} names the array {name!r}, which is "
                "not stored"
            )
    for entry in _array_entries(leaves):
        name, said = entry["array"], (entry.get("shape"), entry.get("dtype"))
        if isinstance(said[0], list) and 0 in said[0]:
            continue
        if name not in names:
            raise CheckpointError(f"load: the array {name!r} of {version} is missing")
        shape, dtype = stored[name]
        if said != (list(shape), dtype):
            raise CheckpointError(
                f"load: the array {name!r} of {version} is {dtype}{list(shape)}, the "
                f"manifest says {said[1]}{said[0]}"
            )


def _array_entries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and isinstance(value.get("array"), str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _array_entries(part)


def to_manifest(value: Any, name: str, arrays: dict[str, Any]) -> Any:
    """What stands for `value` in the JSON manifest; its arrays are put into `arrays`.

    Args:
        value: a leaf, or a field of one: an array, a typed random key, a Python
            number or string, None, a dtype, a tuple, an enum member, a dataclass that
            is registered, or a function, of which the name is stored.
        name: the key under which an array goes into `arrays`.
        arrays: filled with the arrays.

    Raises:
        TypeError: `value` is of no known kind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        data = to_manifest(jax.random.key_data(value), name, arrays)
        return {"key": str(jax.random.key_impl(value)), "data": data}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _array_entry(value, name, arrays)
    if isinstance(value, enum.Enum):
        return {"class": _known(type(value)), "member": value.name}
    if isinstance(value, tuple):
        parts = [
            to_manifest(part, f"{name}:{index}", arrays)
            for index, part in enumerate(value)
        ]
        kind = {} if type(value) is tuple else {"class": _known(type(value))}
        return {**kind, "tuple": parts}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: to_manifest(
                getattr(value, field.name), f"{name}:{field.name}", arrays
            )
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"class": _known(type(value)), "fields": fields}
    if isinstance(value, np.dtype) or (
        isinstance(value, type) and issubclass(value, np.generic)
    ):
        return {"dtype": np.dtype(value).name}
    if is_function(value):
        return {"function": function_name(value)}
    raise TypeError(
        f"save: {name!r} is a {type(value).__name__}; a checkpoint holds arrays, typed "
        "random keys, Python numbers and strings, names of functions, and compressed "
        "leaves"
    )


def from_manifest(entry: Any, name: str, arrays: dict[str, Any]) -> Any:
    """The inverse of `to_manifest`.

    Raises:
        CheckpointError: the entry names a class or an array that is unknown.
    """
    try:
        return _decoded(entry, arrays)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"load: the entry of {name!r} in the manifest cannot be read: {error}"
        ) from error


def _decoded(entry: dict[str, Any], arrays: dict[str, Any]) -> Any:
    if "value" in entry:
        return entry["value"]
    if "function" in entry:
        return StoredFunction(str(entry["function"]))
    if "key" in entry:
        data = _decoded(entry["data"], arrays)
        return jax.random.wrap_key_data(data, impl=entry["key"])
    if "array" in entry:
        return _array_of(entry, arrays)
    if "dtype" in entry:
        return jnp.dtype(entry["dtype"])
    if "member" in entry:
        return _class_named(entry["class"])[entry["member"]]
    if "tuple" in entry:
        parts = [_decoded(part, arrays) for part in entry["tuple"]]
        return (
            _class_named(entry["class"])(*parts) if "class" in entry else tuple(parts)
        )
    fields = {key: _decoded(part, arrays) for key, part in entry["fields"].items()}
    return _class_named(entry["class"])(**fields)


def _array_entry(value: Any, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        raise TypeError(
            f"save: {name!r} is spread over several processes; gather it first, for "
            "example with jax.experimental.multihost_utils.process_allgather"
        )
    if name in arrays:
        raise CheckpointError(f"save: two arrays of the tree would be named {name!r}")
    host = np.asarray(value)
    if host.dtype.kind in "OSUMm":
        raise TypeError(
            f"save: {name!r} is an array of {host.dtype}; only numbers and booleans "
            "can be stored"
        )
    arrays[name] = value if isinstance(value, jax.Array) else host
    return {
        "array": name,
        "jax": isinstance(value, jax.Array),
        "shape": list(host.shape),
        "dtype": host.dtype.name,
    }


def _array_of(entry: dict[str, Any], arrays: dict[str, Any]) -> Any:
    name, shape, dtype = entry["array"], tuple(entry["shape"]), entry["dtype"]
    if 0 in shape:
        host = np.zeros(shape, jnp.dtype(dtype))
    elif name not in arrays:
        raise CheckpointError(f"load: the array {name!r} is missing")
    else:
        host = np.asarray(arrays[name])
    if host.shape != shape or host.dtype.name != dtype:
        raise CheckpointError(
            f"load: the array {name!r} is {host.dtype.name}{list(host.shape)}, the "
            f"manifest says {dtype}{list(shape)}"
        )
    return jnp.asarray(host) if entry["jax"] else host


def _known(kind: type) -> str:
    name = name_of(kind)
    if name is None:
        raise TypeError(
            f"save: a checkpoint cannot hold a {kind.__qualname__}, which is not "
            "registered; see jcompress.checkpoint.register"
        )
    return name


def _class_named(name: str) -> Any:
    kind = class_of(name)
    if kind is None:
        raise CheckpointError(
            f"load: the checkpoint holds a {name!r}, which is not known here; register "
            "its class with jcompress.checkpoint.register, or install a newer "
            f"jcompress (known: {', '.join(registered())})"
        )
    return kind
