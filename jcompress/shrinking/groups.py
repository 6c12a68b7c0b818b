"""Axes that must shrink together, found in the function itself."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jcompress._paths import path_name
from jcompress._trace import Traced, trace
from jcompress.shrinking._coupling import Choices, Coupling
from jcompress.shrinking._ids import Ids, Why
from jcompress.shrinking._labels import Labels, fixed_ids
from jcompress.shrinking._resizing import passes
from jcompress.shrinking.plan import Plan, ShrinkError, axis_name
from jcompress.sites import PRODUCTS, Operation, Sites


@dataclasses.dataclass(frozen=True)
class Member:
    """An axis of a leaf in a group.

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
        count = int((self.units >= 0).sum())
        return f"{axis_name(self.path, self.axis)} ({count}): {', '.join(self.ties)}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Axes that shrink together, by whole units: a width, the heads of a layer.

    Attributes:
        name: the first axis that makes the units, as `leaf:axis`.
        size: number of units.
        members: the axes.
        reduced: the operation that reduces over the units, where there is one (a
            normalisation over the width of a residual stream): such a group changes
            the function when it shrinks, so that it is only shrunk when named.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    reduced: str | None = None

    def __str__(self) -> str:
        note = f"; reduced over by {self.reduced}: opt-in" if self.reduced else ""
        lines = [f"{self.name}: {self.size} units{note}"]
        return "\n".join([*lines, *(f"  {member}" for member in self.members)])


