"""Where the layers of a stack lie in a traced function: the scans that run them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jcompress.depth.blocks import Passage, Region, equation_at, has_own_gradient
from jcompress.errors import MismatchError
from jcompress.shrinking._coupling import Choices, Coupling
from jcompress.shrinking._ids import FIXED, Ids
from jcompress.shrinking._labels import Labels, fixed_ids
from jcompress.shrinking._resizing import passes
from jcompress.shrinking.groups import Group, Groups, Member
from jcompress.shrinking.plan import axis_name
from jcompress.tracing.jaxprs import (
    Kind,
    bodies,
    is_literal,
    kind_of,
    scan_counts,
    split,
)
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location
from jcompress.tracing.walk import walk


class Run(NamedTuple):
    """A scan over the layers of a stack.

    Attributes:
        layers: int [steps]: the layer, a unit of the group, that each step runs.
        passage: what enters a layer and what leaves it.
    """

    layers: Any
    passage: Passage


def is_stack(groups: Groups, group: Group) -> bool:
    """Whether the units of a group number independent copies, such as layers."""
    return any(
        member.axis in site.stack_axes
        for member in group.members
        for site in groups.sites.of(member.path)
    )


def find_layers(
    traced: Traced,
    arguments: Sequence[tuple[str, Any]],
    groups: Groups,
    name: str,
    transform: str,
) -> tuple[Run, ...]:
    """The scans that run over the layers of a stack, in the order of execution.

    What enters a layer are the arrays of floats that a scan carries and the layer's
    leaves change.

    Args:
        traced: the function.
        arguments: names and arrays of its arguments behind the tree.
        groups: its groups.
        name: the group whose units are the layers.
        transform: who asks.

    Raises:
        MismatchError: the group is not there or is of another function, no scan runs
            over its units, or one carries nothing that they change or has a gradient
            rule
            around it.
    """
    group = groups[name]
    found = []
    for scan, layers in _scans(traced, arguments, group, transform):
        place = (*scan, 0)
        eqn = equation_at(traced.body, scan)
        paths = {member.path for member in group.members}
        uses = [
            location
            for location, use in traced.uses.items()
            if scan in dict(use.stacked) and any(s.path in paths for s in use.sites)
        ]
        if not uses:
            continue
        if any(
            has_own_gradient(traced.body, scan[:cut]) for cut in range(1, len(scan), 2)
        ):
            raise MismatchError(
                f"{transform}: the scan over the layers of {name!r} is in a function "
                "with a gradient rule of its own, which cannot be looked into"
            )
        pairs = _carried(eqn, sorted({use[len(place)] for use in uses}))
        if not pairs:
            raise MismatchError(
                f"{transform}: the scan over the layers of {name!r} carries no array "
                "of floats that they change"
            )
        found.append(Run(layers, Passage(place=place, pairs=pairs, use=uses[0])))
    if not found:
        stacks = [one.name for one in groups if is_stack(groups, one)]
        raise MismatchError(
            f"{transform}: no scan runs over the units of {name!r}; the stacks of this "
            f"function are {stacks or 'none'}"
        )
    return tuple(found)


def _carried(eqn: Any, touched: Sequence[int]) -> tuple[tuple[Any, Any], ...]:
    """What a scan carries, before and after a step, if the step's leaves change it."""
    (body,) = bodies(eqn)
    n_consts, n_carry = scan_counts(eqn)
    _, before, _ = split(body.jaxpr.invars, n_consts, n_carry)
    after = Region(body, touched, len(body.jaxpr.eqns)).after
    return tuple(
        (entry, exit_)
        for entry, exit_ in zip(before, body.jaxpr.outvars[:n_carry], strict=True)
        if not is_literal(exit_)
        and exit_ in after
        and entry.aval.ndim > 0
        and jnp.issubdtype(entry.aval.dtype, jnp.floating)
    )


def _scans(
    traced: Traced,
    arguments: Sequence[tuple[str, Any]],
    group: Group,
    transform: str,
) -> list[tuple[Location, np.ndarray[Any, np.dtype[np.int64]]]]:
    """The scans over units of a group, and the unit of each of their steps."""
    leaves = [(name, tuple(leaf.shape)) for name, leaf in traced.sites.leaves]
    data = [(name, np.shape(x)) for name, x in arguments]
    _check(group.members, dict(leaves), transform, "leaf")
    _check(group.inputs, dict(data), transform, "argument")
    units = np.zeros(0, np.int64)

    def coupled(choices: Choices) -> Coupling:
        nonlocal units
        one = Coupling(choices)
        units = one.ties.fresh(group.size)
        inputs = _labels(leaves, group.members, units)
        walk(traced.body, [*inputs, *_labels(data, group.inputs, units)], one)
        return one

    coupling = passes(coupled)
    component = coupling.ties.components()
    unit_of = np.full(len(component), -1, np.int64)
    unit_of[component[units]] = np.arange(group.size)
    unit_of[component[FIXED]] = -1
    found = []
    for location, (ins, _) in coupling.equations.items():
        eqn = equation_at(traced.body, location)
        if kind_of(eqn) is Kind.SCAN and eqn.params["length"]:
            _, _, xs = split(ins, *scan_counts(eqn))
            steps = unit_of[component[xs[0].ids[0]]] if xs else np.array([-1])
            if (steps >= 0).all():
                found.append((location, steps))
    return found


def _check(
    members: Sequence[Member],
    shapes: Mapping[str, tuple[int, ...]],
    transform: str,
    kind: str,
) -> None:
    for member in members:
        shape = shapes.get(member.path, ())
        if len(shape) <= member.axis or shape[member.axis] != len(member.units):
            raise MismatchError(
                f"{transform}: the groups are of another tree or function: "
                f"{axis_name(member.path, member.axis, kind)} has {len(member.units)} "
                f"positions there, and here the {kind} "
                f"{f'is {list(shape)}' if member.path in shapes else 'is missing'}"
            )


def _labels(
    arrays: Sequence[tuple[str, tuple[int, ...]]], members: Sequence[Member], units: Ids
) -> Iterator[Labels]:
    """The ids of a group's axes; all other positions are fixed."""
    axes = {(member.path, member.axis): member.units for member in members}
    for name, shape in arrays:
        yield Labels(
            tuple(
                np.where(of < 0, FIXED, units[of])
                if (of := axes.get((name, axis))) is not None
                else fixed_ids(size)
                for axis, size in enumerate(shape)
            )
        )
