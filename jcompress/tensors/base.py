"""What every compressed leaf can do: stand in a tree for a dense array."""

import abc
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeGuard

import jax
import numpy as np

from jcompress.tensors.misuse import NotAnArray

Rebuild = Callable[[Sequence[jax.Array]], "CompressedTensor"]
"""Makes the compressed leaf of one slice from one slice of each array."""


class CompressedTensor(NotAnArray, abc.ABC):
    """A pytree that stands in a parameter tree for one dense array.

    Its arrays are the leaves that `jax.tree.map`, `jit`, sharding and checkpoints see;
    code that wants the whole as one leaf passes `is_leaf=is_compressed`.

    Attributes:
        shape: shape of the dense array it stands for.
        dtype: dtype of that array.
    """

    arrays: ClassVar[tuple[str, ...]]
    """The names of the fields that are arrays, or trees of them, or None."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes of the dense array."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements of the dense array."""
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all the arrays that are stored."""
        return sum(
            math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(self)
        )

    @property
    def form(self) -> str:
        """How the leaf is stored, in a few words for tables."""
        return type(self).__name__

    @abc.abstractmethod
    def dense(self) -> jax.Array:
        """The dense array, of `shape` and `dtype`."""

    @abc.abstractmethod
    def unstack(self) -> tuple[list[jax.Array], Rebuild] | None:
        """Open the leaf for a loop over its axis 0, as `lax.scan` needs it.

        Returns:
            Arrays whose leading axis is axis 0 of the dense array, and the function
            that makes, from one slice of each, the tensor that stands for
            `dense()[i]`. None if axis 0 does not lead the storage.
        """

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The arrays, and everything that is not an array.

        A jitted function does this to each of its arguments, on every call.
        """
        arrays, static = _readers(type(self))
        return arrays(self), static(self)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        """The arrays with their names, and everything that is not an array."""
        arrays, static = self.tree_flatten()
        keys = map(jax.tree_util.GetAttrKey, self.arrays)
        return list(zip(keys, arrays, strict=True)), static

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], arrays: Sequence[Any]) -> Self:
        """Put the parts back together.

        Nothing is checked: JAX puts shardings, axes of `vmap` and other placeholders
        through here, and arrays with a leading axis when it leaves a `vmap`.
        """
        tensor = object.__new__(cls)
        for name, value in zip(_static(cls), static, strict=True):
            object.__setattr__(tensor, name, value)
        for name, value in zip(cls.arrays, arrays, strict=True):
            object.__setattr__(tensor, name, value)
        return tensor


@functools.cache
def _static(cls: type[CompressedTensor]) -> tuple[str, ...]:
    """The names of the fields that are not arrays; every class has several."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return tuple(field.name for field in fields if field.name not in cls.arrays)


@functools.cache
def _readers(
    cls: type[CompressedTensor],
) -> tuple[Callable[[Any], tuple[Any, ...]], Callable[[Any], tuple[Any, ...]]]:
    """Functions that read all arrays of a tensor, and all its other fields."""
    return _reader(cls.arrays), _reader(_static(cls))


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    read = operator.attrgetter(*names)
    return read if len(names) > 1 else lambda tensor: (read(tensor),)


def is_compressed(x: object) -> TypeGuard[CompressedTensor]:
    """Whether `x` is a compressed leaf."""
    return isinstance(x, CompressedTensor)
