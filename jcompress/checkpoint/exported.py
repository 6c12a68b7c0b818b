"""Compressed leaves and caches in the arguments of programs that `jax.export` writes.

Registered when `jcompress.checkpoint` is imported: a serialized program then takes a
tree with compressed leaves like any other, and a process that loads it has to import
`jcompress.checkpoint` first. What is not an array (shape, format, axes) is written as
the JSON of a checkpoint's manifest.
"""

import json
from typing import Any

from jax import export

from jcompress.checkpoint.manifest import from_manifest, to_manifest
from jcompress.kv_cache import KVCache, Stored
from jcompress.tensors import CompressedTensor


def register_with_export(kind: type[Any], name: str) -> None:
    """Teach `jax.export` a type of compressed leaves, or a tuple in one, once."""
    full = f"jcompress.{name}"
    if issubclass(kind, CompressedTensor | KVCache | Stored):
        export.register_pytree_node_serialization(
            kind,
            serialized_name=full,
            serialize_auxdata=lambda static: _written(static, full),
            deserialize_auxdata=lambda text: _read(text, full),
        )
    elif issubclass(kind, tuple):
        export.register_namedtuple_serialization(kind, serialized_name=full)


def _written(static: Any, name: str) -> bytes:
    return json.dumps(to_manifest(static, name, {})).encode()


def _read(text: bytes | bytearray, name: str) -> Any:
    return from_manifest(json.loads(bytes(text)), name, {})