@dataclasses.dataclass(frozen=True)
class Groups:
    """What `find_groups` found. Iterates over its groups; `print` shows them all.

    Attributes:
        table: the groups, in the order of their first leaves.
        fixed: for each axis of a leaf that cannot shrink, as `leaf:axis`, the operation
            that fixes it.
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
        raise ShrinkError(self._no_group(name))

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
            ShrinkError: a group does not exist or its axis is fixed, would become
                empty, or an index comes twice or is out of range; or nothing shrinks.
        """
        checked = {
            name: self._checked(self[name], units) for name, units in kept.items()
        }
        if all(len(units) == self[name].size for name, units in checked.items()):
            raise ShrinkError(
                "the plan removes nothing; give the units to keep by group"
            )
        masks: dict[str, dict[str, Any]] = {}
        for name, units in checked.items():
            gone = np.ones(self[name].size + 1, bool)
            gone[units] = False
            gone[-1] = False
            for member in self[name].members:
                axes = masks.setdefault(member.path, {})
                keep = ~gone[member.units]
                axis = str(member.axis)
                axes[axis] = axes[axis] & keep if axis in axes else keep
        return Plan(checked, masks)

    def _checked(self, group: Group, units: Any) -> Any:
        given = np.asarray(units)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ShrinkError(
                f"{group.name}: the units to keep are a list of integers, not {units!r}"
            )
        if not given.size:
            raise ShrinkError(
                f"{group.name} would become empty ({_where(group)}); keep one unit at "
                "least"
            )
        if given.min() < 0 or given.max() >= group.size:
            raise ShrinkError(
                f"{group.name}: units are numbered 0 to {group.size - 1}, not "
                f"{int(given.min())} to {int(given.max())} ({_where(group)})"
            )
        found, times = np.unique(given, return_counts=True)
        if times.max() > 1:
            twice = found[times > 1].tolist()
            raise ShrinkError(
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

    Axes of the other arguments and of the results are fixed, except that a result with
    the name and shape of a leaf (updated batch statistics) is that leaf's next value.
    Whatever an operation that is not looked into touches is fixed too; `fixed` says by
    what. State that is to shrink as well, such as a cache, belongs into `variables`.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        variables: the tree; shapes (`jax.ShapeDtypeStruct`) suffice.
        *args: further arguments of `fn`.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The groups, and why all else is fixed.

    Raises:
        ValueError: `variables` has no array leaf.
    """
    traced = trace(fn, variables, args, kwargs)
    leaves = [(name, tuple(leaf.shape)) for name, leaf in traced.sites.leaves]
    labels: list[Labels] = []

    def coupled(choices: Choices) -> Coupling:
        one = Coupling(choices)
        labels[:] = [Labels(one.fresh(shape)) for _, shape in leaves]
        data = [Labels(tuple(map(fixed_ids, np.shape(v)))) for v in traced.data]
        outs = one.run(traced.body, [*labels, *data])
        named = dict(zip((name for name, _ in leaves), labels, strict=True))
        for name, out in zip(_result_names(traced, len(outs)), outs, strict=True):
            leaf = _of_leaf(name, out, named)
            if leaf is None:
                one.fix(out, Why(f"the function's result {name}".rstrip()))
            else:
                one.alike(out, leaf, Why(f"the function's result {name}"))
        return one

    coupling = passes(coupled)
    return _grouped(traced.sites, labels, coupling)


class _Result:
    def __init__(self, number: int) -> None:
        self.number = number


def _result_names(traced: Traced, count: int) -> list[str]:
    tree = traced.rebuild([_Result(number) for number in range(count)])
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = {x.number: path_name(path) for path, x in flat if isinstance(x, _Result)}
    return [names[number] for number in range(count)]


def _of_leaf(name: str, out: Labels, leaves: Mapping[str, Labels]) -> Labels | None:
    for leaf, labels in leaves.items():
        if leaf and f"/{name}".endswith(f"/{leaf}") and labels.shape == out.shape:
            return labels
    return None


def _grouped(sites: Sites, labels: list[Labels], coupling: Coupling) -> Groups:
    ties = coupling.ties
    component, fixed = ties.components(), ties.fixed()
    reasons, reduced = ties.reasons(), ties.reduced()
    axes: list[tuple[str, int, Ids]] = []
    why_fixed: dict[str, str] = {}
    for (path, _), label in zip(sites.leaves, labels, strict=True):
        for axis, ids in enumerate(label.ids):
            held = fixed[ids]
            if not held.all():
                axes.append((path, axis, ids))
            elif len(ids) != 1:
                why = reasons.get(int(component[ids[0]]))
                why_fixed[axis_name(path, axis)] = str(why or "data")
    # Components that touch the same axes have the same signature.
    signature = np.zeros(component.max() + 1, np.int64)
    for number, (_, _, ids) in enumerate(axes):
        touched = np.unique(component[ids[~fixed[ids]]])
        pairs = np.stack([signature[touched], np.full(len(touched), number)])
        _, signature[touched] = np.unique(pairs, axis=1, return_inverse=True)
        signature[touched] += signature.max() + 1
    by_signature: dict[int, list[tuple[str, int, Ids]]] = {}
    for path, axis, ids in axes:
        signed = signature[component[ids[~fixed[ids]]]]
        _, first = np.unique(signed, return_index=True)
        for one in signed[np.sort(first)]:
            by_signature.setdefault(int(one), []).append((path, axis, ids))
    names: dict[str, int] = {}
    table = []
    for one, members in by_signature.items():
        unit_of = _numbered(one, members, component, fixed, signature)
        found = tuple(
            Member(
                path,
                axis,
                units := np.where(fixed[ids], -1, unit_of[component[ids]]),
                tuple(dict.fromkeys(map(str, ties.operations(ids[units >= 0])))),
            )
            for path, axis, ids in members
        )
        over = next(
            (
                reduced[int(c)]
                for c in np.flatnonzero(unit_of >= 0)
                if int(c) in reduced
            ),
            None,
        )
        name = _name(sites, members)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        size = int(unit_of.max()) + 1
        table.append(Group(name, size, found, None if over is None else str(over)))
    return Groups(tuple(table), why_fixed, sites)


def _numbered(
    one: int,
    members: list[tuple[str, int, Ids]],
    component: Ids,
    fixed: np.ndarray[Any, np.dtype[np.bool_]],
    signature: Ids,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """For each component its number as a unit of the group, in axis order."""
    unit_of = np.full(len(signature), -1, np.int32)
    _, _, ids = members[0]
    free = component[ids[~fixed[ids]]]
    mine = free[signature[free] == one]
    found, first = np.unique(mine, return_index=True)
    unit_of[found[np.argsort(first)]] = np.arange(len(found), dtype=np.int32)
    return unit_of


def _name(sites: Sites, members: list[tuple[str, int, Ids]]) -> str:
    for path, axis, _ in members:
        for site in sites.of(path):
            makes = site.operation in PRODUCTS and axis in site.output_axes
            taken = site.operation is Operation.LOOKUP and axis in site.input_axes
            if makes or taken:
                return axis_name(path, axis)
    return axis_name(*members[0][:2])
