"""The arithmetic of splitting matrices and kernels, in NumPy on the host."""

import dataclasses
from typing import Any

import numpy as np

from jcompress.allocation import Options

Host = np.ndarray[Any, Any]

DAMPING = 1e-6
"""Share of the mean second moment that is added to each input's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
    """A stack of matrices [*S, A, B] by its singular values.

    The best product of rank r is `left[..., :r] @ right[..., :r, :]`: `right` holds
    what `left`'s orthonormal columns take of the matrix, so that nothing is inverted
    where the inputs are weighted.

    Attributes:
        left: [*S, A, Q], orthonormal columns.
        values: [*S, Q], singular values, falling; of the weighted matrix if weighted.
        right: [*S, Q, B].
    """

    left: Host
    values: Host
    right: Host

    @classmethod
    def of(cls, matrix: Host, moments: Host | None = None) -> "Spectrum":
        """Decompose a stack of matrices.

        Args:
            matrix: [*S, A, B].
            moments: second moments of the inputs, [*S, B, B] up to a factor; the error
                that the ranks minimise is then `|(W - W_r) x|^2` over these inputs, not
                `|W - W_r|^2`.
        """
        if moments is None:
            left, values, right = np.linalg.svd(matrix, full_matrices=False)
            return cls(left=left, values=values, right=values[..., None] * right)
        matrix = matrix.astype(np.float64)
        root = _root(moments.astype(np.float64))
        left, values, _ = np.linalg.svd(matrix @ root, full_matrices=False)
        return cls(left=left, values=values, right=left.mT @ matrix)

    @property
    def held(self) -> Host:
        """What each singular value holds of its leaf: squares that sum to 1, [Q]."""
        squares = np.square(self.values.astype(np.float64))
        squares = squares.reshape(-1, squares.shape[-1]).sum(0)
        total = squares.sum()
        held: Host = squares / total if total else squares
        return held

    def kept(self, rank: int) -> float:
        """The share of the squared singular values of the first `rank`."""
        return float(self.held[:rank].sum())

    def rank_of(self, energy: float) -> int:
        """The smallest rank that keeps a share of the squares in each matrix."""
        return max(1, int(np.max(rank_of(self.values, energy), initial=1)))

    def options(self, cost: float, most: int) -> Options:
        """The ranks 1 to `most` as options: what each costs and loses of the leaf.

        Args:
            cost: of one rank.
            most: the largest rank that may be taken.
        """
        held = self.held
        # Summed from the smallest on, so that small losses keep their digits.
        lost = np.cumsum(held[::-1])[::-1]
        errors = np.append(lost, 0.0)[1 : most + 1]
        return Options(costs=cost * np.arange(1, most + 1), errors=errors)

    def factors(self, rank: int) -> tuple[Host, Host]:
        """`right` [*S, r, B] and `left` [*S, A, r], their columns equally long."""
        left, right = self.left[..., :rank], self.right[..., :rank, :]
        size = np.sqrt(np.linalg.norm(right, axis=-1))
        safe = np.where(size > 0, size, 1).astype(left.dtype)
        return right / safe[..., None], left * safe[..., None, :]


def rank_of(values: Host, energy: float) -> Host:
    """For each row of singular values the fewest that hold a share of the squares."""
    squares = np.square(values.astype(np.float64))
    total = squares.sum(-1, keepdims=True)
    # The rounding of a sum of squares is no reason to keep one more.
    lost = total - np.cumsum(squares, axis=-1)
    enough = lost <= (1 - energy) * total + 1e-12 * total
    ranks: Host = np.argmax(enough, axis=-1) + 1
    return ranks


def _root(moments: Host) -> Host:
    """The symmetric square roots of second moments, with a little added to each."""
    inputs = moments.shape[-1]
    mean = np.trace(moments, axis1=-2, axis2=-1)[..., None, None] / max(inputs, 1)
    mean = np.where(mean > 0, mean, 1)
    values, vectors = np.linalg.eigh(moments + DAMPING * mean * np.eye(inputs))
    roots = np.sqrt(np.maximum(values, 0))[..., None, :]
    root: Host = np.matmul(vectors * roots, vectors.mT)
    return root


def tucker(
    kernel: Host, ranks: tuple[int, int], *, sweeps: int
) -> tuple[Host, Host, Host]:
    """Split a stack of kernels on both channel axes.

    Args:
        kernel: [*S, O, W, I], the window in one axis.
        ranks: (before, after) the core: at most I and O.
        sweeps: how often either side is refined for the other.

    Returns:
        first [*S, before, I], core [*S, after, W, before], last [*S, O, after].
    """
    before, after = ranks
    first = _leading(unfold_inputs(kernel), before)
    last = _leading(unfold_outputs(kernel), after)
    for _ in range(sweeps):
        narrow = np.einsum("...owi,...ip->...owp", kernel, first)
        last = _leading(unfold_outputs(narrow), after)
        narrow = np.einsum("...owi,...oq->...qwi", kernel, last)
        first = _leading(unfold_inputs(narrow), before)
    core = np.einsum("...owi,...oq,...ip->...qwp", kernel, last, first, optimize=True)
    return first.mT, core, last


def unfold_inputs(kernel: Host) -> Host:
    """[*S, O, W, I] -> [*S, I, O W]."""
    moved = np.moveaxis(kernel, -1, -3)
    return moved.reshape(*moved.shape[:-2], -1)


def unfold_outputs(kernel: Host) -> Host:
    """[*S, O, W, I] -> [*S, O, W I]."""
    return kernel.reshape(*kernel.shape[:-2], -1)


def _leading(matrix: Host, rank: int) -> Host:
    return np.linalg.svd(matrix, full_matrices=False)[0][..., :rank]
