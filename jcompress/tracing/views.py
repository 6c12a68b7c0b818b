"""Which axis of a leaf each axis of a value comes from, through view operations."""

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

from jcompress.tracing.jaxprs import aval_shape


class Factor(NamedTuple):
    """A part of one leaf axis: positions `stride * i` for i < `size`.

    `axis` is -1 for an axis that a broadcast made.
    """

    axis: int
    stride: int
    size: int


Dims = tuple[tuple[Factor, ...], ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A value that holds the elements of a leaf in another arrangement.

    Attributes:
        leaf: number of the leaf.
        dims: for each axis of the value, the factors of leaf axes it is made of,
            outermost first.
        stacked: leaf axes of which a loop took one entry.
        partial: elements are missing, repeated, reordered within an axis, or joined
            with those of another leaf.
        derived: arithmetic changed the elements.
        share: fraction of a loop's steps that see the leaf, where the loop takes apart
            an array of which the leaf is a part.
    """

    leaf: int
    dims: Dims
    stacked: frozenset[int] = frozenset()
    partial: bool = False
    derived: bool = False
    share: Fraction = Fraction(1)

    @classmethod
    def whole(cls, leaf: int, shape: tuple[int, ...]) -> "View":
        """The leaf itself."""
        dims = tuple((Factor(axis, 1, size),) for axis, size in enumerate(shape))
        return cls(leaf, dims)

    @property
    def size(self) -> int:
        """Number of elements of the leaf in the value, broadcast copies included."""
        return math.prod(factor.size for dim in self.dims for factor in dim)

    @property
    def broadcast(self) -> bool:
        """Whether the value repeats the leaf's elements."""
        return any(factor.axis < 0 for dim in self.dims for factor in dim)

    def axes(self, *dims: int) -> set[int]:
        """The leaf axes that the given axes of the value are made of."""
        return {f.axis for dim in dims for f in self.dims[dim] if f.axis >= 0}

    def take(self, dim: int, length: int) -> "View":
        """One entry along an axis of the value, of that length: it numbers copies."""
        rest = self.dims[:dim] + self.dims[dim + 1 :]
        return dataclasses.replace(
            self,
            dims=rest,
            stacked=self.stacked | self.axes(dim),
            share=self.share * Fraction(_size(self.dims[dim]), max(length, 1)),
        )

    def spread(self, before: tuple[int, ...], after: tuple[int, ...]) -> "View":
        """What arithmetic makes of the value when the other inputs are larger."""
        if before == after:
            return self
        dims = (() for _ in range(len(after) - len(before))), iter(self.dims)
        sizes = (1,) * (len(after) - len(before)) + before
        made = tuple(
            dim if had == has else (Factor(-1, 0, has),)
            for dim, had, has in zip(itertools.chain(*dims), sizes, after, strict=True)
        )
        return dataclasses.replace(self, dims=made)

    def placed(self, where: tuple[int, ...], after: tuple[int, ...]) -> "View":
        """What arithmetic makes of the value whose axes become those of the result."""
        made: list[tuple[Factor, ...]] = [(Factor(-1, 0, size),) for size in after]
        for dim, out in enumerate(where):
            made[out] = self.dims[dim]
        return dataclasses.replace(self, dims=tuple(made))

    def restacked(self, whole: "View | None", length: int) -> "View":
        """What a loop collects from its steps if each hands out this view.

        Args:
            whole: the view that the loop takes apart; None if each step sees all.
            length: number of steps.
        """
        if whole is None:
            return dataclasses.replace(
                self, dims=((Factor(-1, 0, length),), *self.dims)
            )
        stacked = self.stacked - (whole.axes(0) - whole.stacked)
        return dataclasses.replace(
            self, dims=(whole.dims[0], *self.dims), stacked=stacked
        )

    def local(self, shape: tuple[int, ...]) -> "View":
        """The part of the value that one shard of the given shape sees."""
        dims = tuple(
            _resized(dim, size) for dim, size in zip(self.dims, shape, strict=True)
        )
        return dataclasses.replace(self, dims=dims)


def _size(dim: tuple[Factor, ...]) -> int:
    return math.prod(factor.size for factor in dim)


def _resized(dim: tuple[Factor, ...], size: int) -> tuple[Factor, ...]:
    if not dim or _size(dim) == size:
        return dim
    inner = _size(dim[1:])
    if size % inner == 0:
        return (dim[0]._replace(size=size // inner), *dim[1:])
    return tuple(f._replace(size=1) for f in dim[:-1]) + (dim[-1]._replace(size=size),)


def _reshaped(view: View, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    if 0 in before:
        return None
    dims: list[tuple[Factor, ...]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        size_i = size_j = 1
        if i < len(before):
            size_i, i = before[i], i + 1
        if j < len(after):
            size_j, j = after[j], j + 1
        while size_i != size_j:
            if size_i < size_j and i < len(before):
                size_i, i = size_i * before[i], i + 1
            elif size_j < size_i and j < len(after):
                size_j, j = size_j * after[j], j + 1
            else:
                return None
        piece = _regrouped(view.dims[i0:i], before[i0:i], after[j0:j])
        if piece is None:
            return None
        dims += piece
    return dataclasses.replace(view, dims=tuple(dims))


def _regrouped(dims: Dims, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    real = [(dim, size) for dim, size in zip(dims, before, strict=True) if size != 1]
    if sum(size != 1 for size in after) <= 1 and len(real) == 1:
        return [real[0][0] if size != 1 else () for size in after]
    if any(_size(dim) != size for dim, size in real):
        return None
    queue = [factor for dim, _ in real for factor in dim if factor.size > 1]
    result = []
    for size in after:
        taken: list[Factor] = []
        while _size(tuple(taken)) < size:
            need = size // _size(tuple(taken))
            factor = queue.pop(0)
            if factor.size <= need:
                if need % factor.size:
                    return None
                taken.append(factor)
            else:
                if factor.size % need:
                    return None
                inner = factor.size // need
                stride = factor.stride * inner if factor.axis >= 0 else factor.stride
                taken.append(Factor(factor.axis, stride, need))
                queue.insert(0, Factor(factor.axis, factor.stride, inner))
        result.append(tuple(taken))
    return result


def _cut(view: View, shape: tuple[int, ...]) -> View:
    if tuple(map(_size, view.dims)) == shape:
        return view
    dims = tuple(
        dim if _size(dim) == size or not dim else _resized(dim, size)
        for dim, size in zip(view.dims, shape, strict=True)
    )
    return dataclasses.replace(view, dims=dims, partial=True)


def _gathered(view: View, numbers: Any, after: tuple[int, ...]) -> View:
    """Rows picked by a constant index: the index's axes number rows."""
    picked = [*numbers.collapsed_slice_dims, *numbers.operand_batching_dims]
    axes = sorted(view.axes(*picked))
    whole = iter(dim for d, dim in enumerate(view.dims) if d not in picked)
    dims = tuple(
        next(whole)
        if d in numbers.offset_dims
        else tuple(Factor(axis, 1, 1) for axis in axes[1:])
        + tuple(Factor(axis, 1, size) for axis in axes[:1])
        for d, size in enumerate(after)
    )
    return dataclasses.replace(view, dims=dims, partial=True)


SAME = frozenset(
    {
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "mesh_cast",
        "name",
        "optimization_barrier",
        "pvary",
        "pcast",
        "reduce_precision",
        "reshard",
        "sharding_constraint",
        "stop_gradient",
    }
)
"""Operations whose results have the elements of their inputs, one by one."""

LAZY = SAME - {"optimization_barrier", "reduce_precision"} | {
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
}
"""Views of one input that a compressed leaf can put off until it meets data."""


def follow(eqn: Any, views: list[View | None]) -> list[View | None]:
    """Follow one leaf through an equation all of whose inputs are parameters.

    Args:
        eqn: the equation.
        views: for each input, how it views the leaf, or None.

    Returns:
        For each output, how it views the leaf; None where that is not known.
    """
    lost: list[View | None] = [None] * len(eqn.outvars)
    name, params = eqn.primitive.name, eqn.params
    before = [aval_shape(atom) for atom in eqn.invars]
    after = [aval_shape(var) for var in eqn.outvars]
    if name in SAME and len(views) == len(lost):
        return list(views)
    view = views[0]
    if name in ("concatenate", "stack"):
        view = next(v for v in views if v is not None)
        dims = list(view.dims)
        if name == "stack":
            dims.insert(params["axis"], ())
        return [dataclasses.replace(view, dims=tuple(dims), partial=True)]
    if view is None:
        return lost
    match name:
        case "reshape":
            order = params.get("dimensions") or range(len(before[0]))
            flat = dataclasses.replace(view, dims=tuple(view.dims[d] for d in order))
            return [_reshaped(flat, tuple(before[0][d] for d in order), after[0])]
        case "squeeze" | "expand_dims":
            return [_reshaped(view, before[0], after[0])]
        case "transpose":
            turned = tuple(view.dims[d] for d in params["permutation"])
            return [dataclasses.replace(view, dims=turned)]
        case "broadcast_in_dim":
            made: list[tuple[Factor, ...]] = [
                (Factor(-1, 0, n),) if n != 1 else () for n in after[0]
            ]
            for dim, out in enumerate(params["broadcast_dimensions"]):
                if before[0][dim] == after[0][out]:
                    made[out] = view.dims[dim]
            return [dataclasses.replace(view, dims=tuple(made))]
        case "split" | "pad":
            return [_cut(view, shape) for shape in after]
        case "rev" | "tile":
            return [dataclasses.replace(view, partial=True)]
        case "dynamic_update_slice" | "scatter" | "scatter-add" | "scatter-mul":
            return [dataclasses.replace(view, partial=True, derived=True)]
        case "unstack":
            return [view.take(params["axis"], 1) for _ in after]
        case "gather":
            return [_gathered(view, params["dimension_numbers"], after[0])]
        case "slice" | "dynamic_slice":
            left = list(view.dims)
            stacked = view.stacked
            for dim, (had, has) in enumerate(zip(before[0], after[0], strict=True)):
                if had != 1 and has == 1:
                    stacked |= view.axes(dim)
                    left[dim] = ()
            taken = dataclasses.replace(view, dims=tuple(left), stacked=stacked)
            return [_cut(taken, after[0])]
    return lost
