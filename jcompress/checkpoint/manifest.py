"""How a checkpoint writes leaves down as JSON: the codec of its manifest."""

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors import CompressedTensor


class CheckpointError(ValueError):
    """A checkpoint is absent, damaged, or does not fit the tree it is loaded into."""


def to_manifest(value: Any, name: str, arrays: dict[str, Any]) -> Any:
    """What stands for `value` in the JSON manifest; its arrays are put into `arrays`.

    Args:
        value: a leaf, or a field of one: an array, a typed random key, a Python
            number or string, None, a dtype, a tuple, an enum member or a dataclass
            of `jcompress.tensors` or `jcompress.quantization.formats`.
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
    raise TypeError(
        f"save: {name!r} is a {type(value).__name__}; a checkpoint holds arrays, typed "
        "random keys, Python numbers and strings, and compressed leaves"
    )


def from_manifest(entry: Any, name: str, arrays: dict[str, Any]) -> Any:
    """The inverse of `to_manifest`.

    Raises:
        CheckpointError: the entry speaks of a class or an array that is not there.
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
    if _classes().get(kind.__name__) is not kind:
        raise TypeError(f"save: a checkpoint cannot hold a {kind.__qualname__}")
    return kind.__name__


def _class_named(name: str) -> Any:
    known = _classes()
    if name not in known:
        raise CheckpointError(
            f"load: the checkpoint holds a {name}, which is not known here; import "
            f"what defines it first, or install a newer jcompress (known: "
            f"{', '.join(sorted(known))})"
        )
    return known[name]


def _classes() -> dict[str, type[Any]]:
    """The classes whose instances a manifest may name; nothing else is ever made."""
    from jcompress.tensors import formats, numbers

    kinds: list[type[Any]] = [numbers.Range, *_descendants(CompressedTensor)]
    kinds += [
        kind
        for kind in vars(formats).values()
        if isinstance(kind, type) and kind.__module__ == formats.__name__
    ]
    return {kind.__name__: kind for kind in kinds}


def _descendants(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)
