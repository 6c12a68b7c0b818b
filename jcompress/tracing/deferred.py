"""A compressed leaf on its way to the site that knows what to do with it."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jcompress.tensors import CompressedTensor
from jcompress.tracing.views import SAME

_PLACES = frozenset(("device_put", "mesh_cast", "reshard", "sharding_constraint"))
"""What places an array by its axes, which rows that are picked from it lack."""


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A compressed leaf on its way to a site, with the views put off until then.

    Attributes:
        name: the leaf's name.
        tensor: the leaf, or the part of it that was cut out.
        pending: primitives and their parameters that are to be applied, in order, to
            the dense array of `tensor`.
        cut: whether slices were taken of the leaf.
    """

    name: str
    tensor: CompressedTensor
    pending: tuple[tuple[Any, Mapping[str, Any]], ...] = ()
    cut: bool = False

    def dense(self) -> jax.Array:
        """The dense array, views applied."""
        return self.viewed(self.tensor.dense())

    def viewed(self, value: jax.Array) -> jax.Array:
        """An array after the views that were put off."""
        for primitive, params in self.pending:
            out = primitive.bind(value, **primitive.get_bind_params(params))
            value = out[0] if primitive.multiple_results else out
        return value

    @property
    def only_cast(self) -> bool:
        """Whether the views keep every element in its place, in another dtype maybe."""
        return all(p.name in SAME - _PLACES for p, _ in self.pending)


def opened(values: Sequence[Any]) -> tuple[list[Any], Callable[[Any], list[Any]]]:
    """The arrays in a list of arrays and deferred leaves, and the way back."""
    arrays: list[Any] = []
    makers: list[Callable[[Any], Any]] = []
    for value in values:
        start = len(arrays)
        if isinstance(value, Deferred):
            found, tree = jax.tree.flatten(value.tensor)
            arrays += found
            part = slice(start, len(arrays))
            makers.append(functools.partial(_again, value, tree, part))
        else:
            arrays.append(value)
            makers.append(operator.itemgetter(start))
    return arrays, lambda flat: [make(flat) for make in makers]


def _again(value: Deferred, tree: Any, part: slice, flat: Any) -> Deferred:
    return dataclasses.replace(value, tensor=jax.tree.unflatten(tree, list(flat[part])))
