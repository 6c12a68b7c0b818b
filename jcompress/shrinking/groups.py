"""Axes that must shrink together, found in the function itself."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.shrinking._coupling import Choices, Coupling
from jcompress.shrinking._cutting import array_name
from jcompress.shrinking._grouping import Axis, Grouped, Owner, axes_of, grouped
from jcompress.shrinking._ids import Why
from jcompress.shrinking._labels import Labels, fixed_ids
from jcompress.shrinking._resizing import passes
from jcompress.shrinking._symbolic import sizes_of
from jcompress.shrinking.free import Named, ShrinkableAxes, free_axes, key_path
from jcompress.shrinking.plan import Plan, axis_name
from jcompress.sites import Sites
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.walk import walk


@dataclasses.dataclass(frozen=True)
class Member:
    """An axis of a leaf in a group; or of an argument or a result.

    Attributes:
        path: the leaf's name.
        axis: the axis.
        units: int32 [size of the axis]: the number of the unit that each position
            belongs to, -1 for positions of other groups or of none.
        ties: the operations that tie these positions to others.
    """

    path: str
    axis: int
    units: np.ndarray[Any, np.dtype[np.int32]]
    ties: tuple[str, ...]

    def __str__(self) -> str:
        return self.described("leaf")

    def described(self, kind: str) -> str:
        """The axis and its ties; `kind` is leaf, argument or result."""
        count = int((self.units >= 0).sum())
        said = f"{axis_name(self.path, self.axis, kind)} ({count})"
        return f"{said}: {', '.join(self.ties)}" if self.ties else said


@dataclasses.dataclass(frozen=True)
class Group:
    """Axes that shrink together, by whole units: a width, the heads of a layer.

    Attributes:
        name: the first axis that makes the units, as `leaf:axis`.
        size: number of units.
        members: the axes.
        reduced: the operation that reduces over the units, where there is one (a
            normalisation over the width of a residual stream): such a group changes
            the function when it shrinks, so that it is only shrunk when named. A sum
            to which removed units add zero does not count, nor does a product: there
            masked and shrunk agree. A mean counts, since it divides by the number of
            units.
        inputs: the axes of arguments behind the tree, those that `ShrinkableAxes` lets
            shrink.
        outputs: the axes of results, likewise.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    reduced: str | None = None
    inputs: tuple[Member, ...] = ()
    outputs: tuple[Member, ...] = ()

    def __str__(self) -> str:
        note = f"; reduced over by {self.reduced}: opt-in" if self.reduced else ""
        lines = [f"{self.name}: {self.size} units{note}"]
        lines += [f"  {member}" for member in self.members]
        lines += [f"  {member.described('argument')}" for member in self.inputs]
        lines += [f"  {member.described('result')}" for member in self.outputs]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Groups:
    """What `find_groups` found. Iterates over its groups; `print` shows them all.

    Attributes:
        table: the groups, in the order of their first leaves.
        fixed: for each axis of a leaf that cannot shrink, as `leaf:axis`, the operation
            that fixes it, and the argument of the function if it is tied to one there,
            `argument 1, by add in block0`; and likewise for the axes that
            `ShrinkableAxes` names.
        sites: the sites of the function.
    """

    table: tuple[Group, ...]
    fixed: Mapping[str, str]
    sites: Sites

    def __iter__(self) -> Iterator[Group]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, name: str) -> Group:
        for group in self.table:
            if group.name == name:
                return group
        raise MismatchError(self._no_group(name))

    def __str__(self) -> str:
        lines = [str(group) for group in self.table]
        lines += [f"fixed {name}: {why}" for name, why in self.fixed.items()]
        return "\n".join(lines)

    def _no_group(self, name: str) -> str:
        if name in self.fixed:
            return f"{name} cannot shrink: {self.fixed[name]} fixes it"
        for group in self.table:
            if any(axis_name(m.path, m.axis) == name for m in group.members):
                return f"{name} belongs to the group {group.name!r}; use that name"
        known = ", ".join(group.name for group in self.table) or "none"
        return f"there is no group {name!r}; the groups are {known}"

    def keep(self, kept: Mapping[str, Sequence[int] | Any]) -> Plan:
        """A plan that keeps the given units.

        Args:
            kept: for each group that is to shrink the numbers of the units to keep.

        Returns:
            The plan for `shrink` and `shrunk`.

        Raises:
            MismatchError: a group does not exist or its axis is fixed, would become
                empty, or an index comes twice or is out of range; or nothing shrinks.
        """
        checked = {
            name: self._checked(self[name], units) for name, units in kept.items()
        }
        if all(len(units) == self[name].size for name, units in checked.items()):
            raise MismatchError(
                "the plan removes nothing; give the units to keep by group"
            )
        gone = {}
        for name, units in checked.items():
            gone[name] = np.ones(self[name].size + 1, bool)
            gone[name][units] = False
            gone[name][-1] = False

        def masks(
            members: Callable[[Group], tuple[Member, ...]],
        ) -> dict[str, dict[int, Any]]:
            made: dict[str, dict[int, Any]] = {}
            for name, lost in gone.items():
                for member in members(self[name]):
                    axes = made.setdefault(member.path, {})
                    keep = ~lost[member.units]
                    axes[member.axis] = axes.get(member.axis, True) & keep
            return made

        return Plan(
            checked,
            masks(lambda group: group.members),
            masks(lambda group: group.inputs),
            masks(lambda group: group.outputs),
        )

    def _checked(self, group: Group, units: Any) -> Any:
        given = np.asarray(units)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise MismatchError(
                f"{group.name}: the units to keep are a list of integers, not {units!r}"
            )
        if not given.size:
            raise MismatchError(
                f"{group.name} would become empty ({_where(group)}); keep one unit at "
                "least"
            )
        if given.min() < 0 or given.max() >= group.size:
            raise MismatchError(
                f"{group.name}: units are numbered 0 to {group.size - 1}, not "
                f"{int(given.min())} to {int(given.max())} ({_where(group)})"
            )
        found, times = np.unique(given, return_counts=True)
        if times.max() > 1:
            twice = found[times > 1].tolist()
            raise MismatchError(
                f"{group.name}: the units {twice} are given twice ({_where(group)})"
            )
        return found.astype(np.int32)


