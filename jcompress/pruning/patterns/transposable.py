"""N of every M along the inputs and along the outputs at once."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning.patterns._best_tiles import MOST, best_masks
from jcompress.pruning.patterns.base import check_divides, rounded
from jcompress.pruning.patterns.nm import NM
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix


@dataclasses.dataclass(frozen=True)
class TransposableNM(NM):
    """`n` kept of every `m` along the inputs and along the outputs.

    So the transposed matrix, which the backward pass multiplies with, is N:M sparse,
    too. Each tile of m x m of the matrix [outputs N, inputs K] keeps n entries in each
    row and each column, those with the largest sum of scores: an exact search by a
    flow of least cost, with scores in steps of 2^-20 of the largest of their tile.

    Under a schedule nothing goes until the sparsity comes to `1 - n / m`.

    Attributes:
        n: entries kept of each group.
        m: entries of a group, at most 8.

    Raises:
        ValueError: not `1 <= n < m <= 8`.

    References:
        Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and
        Efficient Method to Find N:M Transposable Masks", section 4 (by a flow).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m > MOST:
            raise ValueError(
                f"{self!r}: the sums of a tile are counted in 32 bits, which takes an "
                f"m of at most {MOST}, such as TransposableNM(4, 8)"
            )

    def __repr__(self) -> str:
        return f"TransposableNM({self.n}, {self.m})"

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if `m` does not divide inputs and outputs."""
        super().check(path, shape, axes)
        _, outputs, _ = matrix_shape(shape, axes)
        check_divides(self, path, shape, self.m, outputs, "outputs", axes.output)

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row for each tile: 1 for the entries of its best mask, 0 for the rest."""
        stack, outputs, inputs = matrix_shape(scores.shape, axes)
        matrix = to_matrix(scores.astype(np.float32), axes)
        tiles = matrix.reshape(self._tiles(stack, outputs, inputs))
        tiles = tiles.transpose(2, 4, 0, 1, 3).reshape(self.m, self.m, -1)
        kept = best_masks(tiles, self.n).astype(np.float32)
        return kept.reshape(self.m**2, -1).T

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row for each tile, of all its entries."""
        return math.prod(shape) // self.m**2, self.m**2

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """The tiles back in their places."""
        stack, outputs, inputs = matrix_shape(shape, axes)
        copies, high, _, wide, _ = self._tiles(stack, outputs, inputs)
        tiles = keep.reshape(copies, high, wide, self.m, self.m)
        matrix = tiles.transpose(0, 1, 3, 2, 4).reshape(*stack, outputs, inputs)
        return from_matrix(matrix, axes, shape)

    def count(self, sparsity: Any, groups: int) -> int | jax.Array:
        """What the mask of a tile leaves out, once the sparsity is that of it."""
        goal = self.m - self.n
        removed = rounded(sparsity, self.m, goal)
        if isinstance(removed, int):
            return self.m * goal if removed == goal else 0
        return jnp.where(removed == goal, self.m * goal, 0).astype(jnp.int32)

    def _tiles(
        self, stack: tuple[int, ...], outputs: int, inputs: int
    ) -> tuple[int, int, int, int, int]:
        """The matrix by copies, tiles and entries of outputs, those of inputs."""
        m = self.m
        return math.prod(stack), outputs // m, m, inputs // m, m
