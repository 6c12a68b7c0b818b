"""`RemovedArray`: what stands in a tree for an array that was left out."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jcompress.errors import MismatchError
from jcompress.tensors.base import CompressedTensor


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=(), meta_fields=("shape", "dtype")
)
@dataclasses.dataclass(frozen=True)
class RemovedArray(CompressedTensor):
    """Stands for an array of a block that is left out; stores nothing.

    Attributes:
        shape: shape of the array.
        dtype: its dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def dense(self) -> jax.Array:
        """An array that was removed has no dense form.

        Raises:
            MismatchError: always.
        """
        raise MismatchError(
            f"an array {np.dtype(self.dtype).name}{list(self.shape)} was removed with "
            "its block; run the function through skipped(fn, blocks)"
        )

    def unstack(self) -> None:
        """A loop cannot open it."""
        return None
