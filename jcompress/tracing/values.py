"""What is known of a value and of a place while leaves are followed."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from jcompress.tracing.jaxprs import is_literal
from jcompress.tracing.site import Site
from jcompress.tracing.views import View

Location = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value: whether data reached it, and which leaves it shows.

    Attributes:
        data: it depends on the function's other inputs.
        views: the leaves whose elements it holds in a known arrangement.
        sources: every leaf that it was made from and that has met no data yet.
    """

    data: bool
    views: tuple[View, ...] = ()
    sources: frozenset[int] = frozenset()


DATA = Value(True)
CONST = Value(False)


@dataclasses.dataclass(frozen=True)
class Use:
    """One equation at which leaves meet data, with what a handler needs of it.

    Attributes:
        eqn: the equation.
        sites: the sites at this equation.
        views: for each input of the equation, the leaves it shows.
        data: which input is the data.
        stacked: location and length of the enclosing scans that take a leaf apart, so
            that each of their steps is a site of its own, outermost first.
    """

    eqn: Any
    sites: tuple[Site, ...]
    views: tuple[tuple[View, ...], ...]
    data: int | None
    stacked: tuple[tuple[Location, int], ...]

    @property
    def location(self) -> Location:
        """Where the equation stands."""
        return self.sites[0].location


def by_data(uses: Iterable[Use]) -> dict[Location, dict[Any, list[Use]]]:
    """The uses that read each value as their data, by the program they stand in.

    Args:
        uses: some, in any order; of each value they come in that of the program.
    """
    found: dict[Location, dict[Any, list[Use]]] = {}
    for use in sorted(uses, key=lambda use: use.location):
        if use.data is None:
            continue
        atom = use.eqn.invars[use.data]
        if not is_literal(atom):
            readers = found.setdefault(use.location[:-1], {})
            readers.setdefault(atom, []).append(use)
    return found


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an equation or a program stands, how often it runs, what encloses it.

    Attributes:
        location: the numbers of the equations and programs that lead there.
        runs: how often one call of the function runs it, on all devices together; the
            body of a `while` loop counts once.
        in_while: whether it stands in such a body, so that it may run more often.
        in_custom_gradient: whether it stands in a function with a gradient rule of its
            own.
        scope: the named scope of the program around it.
    """

    location: Location = ()
    runs: int = 1
    in_while: bool = False
    in_custom_gradient: bool = False
    scope: str = ""

    def inside(self, index: int, **changes: Any) -> "Place":
        """Equation `index` of this program, or program `index` of this equation."""
        location = (*self.location, index)
        if changes:
            return dataclasses.replace(self, location=location, **changes)
        return Place(
            location, self.runs, self.in_while, self.in_custom_gradient, self.scope
        )

    def within(self, eqn: Any) -> "Place":
        """The same, in the named scope of the equation that stands here."""
        return dataclasses.replace(self, scope=self.scope_of(eqn))

    def scope_of(self, eqn: Any) -> str:
        """The named scope of the equation that stands here."""
        return "/".join(
            part for part in (self.scope, str(eqn.source_info.name_stack)) if part
        )
