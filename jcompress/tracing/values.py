"""What is known of a value and of a place while leaves are followed."""

import dataclasses
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a program stands: its location, how often it runs, what encloses it."""

    location: Location = ()
    runs: int | None = 1
    in_custom_gradient: bool = False
    recording: bool = True
    stacks: tuple[tuple[Location, int, frozenset[int]], ...] = ()

    def inside(self, index: int, **changes: Any) -> "Place":
        """The place inside equation `index`."""
        return dataclasses.replace(self, location=(*self.location, index), **changes)
