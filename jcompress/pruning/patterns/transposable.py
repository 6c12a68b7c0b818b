"""N of every M along the inputs and along the outputs at once."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning._host import flush
from jcompress.pruning.patterns.base import check_divides, rounded
from jcompress.pruning.patterns.nm import NM
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix

_MOST = 4
"""Tiles of 4 x 4 have at most 90 masks; with 2 of 4 it is 90, with 4 of 8 10^8."""


@dataclasses.dataclass(frozen=True)
class TransposableNM(NM):
    """`n` kept of every `m` along the inputs and along the outputs.

    So the transposed matrix, which the backward pass multiplies with, is N:M sparse,
    too. Each tile of m x m of the matrix [outputs N, inputs K] keeps n entries in each
    row and each column, those with the largest sum of scores: an exact search of all
    masks of a tile. Of equal masks the last stays, in the lexicographic order of the
    columns that the rows keep. Their scores take the memory of six copies of the leaf.

    The masks of a tile are the groups that compete here, and all but one go. Under a
    schedule nothing goes until the sparsity comes to `1 - n / m`.

    Attributes:
        n: entries kept of each group.
        m: entries of a group, at most 4.

    Raises:
        ValueError: not `1 <= n < m <= 4`.

    References:
        Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and
        Efficient Method to Find N:M Transposable Masks" (there by a network flow or an
        approximation).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m > _MOST:
            raise ValueError(
                f"{self!r}: all masks of a tile are tried, which takes an m of at most "
                f"{_MOST}, such as TransposableNM(2, 4)"
            )

    def __repr__(self) -> str:
        return f"TransposableNM({self.n}, {self.m})"

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if `m` does not divide inputs and outputs."""
        super().check(path, shape, axes)
        _, outputs, _ = matrix_shape(shape, axes)
        check_divides(self, path, shape, self.m, outputs, "outputs", axes.output)

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row for each tile: the means of what each of its masks keeps."""
        m, n = self.m, self.n
        stack, outputs, inputs = matrix_shape(scores.shape, axes)
        if scores.dtype != np.float64:
            scores = scores.astype(np.float32)
        tiles = to_matrix(scores, axes).reshape(
            math.prod(stack), outputs // m, m, inputs // m, m
        )
        tiles = tiles.transpose(2, 4, 0, 1, 3).reshape(m, m, -1)
        hosted = isinstance(tiles, np.ndarray)
        if hosted:
            tiles = flush(tiles)
        choices = list(itertools.combinations(range(m), n))
        # The sums are taken in one order everywhere, so that ties are the same.
        total: Any = None
        for row, chosen in enumerate(_masks(n, m).T):
            sums = [_summed([tiles[row, k] for k in choice]) for choice in choices]
            stacked = np.stack(sums) if hosted else jnp.stack(sums)
            part = stacked[chosen]
            total = part if total is None else _summed([total, part])
        mean = total * np.asarray(1 / (n * m), total.dtype)
        return (flush(mean) if hosted else mean).T

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row for each tile, of all masks."""
        return math.prod(shape) // self.m**2, len(_masks(self.n, self.m))

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """What the masks that stay keep, back in its place."""
        m = self.m
        stack, outputs, inputs = matrix_shape(shape, axes)
        choices = list(itertools.combinations(range(m), self.n))
        entries = np.zeros((len(choices), m), np.float32)
        for number, choice in enumerate(choices):
            entries[number, list(choice)] = 1
        table = entries[_masks(self.n, m)].reshape(-1, m * m)
        tiles = keep.astype(np.float32) @ table > 0
        ordered = tiles.reshape(
            math.prod(stack), outputs // m, inputs // m, m, m
        ).transpose(0, 1, 3, 2, 4)
        return from_matrix(ordered.reshape(*stack, outputs, inputs), axes, shape)

    def count(self, sparsity: Any, groups: int) -> int | jax.Array:
        """All masks but one, once the sparsity is that of the pattern."""
        goal = self.m - self.n
        removed = rounded(sparsity, self.m, goal)
        if isinstance(removed, int):
            return groups - 1 if removed == goal else 0
        return jnp.where(removed == goal, groups - 1, 0).astype(jnp.int32)


@functools.cache
def _masks(n: int, m: int) -> np.ndarray[Any, Any]:
    """All masks of a tile, [masks, m]: which choice of n of m each row takes."""
    choices = list(itertools.combinations(range(m), n))
    found = [
        numbers
        for numbers in itertools.product(range(len(choices)), repeat=m)
        if all(
            sum(column in choices[number] for number in numbers) == n
            for column in range(m)
        )
    ]
    return np.array(found)


def _summed(parts: list[Any]) -> Any:
    """The sum from the left, with the zeros of a compiled program."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
        if isinstance(total, np.ndarray):
            total = flush(total)
    return total
