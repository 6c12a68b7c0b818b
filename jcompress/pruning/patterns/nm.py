"""N of every M along the inputs."""

import dataclasses
import math
from typing import Any

import jax

from jcompress.pruning.patterns.base import Pattern, check_divides, is_whole, rounded
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix


@dataclasses.dataclass(frozen=True)
class NM(Pattern):
    """`n` kept of every `m` along the inputs of each output unit.

    A group of `m` lies contiguous along the flattened input axes (in leaf-axis
    order), so that sparse kernels that read N:M weights along the summed axis apply.

    Under a schedule or an array of sparsities the pattern is approached from dense:
    each group loses `min(round(sparsity * m), m - n)` entries, and the N:M pattern
    holds from the moment that the sparsity reaches `1 - n / m`.

    Attributes:
        n: entries kept of each group.
        m: entries of a group.

    Raises:
        ValueError: not `1 <= n < m`.

    References:
        Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (2:4).
        Kao et al. 2022, "Training Recipe for N:M Structured Sparsity with Decaying
        Pruning Mask" (the approach from dense).
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (is_whole(self.n) and is_whole(self.m) and 1 <= self.n < self.m):
            raise ValueError(
                f"NM({self.n!r}, {self.m!r}) keeps n of every m, two integers with "
                "1 <= n < m, such as NM(2, 4)"
            )

    def __repr__(self) -> str:
        return f"NM({self.n}, {self.m})"

    @property
    def sparsity(self) -> float:
        """The fraction that the finished pattern removes, `1 - n / m`."""
        return 1 - self.n / self.m

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if `m` does not divide the number of inputs K."""
        _, _, inputs = matrix_shape(shape, axes)
        check_divides(self, path, shape, self.m, inputs, "inputs", axes.input)

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row for each group of `m`."""
        return to_matrix(scores, axes).reshape(-1, self.m)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row for each group of `m`."""
        return math.prod(shape) // self.m, self.m

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """The groups back in their places."""
        return from_matrix(keep, axes, shape)

    def count(self, sparsity: Any, groups: int) -> int | jax.Array:
        """How many of each `m` are removed, at most `m - n`."""
        return rounded(sparsity, groups, self.m - self.n)
