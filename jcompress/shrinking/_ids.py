"""Integer ids of positions along axes, and which of them are one and the same."""

import functools
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = np.ndarray[Any, np.dtype[np.int64]]
"""One id for each position along an axis."""

FIXED = 0
"""The id of positions that cannot be removed: those of data."""


class Why(NamedTuple):
    """What ties or fixes positions: an operation, and where it stands.

    Attributes:
        operation: the operation.
        scope: the named scope around it.
        data: the arguments of the function that meet something else there.
    """

    operation: str
    scope: str = ""
    data: str = ""

    @property
    def meeting(self) -> "Why":
        """Why positions are fixed that meet others here which are."""
        if not self.data:
            return self
        return Why(f"{self.data}, by {self.operation}", self.scope)

    def __str__(self) -> str:
        return f"{self.operation} in {self.scope}" if self.scope else self.operation


class Ties:
    """Collects what operations say of ids.

    Positions whose ids are tied are removed together or not at all. In a model whose
    removed units are set to zero, a value is zero at what it has of them, until an
    operation makes something else of zero; from there on its ids are `lasting`: other
    numbers that stand for the same positions.
    """

    def __init__(self) -> None:
        self._next = FIXED + 1
        self._first = np.zeros(64, np.int64)  # by id the one that it stands for
        self._lasting = np.full(64, -1, np.int64)  # by id the lasting one, if there is
        self._lasting[FIXED] = FIXED
        self._pairs: list[tuple[Ids, Ids, Why]] = []
        self._fixed: list[tuple[Ids, Why]] = []
        self._reduced: list[tuple[Ids, Why]] = []
        self._components: Ids | None = None

    def fresh(self, size: int) -> Ids:
        """Ids that nothing else has."""
        start, self._next = self._next, self._next + size
        if self._next > len(self._first):
            more = max(len(self._first), size)
            self._first = np.append(self._first, np.zeros(more, np.int64))
            self._lasting = np.append(self._lasting, np.full(more, -1, np.int64))
        made = np.arange(start, self._next, dtype=np.int64)
        self._first[start : self._next] = made
        return made

    def lasting(self, ids: Ids) -> Ids:
        """The same positions, of a value that need not be zero at removed ones."""
        found = self._lasting[ids]
        new = np.unique(ids[found < 0])
        if len(new):
            made = self.fresh(len(new))
            self._first[made] = new
            self._lasting[new] = self._lasting[made] = made
            found = self._lasting[ids]
        return found

    def lasts(self, ids: Ids) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """At which positions a value need not be zero where they are removed."""
        last: np.ndarray[Any, np.dtype[np.bool_]] = np.equal(self._lasting[ids], ids)
        last[ids == FIXED] = False
        return last

    def tie(self, a: Ids, b: Ids, why: Why) -> None:
        """Positions of equal number in `a` and `b` are one and the same."""
        if a is b:
            return
        a, b = self._first[a], self._first[b]
        apart = a != b
        if not apart.any():
            return
        a, b = a[apart], b[apart]
        held = (a == FIXED) | (b == FIXED)
        if held.any():
            self.fix(np.maximum(a, b)[held], why.meeting)
            a, b = a[~held], b[~held]
        if len(a):
            self._pairs.append((a, b, why))

    def fix(self, ids: Ids, why: Why) -> None:
        """These positions cannot be removed."""
        ids = self._first[ids[ids != FIXED]]
        if len(ids):
            self._fixed.append((ids, why))

    def reduce(self, ids: Ids, why: Why) -> None:
        """A reduction runs over these positions: their number changes its result."""
        ids = self._first[ids[ids != FIXED]]
        if len(ids):
            self._reduced.append((ids, why))

    def components(self) -> Ids:
        """For each id the number of its component."""
        if self._components is None:
            none = [np.zeros(0, np.int64)]
            a = np.concatenate([p[0] for p in self._pairs] or none)
            b = np.concatenate([p[1] for p in self._pairs] or none)
            size = self._next
            graph = coo_array((np.ones(len(a), np.int8), (a, b)), (size, size))
            found = connected_components(graph, directed=False)[1].astype(np.int64)
            self._components = found[self._first[:size]]
        return self._components

    def fixed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each id whether its component has a position that is fixed."""
        component = self.components()
        held = np.zeros(component.max() + 1, bool)
        held[component[FIXED]] = True
        for ids, _ in self._fixed:
            held[component[ids]] = True
        return held[component]

    def why_fixed(self, ids: Ids) -> Why | None:
        """What first fixes one of these positions or one that is tied to them."""
        component = self.components()
        wanted = np.zeros(component.max() + 1, bool)
        wanted[component[ids]] = True
        wanted[component[FIXED]] = False
        events = self._fixed
        return next(
            (why for held, why in events if wanted[component[held]].any()), None
        )

    def reduced(self) -> dict[int, Why]:
        """For each component that a reduction runs over the first such reduction."""
        component = self.components()
        found: dict[int, Why] = {}
        for ids, why in self._reduced:
            for number in np.unique(component[ids]):
                found.setdefault(int(number), why)
        return found

    def reasons(self) -> dict[int, Why]:
        """For each fixed component the first operation that fixes it."""
        component = self.components()
        found: dict[int, Why] = {}
        for ids, why in self._fixed:
            for number in np.unique(component[ids]):
                found.setdefault(int(number), why)
        return found

    def operations(self, ids: Ids) -> list[Why]:
        """The operations that tie exactly these ids to others, in order."""
        spoken, pair_of = self._spoken
        ids = self._first[ids]
        starts = np.searchsorted(spoken, ids, "left")
        counts = np.searchsorted(spoken, ids, "right") - starts
        before = np.cumsum(counts) - counts
        found = np.repeat(starts - before, counts) + np.arange(counts.sum())
        pairs = np.unique(pair_of[found])
        return list(dict.fromkeys(self._pairs[number][2] for number in pairs))

    @functools.cached_property
    def _spoken(self) -> tuple[Ids, Ids]:
        """The ids that were tied, in order, and for each the number of its pair."""
        none = [np.zeros(0, np.int64)]
        ids = np.concatenate([x for a, b, _ in self._pairs for x in (a, b)] or none)
        sizes = np.array([2 * len(a) for a, _, _ in self._pairs], np.int64)
        order = np.argsort(ids, kind="stable")
        return ids[order], np.repeat(np.arange(len(sizes)), sizes)[order]
