"""Make classes known to whatever stores trees: checkpoints, Flax and `jax.export`."""

from typing import Any, TypeVar

from jcompress.checkpoint.exported import register_with_export
from jcompress.checkpoint.flax_state import register_with_flax
from jcompress.checkpoint.registry import add, classes
from jcompress.tensors import CompressedTensor

T = TypeVar("T", bound=type[Any])


def register(kind: T, *, name: str | None = None) -> T:
    """Let checkpoints hold a class of your own: a compressed leaf, or a field of one.

    A leaf type is made known to `flax.serialization` and `jax.export` as well. Call
    it, or use it as a decorator, in every program that saves or loads such leaves.

    Args:
        kind: a frozen dataclass, NamedTuple or enum; a subclass of `CompressedTensor`
            for a leaf.
        name: what the file calls it; by default the name of the class.

    Returns:
        The class.

    Raises:
        ValueError: another class has this name.
    """
    name = kind.__name__ if name is None else name
    known = classes().get(name) is kind
    add(kind, name)
    if not known:
        _tell_others(kind, name)
    return kind


def _tell_others(kind: type[Any], name: str) -> None:
    if issubclass(kind, CompressedTensor):
        register_with_flax(kind)
    register_with_export(kind, name)


for _name, _kind in classes().items():
    _tell_others(_kind, _name)
