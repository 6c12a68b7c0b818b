"""What every compressed leaf can do: stand in a tree for a dense array."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import numpy as np

Rebuild = Callable[[Sequence[jax.Array]], "CompressedTensor"]
"""Makes the compressed leaf of one slice from one slice of each array."""


class CompressedTensor(abc.ABC):
    """A pytree that stands in a parameter tree for one dense array.

    Its arrays are the leaves that `jax.tree.map`, `jit`, sharding and checkpoints see;
    code that wants the whole as one leaf passes `is_leaf=is_compressed`.

    Attributes:
        shape: shape of the dense array it stands for.
        dtype: dtype of that array.
    """

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


def is_compressed(x: object) -> TypeGuard[CompressedTensor]:
    """Whether `x` is a compressed leaf."""
    return isinstance(x, CompressedTensor)
