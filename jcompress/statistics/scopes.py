"""Where the equations of a traced function stand, and which scope each belongs to."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

from jcompress.tracing.jaxprs import Body, Kind, bodies, is_literal, kind_of
from jcompress.tracing.values import Location

_WRAPPED = re.compile(r"\w+\(([^()]*)\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """A program within the traced function, and what encloses it.

    Attributes:
        body: the program.
        place: where it stands.
        scope: the parts of the name of the scope around it.
        stacked: location and length of the enclosing scans, outermost first.
        hidden: why its values cannot be handed out; "" if they can.
    """

    body: Body
    place: Location = ()
    scope: tuple[str, ...] = ()
    stacked: tuple[tuple[Location, int], ...] = ()
    hidden: str = ""

    def scope_of(self, eqn: Any) -> tuple[str, ...] | None:
        """The parts of the name of an equation's scope; None in a backward pass."""
        name = str(eqn.source_info.name_stack)
        if "transpose(" in name or "rematted_computation" in name:
            return None
        # What is differentiated or batched is `jvp(scope)` or `vmap(scope)`.
        while _WRAPPED.search(name):
            name = _WRAPPED.sub(r"\1", name)
        return self.scope + tuple(part for part in name.split("/") if part)


def rooms(body: Body) -> Iterator[Room]:
    """Every program of a traced function, outer ones and earlier ones first."""
    waiting = [Room(body=body)]
    while waiting:
        room = waiting.pop()
        yield room
        waiting += reversed(list(_within(room)))


def _within(room: Room) -> Iterator[Room]:
    for index, eqn in enumerate(room.body.jaxpr.eqns):
        scope, kind = room.scope_of(eqn), kind_of(eqn)
        if scope is None or kind is Kind.CUSTOM_GRADIENT:
            continue
        stacked, hidden = room.stacked, room.hidden
        match kind:
            case Kind.SCAN:
                step = ((*room.place, index), int(eqn.params["length"]))
                stacked = (*stacked, step)
            case Kind.WHILE:
                hidden = hidden or "in a while loop, whose number of steps is not known"
        for number, inner in enumerate(bodies(eqn)):
            yield Room(
                body=inner,
                place=(*room.place, index, number),
                scope=scope,
                stacked=stacked,
                hidden=hidden,
            )


def scopes(room: Room) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The calls of scopes whose equations stand in a program, and what leaves them.

    A call is a run of equations one after the other; what leaves it are the values that
    later equations or the results of the program use.
    """
    eqns = room.body.jaxpr.eqns
    names = [room.scope_of(eqn) or () for eqn in eqns]
    last: dict[Any, int] = {}
    for index, eqn in enumerate(eqns):
        last.update({atom: index for atom in eqn.invars if not is_literal(atom)})
    for atom in room.body.jaxpr.outvars:
        if not is_literal(atom):
            last[atom] = len(eqns)
    found = []
    depths = range(len(room.scope) + 1, max(map(len, names), default=0) + 1)
    for depth in depths:
        runs = itertools.groupby(range(len(eqns)), key=lambda n: names[n][:depth])
        for name, run in runs:
            if len(name) < depth:
                continue
            numbers = list(run)
            end = numbers[-1]
            leaving = tuple(
                out
                for n in numbers
                for out in eqns[n].outvars
                if last.get(out, -1) > end
            )
            if leaving:
                found.append((numbers[0], "/".join(name), leaving))
    for _, full, leaving in sorted(found, key=lambda call: call[0]):
        yield full, leaving
