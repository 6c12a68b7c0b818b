"""Rectangles of the matrix."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.pruning._host import mean_of_first
from jcompress.pruning.patterns.base import Pattern, check_divides, is_whole
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix


@dataclasses.dataclass(frozen=True)
class Block(Pattern):
    """Rectangles of the canonical matrix [outputs N, inputs K] of the leaf.

    Attributes:
        shape: outputs and inputs of a block, each of which divides its axis.

    Raises:
        ValueError: the shape is not two positive integers.

    References:
        Narang et al. 2017, "Block-Sparse Recurrent Neural Networks".
    """

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        good = isinstance(self.shape, tuple) and len(self.shape) == 2
        if not good or not all(is_whole(size) and size > 0 for size in self.shape):
            raise ValueError(
                f"Block({self.shape!r}) takes a pair (outputs, inputs) of positive "
                "integers, such as Block((4, 4))"
            )

    def __repr__(self) -> str:
        return f"Block({self.shape})"

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the blocks do not tile the matrix, or one is all."""
        _, outputs, inputs = matrix_shape(shape, axes)
        high, wide = self.shape
        check_divides(self, path, shape, high, outputs, "outputs", axes.output)
        check_divides(self, path, shape, wide, inputs, "inputs", axes.input)
        if (outputs, inputs) == self.shape:
            raise MismatchError(
                f"{path!r} of shape {shape} is a single {self!r}, which must stay; "
                f"use smaller blocks or put the rule ({path!r}, None) before"
            )

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row for each stacked copy; blocks in row-major order."""
        stack, outputs, inputs = matrix_shape(scores.shape, axes)
        high, wide = self.shape
        tiles = to_matrix(scores, axes).reshape(
            math.prod(stack), outputs // high, high, inputs // wide, wide
        )
        entries = tiles.transpose(2, 4, 0, 1, 3).reshape(high * wide, -1)
        return mean_of_first(entries).reshape(math.prod(stack), -1)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row for each stacked copy, of all its blocks."""
        stack, outputs, inputs = matrix_shape(shape, axes)
        high, wide = self.shape
        return math.prod(stack), (outputs // high) * (inputs // wide)

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """Each verdict on all entries of its block."""
        stack, outputs, inputs = matrix_shape(shape, axes)
        high, wide = self.shape
        tiles = keep.reshape(*stack, outputs // high, inputs // wide)
        np_or_jnp = np if isinstance(keep, np.ndarray) else jnp
        tall = np_or_jnp.repeat(tiles, high, axis=-2)
        matrix = np_or_jnp.repeat(tall, wide, axis=-1)
        return from_matrix(matrix, axes, shape)
