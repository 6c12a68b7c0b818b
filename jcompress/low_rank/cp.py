"""From the kernel of a convolution and a `Cp` to a `LowRank` with depthwise factors."""

import dataclasses
import math
from typing import Any

import numpy as np

from jcompress.errors import MismatchError
from jcompress.low_rank.choice import channel_axis, low_rank_leaf
from jcompress.low_rank.specs import Cp
from jcompress.low_rank.split import Host
from jcompress.low_rank.terms import Terms, rank_bounds, sum_of_terms
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import LowRank
from jcompress.tensors.axes import Axes

SLACK = 1e-8
"""Share of the squared norm by which an energy may be missed: damping and rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CpSplit:
    """The kernel of a convolution that is to become a sum of outer products.

    Attributes:
        path: the leaf's name.
        spec: what the rule says.
        kernels: float64 [copies, O, *W, I]; W are the sizes that are not 1.
        window: the leaf's axes of W.
        shape: of the leaf.
        dtype: of the leaf.
        axes: of the leaf.
    """

    path: str
    spec: Cp
    kernels: Host
    window: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    axes: Axes

    @classmethod
    def of(cls, path: str, leaf: Host, spec: Cp, sites: Sites) -> "CpSplit":
        """Bring the leaf into order.

        Raises:
            MismatchError: the leaf is empty, its convolution is grouped, its input
                channels are not one axis, no axis of its window is longer than 1, or
                the factors
                would not be smaller than the leaf.
        """
        uses = sites.products(path)
        axes = leaf_axes(sites.of(path))
        if not leaf.size:
            raise MismatchError(
                f"factorize: {path!r} {list(leaf.shape)} is empty; exclude it by a "
                f"rule ({path!r}, None)"
            )
        outputs = math.prod(leaf.shape[axis] for axis in axes.output)
        channel = channel_axis(path, spec, sites)
        inner = [axis for axis in axes.input if axis != channel]
        window = tuple(axis for axis in inner if leaf.shape[axis] > 1)
        if not window:
            raise MismatchError(
                f"factorize: Cp splits the window of a convolution, and that of "
                f"{path!r} {list(leaf.shape)} has no axis longer than 1; use Svd(...)"
            )
        order = (*axes.stack, *axes.output, *inner, channel)
        sizes = [leaf.shape[axis] for axis in (*window, channel)]
        copies = math.prod(leaf.shape[axis] for axis in axes.stack)
        kernels = leaf.transpose(order).reshape(copies, outputs, *sizes)
        split = cls(
            path=path,
            spec=spec,
            kernels=kernels.astype(np.float64),
            window=window,
            shape=leaf.shape,
            dtype=uses[0].dtype,
            axes=axes,
        )
        split.check()
        return split

    @property
    def cost(self) -> int:
        """Numbers that one term of one copy stores."""
        return sum(self.kernels.shape[1:])

    @property
    def size(self) -> int:
        """Numbers that one copy of the leaf has."""
        return math.prod(self.kernels.shape[1:])

    @property
    def most(self) -> int:
        """The largest rank whose factors are smaller than the leaf."""
        return (self.size - 1) // self.cost

    def check(self) -> None:
        """Raise MismatchError if what is asked for would not be smaller."""
        rank, part = self.spec.rank, self.spec.parameters
        if self.most < 1:
            self._refuse(f"rank 1 takes {self.cost:,} numbers instead of {self.size:,}")
        if rank is not None and rank > self.most:
            self._refuse(
                f"rank {rank} is asked for and takes {rank * self.cost:,} numbers "
                f"instead of {self.size:,}; the largest rank that is smaller is "
                f"{self.most}"
            )
        if part is not None and part * self.size < self.cost:
            raise MismatchError(
                f"factorize: a fraction of {part} is less than rank 1 of {self.path!r} "
                f"{list(self.shape)} takes; it is {self.cost / self.size:.4f} at least"
            )

    def build(self) -> LowRank:
        """The leaf with its factors.

        Raises:
            MismatchError: no rank that is smaller was found to keep the energy.
        """
        if self.spec.energy is not None:
            terms = self._keeping(self.spec.energy)
        elif self.spec.rank is not None:
            terms = self._solved(self.spec.rank)
        else:
            assert self.spec.parameters is not None
            rank = int(self.spec.parameters * self.size / self.cost)
            terms = self._solved(min(rank, self.most))
        stacks = [self.shape[axis] for axis in self.axes.stack]
        parts = [
            np.stack(copies).reshape(*stacks, *copies[0].shape)
            for copies in zip(*(term.vectors for term in terms), strict=True)
        ]
        last, *middle, first = parts
        factors = (first.mT, *(part.mT[..., None] for part in middle), last)
        windows = ((), *((axis,) for axis in self.window), ())
        return low_rank_leaf(factors, windows, self.shape, self.dtype, self.axes)

    def _keeping(self, energy: float) -> list[Terms]:
        """The terms of the least rank found at which each copy keeps the energy."""
        bounds = [rank_bounds(kernel, energy) for kernel in self.kernels]
        low, high = (max(side) for side in zip(*bounds, strict=True))
        if low > self.most:
            self._refuse(
                f"{energy} of the energy takes rank {low} at least, and the largest "
                f"rank that is smaller is {self.most}"
            )
        high, goal = min(high, self.most), 1 - energy + SLACK
        kept = 1 - max(term.lost for term in self._solved(high, goal))
        if kept < 1 - goal:
            self._refuse(
                f"the largest rank that is smaller is {self.most}, which keeps "
                f"{kept:.4f} of the energy and not {energy}"
            )
        while low < high:
            middle = (low + high) // 2
            if all(term.lost <= goal for term in self._solved(middle, goal)):
                high = middle
            else:
                low = middle + 1
        return self._solved(high)

    def _solved(self, rank: int, goal: float = 0.0) -> list[Terms]:
        spec = self.spec
        return [
            sum_of_terms(
                kernel,
                rank,
                sweeps=spec.sweeps,
                tolerance=spec.tolerance,
                damping=spec.damping,
                seed=spec.seed,
                goal=goal,
            )
            for kernel in self.kernels
        ]

    def _refuse(self, why: str) -> None:
        raise MismatchError(
            f"factorize: {self.path!r} {list(self.shape)} would not become smaller: "
            f"{why}; or exclude it by a rule ({self.path!r}, None)"
        )
