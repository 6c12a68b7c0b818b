"""Compressed leaves as state dicts, for `flax.serialization`.

Registered when `jcompress.checkpoint` is imported; from then on `to_state_dict`,
`to_bytes` and `from_bytes` take trees with compressed leaves. The state dict holds the
arrays of a leaf by the names of its fields. As with Flax's own classes everything else
(shape, bits, axes) comes from the target, which is a tree of the same compressed
leaves, such as a freshly initialised model that was quantized by the same rules.
"""

import dataclasses
from typing import Any

from flax import serialization

from jcompress.tensors import CompressedTensor


def register_with_flax(kind: type[CompressedTensor]) -> None:
    """Teach `flax.serialization` a type of compressed leaves, once."""
    serialization.register_serialization_state(
        kind, _to_state, _from_state, override=True
    )


def _to_state(leaf: Any) -> dict[str, Any]:
    return {
        name: serialization.to_state_dict(getattr(leaf, name)) for name in leaf.arrays
    }


def _from_state(target: Any, state: dict[str, Any]) -> Any:
    if set(state) != set(target.arrays):
        raise ValueError(
            f"from_state_dict: a {type(target).__name__} has the arrays "
            f"{list(target.arrays)}, the state {sorted(state)}"
        )
    # Making the leaf anew checks that the arrays fit the target's shape.
    return dataclasses.replace(
        target,
        **{
            name: serialization.from_state_dict(
                getattr(target, name), state[name], name=name
            )
            for name in target.arrays
        },
    )
