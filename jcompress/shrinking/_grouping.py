"""Sort ids into units, and units that touch the same axes into groups."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jcompress.shrinking._coupling import Coupling
from jcompress.shrinking._cutting import axis_name
from jcompress.shrinking._ids import Ids, Why
from jcompress.shrinking._labels import Labels
from jcompress.sites import PRODUCTS, Operation, Sites

UNUSED = "no use in this function"
"""Why an axis of a leaf that the function leaves alone does not shrink."""


class Owner(enum.Enum):
    """Whose axis it is."""

    LEAF = "leaf"
    INPUT = "argument"
    OUTPUT = "result"


class Axis(NamedTuple):
    """An axis of a leaf, of an argument or of a result."""

    owner: Owner
    path: str
    axis: int
    ids: Ids

    @property
    def name(self) -> str:
        """As lists and errors write it."""
        return axis_name(self.path, self.axis, self.owner.value)


class Part(NamedTuple):
    """An axis of a group, the unit of each position, and what ties them to others."""

    axis: Axis
    units: np.ndarray[Any, np.dtype[np.int32]]
    ties: tuple[str, ...]


class Grouped(NamedTuple):
    """A group: its name, number of units and axes, and what reduces over it."""

    name: str
    size: int
    parts: tuple[Part, ...]
    reduced: str | None


def axes_of(owner: Owner, path: str, labels: Labels) -> list[Axis]:
    """All axes of a value."""
    return [Axis(owner, path, axis, ids) for axis, ids in enumerate(labels.ids)]


def grouped(
    sites: Sites, axes: Sequence[Axis], coupling: Coupling
) -> tuple[tuple[Grouped, ...], dict[str, str]]:
    """The groups of some axes, those of leaves first, and why the others are fixed.

    Units that no leaf has are left out: a function takes other sizes of them as it is.
    """
    ties = coupling.ties
    component, fixed = ties.components(), ties.fixed()
    reasons, reduced = ties.reasons(), ties.reduced()
    loose: list[Axis] = []
    why_fixed: dict[str, str] = {}
    for axis in axes:
        held = fixed[axis.ids]
        if not held.all():
            loose.append(axis)
        elif len(axis.ids) != 1:
            why = reasons.get(int(component[axis.ids[0]]))
            why_fixed[axis.name] = str(why or "data")
    signature = _signatures(loose, component, fixed)
    by_signature: dict[int, list[Axis]] = {}
    for axis in loose:
        signed = signature[component[axis.ids[~fixed[axis.ids]]]]
        _, first = np.unique(signed, return_index=True)
        for one in signed[np.sort(first)]:
            by_signature.setdefault(int(one), []).append(axis)
    names: dict[str, int] = {}
    table = []
    for one, members in by_signature.items():
        if members[0].owner is not Owner.LEAF:
            continue
        if not any(sites.of(axis.path) for axis in members):
            why_fixed |= {axis.name: UNUSED for axis in members}
            continue
        unit_of = _numbered(one, members[0].ids, component, fixed, signature)
        parts = tuple(
            Part(
                axis,
                units := np.where(fixed[axis.ids], -1, unit_of[component[axis.ids]]),
                tuple(dict.fromkeys(map(str, ties.operations(axis.ids[units >= 0])))),
            )
            for axis in members
        )
        found = (reduced.get(int(c)) for c in np.flatnonzero(unit_of >= 0))
        over: Why | None = next((why for why in found if why is not None), None)
        name = _name(sites, members)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        size = int(unit_of.max()) + 1
        table.append(Grouped(name, size, parts, None if over is None else str(over)))
    return tuple(table), why_fixed


def _signatures(
    axes: Sequence[Axis], component: Ids, fixed: np.ndarray[Any, np.dtype[np.bool_]]
) -> Ids:
    """Components that touch the same axes have the same signature."""
    signature = np.zeros(component.max() + 1, np.int64)
    for number, axis in enumerate(axes):
        touched = np.unique(component[axis.ids[~fixed[axis.ids]]])
        pairs = np.stack([signature[touched], np.full(len(touched), number)])
        _, signature[touched] = np.unique(pairs, axis=1, return_inverse=True)
        signature[touched] += signature.max() + 1
    return signature


def _numbered(
    one: int,
    ids: Ids,
    component: Ids,
    fixed: np.ndarray[Any, np.dtype[np.bool_]],
    signature: Ids,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """For each component its number as a unit of the group, in axis order."""
    unit_of = np.full(len(signature), -1, np.int32)
    free = component[ids[~fixed[ids]]]
    mine = free[signature[free] == one]
    found, first = np.unique(mine, return_index=True)
    unit_of[found[np.argsort(first)]] = np.arange(len(found), dtype=np.int32)
    return unit_of


def _name(sites: Sites, members: Sequence[Axis]) -> str:
    leaves = [axis for axis in members if axis.owner is Owner.LEAF]
    for leaf in leaves:
        for site in sites.of(leaf.path):
            makes = site.operation in PRODUCTS and leaf.axis in site.output_axes
            taken = site.operation is Operation.LOOKUP and leaf.axis in site.input_axes
            if makes or taken:
                return leaf.name
    return leaves[0].name
