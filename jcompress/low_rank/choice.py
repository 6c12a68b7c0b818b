"""From a leaf and its spec to a `LowRank`: matrices, ranks and budgets."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.allocation import allocate
from jcompress.errors import MismatchError
from jcompress.low_rank.specs import Cp, Factoring, Spatial, Svd, Tucker
from jcompress.low_rank.split import (
    Host,
    Spectrum,
    rank_of,
    tucker,
    unfold_inputs,
    unfold_outputs,
)
from jcompress.rules import Resolved
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import LowRank
from jcompress.tensors.axes import Axes, matrix_shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A leaf that is split in two, but for the rank.

    Attributes:
        path: its name.
        spec: what the rule says.
        spectrum: the matrix that is split.
        windows: the axes that either factor slides over; () for a matrix.
        shape: of the leaf.
        dtype: of the leaf.
        axes: of the leaf.
    """

    path: str
    spec: Svd | Spatial
    spectrum: Spectrum
    windows: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype: Any
    axes: Axes

    @classmethod
    def of(
        cls,
        path: str,
        leaf: Host,
        spec: Svd | Spatial,
        sites: Sites,
        weighting: Mapping[str, Host],
    ) -> "Split":
        """Decompose the leaf as its spec says."""
        uses = sites.of(path)
        axes = leaf_axes(uses)
        windows: tuple[tuple[int, ...], ...] = ()
        if isinstance(spec, Spatial):
            channel = channel_axis(path, spec, sites)
            window = [axis for axis in axes.input if axis != channel]
            if len(window) != 2:
                raise MismatchError(
                    f"factorize: Spatial splits a window of two axes, and that of "
                    f"{path!r} has {len(window)}; use Svd(...) or Tucker(...)"
                )
            windows = ((window[0],), (window[1],))
            rows = (*axes.output, window[1])
            order = (*axes.stack, *rows, window[0], channel)
            stacks = tuple(leaf.shape[axis] for axis in axes.stack)
            height = math.prod(leaf.shape[axis] for axis in rows)
            matrix = leaf.transpose(order).reshape(*stacks, height, -1)
        else:
            stacks, outputs, inputs = matrix_shape(leaf.shape, axes)
            ordered = leaf.transpose(axes.stack + axes.output + axes.input)
            matrix = ordered.reshape(*stacks, outputs, inputs)
        if not matrix.size:
            raise MismatchError(
                f"factorize: {path!r} {list(leaf.shape)} is empty; exclude it by a "
                f"rule ({path!r}, None)"
            )
        return cls(
            path=path,
            spec=spec,
            spectrum=Spectrum.of(matrix, weighting.get(path)),
            windows=windows,
            shape=leaf.shape,
            dtype=uses[0].dtype,
            axes=axes,
        )

    @property
    def copies(self) -> int:
        """How many matrices there are."""
        return math.prod(self.shape[axis] for axis in self.axes.stack)

    @property
    def cost(self) -> int:
        """Numbers that one rank stores."""
        high, wide = self.spectrum.left.shape[-2], self.spectrum.right.shape[-1]
        return self.copies * int(high + wide)

    @property
    def size(self) -> int:
        """Numbers that the leaf has."""
        return math.prod(self.shape)

    @property
    def most(self) -> int:
        """The largest rank whose factors are smaller than the leaf."""
        return min((self.size - 1) // self.cost, int(self.spectrum.values.shape[-1]))

    def check(self, rank: int, why: str) -> int:
        """The rank, if the factors are smaller than the leaf."""
        if rank <= self.most:
            return rank
        if self.most < 1:
            best = "no rank is smaller"
        else:
            kept = self.spectrum.kept(self.most)
            best = (
                f"the largest rank that is smaller is {self.most}, which keeps "
                f"{kept:.4f} of the energy"
            )
        raise MismatchError(
            f"factorize: {self.path!r} {list(self.shape)} would not become smaller: "
            f"{why} and {rank * self.cost:,} numbers instead of {self.size:,}; {best}; "
            f"or exclude it by a rule ({self.path!r}, None)"
        )

    def build(self, rank: int) -> LowRank:
        """The leaf with factors of a rank."""
        first, last = self.spectrum.factors(rank)
        stacks = [self.shape[axis] for axis in self.axes.stack]
        if self.windows:
            (down,), (across,) = self.windows
            first = first.reshape(*stacks, rank, self.shape[down], -1)
            last = last.reshape(*stacks, -1, self.shape[across], rank)
        return low_rank_leaf(
            (first, last), self.windows, self.shape, self.dtype, self.axes
        )


def choose_ranks(
    resolved: Resolved[Factoring], splits: Mapping[str, Split], sites: Sites
) -> dict[str, int]:
    """The rank of each leaf that is split in two.

    Args:
        resolved: the rules, resolved.
        splits: the leaves, in tree order.
        sites: the sites.

    Raises:
        MismatchError: factors would not be smaller than their leaf, or a budget is less
            than one rank of each.
    """
    ranks: dict[str, int] = {}
    shared: dict[int, list[str]] = {}
    for path, split in splits.items():
        spec = split.spec
        if spec.rank is not None:
            ranks[path] = split.check(spec.rank, f"rank {spec.rank} is asked for")
        elif spec.energy is not None:
            rank = split.spectrum.rank_of(spec.energy)
            why = f"{spec.energy} of the energy takes rank {rank}"
            ranks[path] = split.check(rank, why)
        else:
            split.check(1, "a rank of 1 is the least")
            shared.setdefault(resolved.rule_of[path], []).append(path)
    for paths in shared.values():
        ranks.update(_shared({path: splits[path] for path in paths}, sites))
    return ranks


def _shared(splits: Mapping[str, Split], sites: Sites) -> dict[str, int]:
    """The ranks of leaves that share a budget."""
    spec = next(iter(splits.values())).spec
    whole: dict[str, float] = {}
    each: dict[str, float] = {}
    for path, split in splits.items():
        whole[path], each[path] = float(split.size), float(split.cost)
        if isinstance(spec, Svd) and spec.macs is not None:
            macs = sum(site.total_macs for site in sites.products(path))
            if not macs:
                raise MismatchError(
                    f"factorize: {path!r} takes part in no multiplication, so it has "
                    f"no share in macs={spec.macs}; give it a rule of its own"
                )
            whole[path] = float(macs)
            each[path] = macs * split.cost / split.size
        fraction = spec.parameters
    if isinstance(spec, Svd) and spec.macs is not None:
        fraction = spec.macs
    assert fraction is not None
    total, least = sum(whole.values()), sum(each.values())
    if least > fraction * total:
        raise MismatchError(
            f"factorize: a fraction of {fraction} is less than rank 1 of each of "
            f"{', '.join(map(repr, splits))} takes; it is {least / total:.4f} at least"
        )
    options = {
        path: split.spectrum.options(each[path], split.most)
        for path, split in splits.items()
    }
    # The first option is rank 1.
    chosen = allocate(options, fraction * total).chosen
    return {path: option + 1 for path, option in chosen.items()}


def split_tucker(path: str, leaf: Host, spec: Tucker, sites: Sites) -> LowRank:
    """Split the kernel of a convolution on both of its channel axes.

    Raises:
        MismatchError: the factors would not be smaller than the leaf.
    """
    uses = sites.of(path)
    axes = leaf_axes(uses)
    channel = channel_axis(path, spec, sites)
    window = tuple(axis for axis in axes.input if axis != channel)
    order = (*axes.stack, *axes.output, *window, channel)
    stacks = [leaf.shape[axis] for axis in axes.stack]
    outputs = math.prod(leaf.shape[axis] for axis in axes.output)
    inputs = leaf.shape[channel]
    kernel = leaf.transpose(order).reshape(*stacks, outputs, -1, inputs)
    ranks = spec.ranks
    if ranks is None:
        assert spec.energy is not None
        # What either side loses adds up at most.
        energy = 1 - (1 - spec.energy) / 2
        sides = (unfold_inputs(kernel), unfold_outputs(kernel))
        values = [np.linalg.svd(side, compute_uv=False) for side in sides]
        before, after = (int(np.max(rank_of(v, energy), initial=1)) for v in values)
        ranks = before, after
    before, after = ranks
    if before > inputs or after > outputs:
        raise MismatchError(
            f"factorize: Tucker ranks {ranks} of {path!r} exceed its {inputs} input "
            f"and {outputs} output channels"
        )
    size = math.prod(leaf.shape)
    slides = kernel.shape[-2]
    numbers = before * inputs + after * slides * before + outputs * after
    if numbers * math.prod(stacks) >= size:
        raise MismatchError(
            _too_large(path, spec, leaf.shape, (inputs, slides, outputs))
        )
    first, core, last = tucker(kernel, ranks, sweeps=spec.sweeps)
    core = core.reshape(*stacks, after, *(leaf.shape[a] for a in window), before)
    windows: tuple[tuple[int, ...], ...] = ((), window, ())
    factors = (first, core, last)
    return low_rank_leaf(factors, windows, leaf.shape, uses[0].dtype, axes)


def _too_large(
    path: str, spec: Tucker, shape: tuple[int, ...], sizes: tuple[int, int, int]
) -> str:
    inputs, slides, outputs = sizes
    dense = inputs * slides * outputs

    def numbers(part: float) -> int:
        before, after = max(1, int(part * inputs)), max(1, int(part * outputs))
        return before * inputs + after * slides * before + outputs * after

    parts = [part / 256 for part in range(256, 0, -1)]
    fits = [part for part in parts if numbers(part) < dense]
    best = "no ranks are smaller"
    if fits:
        before, after = (max(1, int(fits[0] * n)) for n in (inputs, outputs))
        best = f"the largest of the same share that are smaller are {(before, after)}"
    return (
        f"factorize: {path!r} {list(shape)} would not become smaller by {spec!r}; "
        f"{best}; or exclude it by a rule ({path!r}, None)"
    )


def channel_axis(path: str, spec: Spatial | Tucker | Cp, sites: Sites) -> int:
    """The axis of a convolution's kernel that numbers its input channels.

    Raises:
        MismatchError: there is no such axis, or its convolution is grouped.
    """
    uses = sites.products(path)
    use = uses[0]
    if any(each.groups != 1 for each in uses):
        raise MismatchError(
            f"factorize: the convolution of {path!r} {list(use.shape)} has "
            f"{use.groups} groups, and {type(spec).__name__} splits kernels that all "
            f"channels share; exclude it by a rule ({path!r}, None)"
        )
    found = set(use.input_axes) - set(use.window_axes)
    if len(found) != 1:
        raise MismatchError(
            f"factorize: {type(spec).__name__} needs one axis of {path!r} "
            f"{list(use.shape)} for the channels of its data and none of them in the "
            f"window's axes {use.window_axes}; exclude it by a rule ({path!r}, None)"
        )
    return found.pop()


def low_rank_leaf(
    factors: tuple[Host, ...],
    windows: tuple[tuple[int, ...], ...],
    shape: tuple[int, ...],
    dtype: Any,
    axes: Axes,
) -> LowRank:
    """A leaf with factors on the device, of the leaf's own dtype."""
    return LowRank(
        factors=tuple(jnp.asarray(factor, dtype) for factor in factors),
        windows=windows,
        shape=shape,
        dtype=dtype,
        stack_axes=axes.stack,
        output_axes=axes.output,
        input_axes=axes.input,
    )