def _where(group: Group) -> str:
    return str(group.members[0])


def find_groups(
    fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> Groups:
    """Find which axes of the leaves of `variables` must shrink together in `fn`.

    Traces `fn(variables, *args, **kwargs)` once, computes nothing and needs no
    knowledge of the model: every position along every axis carries an id, and the
    operations say which ids are one and the same. A set of positions that nothing
    fixes is a unit; units that touch the same axes are a group.

    Axes of the other arguments and of the results are fixed unless `fn` is a
    `ShrinkableAxes` that names them; but a result with the name and shape of a leaf
    (updated batch
    statistics) is that leaf's next value. Whatever an operation that is not looked into
    touches is fixed too; `fixed` says by what. State that is to shrink as well, such as
    a cache, belongs into `variables`.

    Args:
        fn: any function of a parameter tree, such as `model.apply`; or a
            `ShrinkableAxes`, which lets axes of its arguments or results shrink.
        variables: the tree; shapes (`jax.ShapeDtypeStruct`) suffice.
        *args: further arguments of `fn`.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The groups, and why all else is fixed.

    Raises:
        ValueError: `variables` has no array leaf.
        MismatchError: a `ShrinkableAxes` names an array or an axis that is not there,
            or an axis of one position.
    """
    traced = trace(fn, variables, args, kwargs)
    leaves = [(name, tuple(leaf.shape)) for name, leaf in traced.sites.leaves]
    arguments = Named.of(args, kwargs)
    given = [(name, sizes_of(np.shape(x))) for name, x in arguments.arrays]
    results, result_paths = _results(traced)
    free = fn if isinstance(fn, ShrinkableAxes) else None
    inputs = free_axes(
        "argument", free.inputs if free else {}, arguments.array_paths, given
    )
    outputs = free_axes("result", free.outputs if free else {}, result_paths, results)
    axes: list[Axis] = []

    def coupled(choices: Choices) -> Coupling:
        one = Coupling(choices)
        labels = [Labels(one.fresh(shape)) for _, shape in leaves]
        data = [
            Labels(
                tuple(
                    one.ties.lasting(one.ties.fresh(size))
                    if axis in loose
                    else fixed_ids(size)
                    for axis, size in enumerate(shape)
                ),
                arguments=frozenset({array_name(name, "argument")}),
            )
            for (name, shape), loose in zip(given, inputs, strict=True)
        ]
        outs = walk(traced.body, [*labels, *data], one)
        named = dict(zip((name for name, _ in leaves), labels, strict=True))
        axes[:] = [
            axis
            for name, leaf in named.items()
            for axis in axes_of(Owner.LEAF, name, leaf)
        ]
        for owner, names, values, loose_axes in (
            (Owner.INPUT, given, data, inputs),
            (Owner.OUTPUT, results, outs, outputs),
        ):
            for (name, _), value, loose in zip(names, values, loose_axes, strict=True):
                every = axes_of(owner, name, value)
                axes.extend(axis for axis in every if axis.axis in loose)
        for (name, _), out, loose in zip(results, outs, outputs, strict=True):
            why = Why(f"the function's result {name}".rstrip())
            leaf = _of_leaf(name, out, named)
            if leaf is not None:
                one.alike(out, leaf, why)
                continue
            for axis, ids in enumerate(out.ids):
                if axis not in loose:
                    one.ties.fix(ids, why)
        return one

    coupling = passes(coupled)
    table, fixed = grouped(traced.sites, axes, coupling)
    return Groups(tuple(map(_group, table)), fixed, traced.sites)


def _group(found: Grouped) -> Group:
    members = {
        owner: tuple(
            Member(axis.path, axis.axis, units, ties)
            for axis, units, ties in found.parts
            if axis.owner is owner
        )
        for owner in Owner
    }
    return Group(
        found.name,
        found.size,
        members[Owner.LEAF],
        found.reduced,
        members[Owner.INPUT],
        members[Owner.OUTPUT],
    )


class _Result:
    def __init__(self, number: int) -> None:
        self.number = number


def _results(
    traced: Traced,
) -> tuple[list[tuple[str, tuple[int, ...]]], list[tuple[int | str, ...]]]:
    shapes = [sizes_of(aval_shape(atom)) for atom in traced.body.jaxpr.outvars]
    tree = traced.rebuild([_Result(number) for number in range(len(shapes))])
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    path_of = {x.number: path for path, x in flat if isinstance(x, _Result)}
    paths = [path_of[number] for number in range(len(shapes))]
    named = [
        (path_name(path), shape) for path, shape in zip(paths, shapes, strict=True)
    ]
    return named, list(map(key_path, paths))


def _of_leaf(name: str, out: Labels, leaves: Mapping[str, Labels]) -> Labels | None:
    for leaf, labels in leaves.items():
        if leaf and f"/{name}".endswith(f"/{leaf}") and labels.shape == out.shape:
            return labels
    return None
