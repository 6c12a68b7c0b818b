"""Factors by position as unknowns, and what operations say of their sums of logarithms.

A value may be multiplied by `exp(sum of its terms)`; each term gives each position an
unknown and how often it counts. Along an axis of size 1 a term does not depend on the
position. Every unknown 0 is 0.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array, eye_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

MOST = 1 << 24
"""Positions of a value that are looked at one by one; larger ones keep their scale."""


class Why(NamedTuple):
    """What stands in the way of a factor: an operation, and where it stands.

    Attributes:
        operation: the name of the primitive.
        scope: the named scope around it.
        note: what else is to be said.
    """

    operation: str
    scope: str = ""
    note: str = ""

    def __str__(self) -> str:
        where = f" in {self.scope}" if self.scope else ""
        return f"`{self.operation}`{where}" + (f" {self.note}" if self.note else "")


class Term(NamedTuple):
    """One summand of the logarithm of a factor, position by position.

    Attributes:
        ids: the unknowns, with as many axes as the value or more in front.
        counts: by what each is multiplied.
    """

    ids: Numbers
    counts: Floats

    def times(self, number: float) -> "Term":
        """The same, counted `number` times."""
        return Term(self.ids, self.counts * number)

    def each(self, change: Callable[[Any], Any]) -> "Term":
        """The term with its positions moved."""
        return Term(change(self.ids), change(self.counts))

    def reshape(self, *shape: int) -> "Term":
        """The same positions in another shape."""
        return Term(self.ids.reshape(shape), self.counts.reshape(shape))

    def broadcast(self, *shape: int) -> "Term":
        """The positions repeated along axes of size 1."""
        return self.each(lambda x: np.broadcast_to(x, shape))

    def squeeze(self, *axes: int) -> "Term":
        """The term without some axes of size 1."""
        return self.each(lambda x: np.squeeze(x, axes))

    def expand(self, axis: int) -> "Term":
        """The term with one more axis of size 1."""
        return self.each(lambda x: np.expand_dims(x, axis))

    def first(self, axis: int) -> "Term":
        """The first position along an axis, which stays."""
        return self.each(lambda x: np.take(x, [0], axis))


@dataclasses.dataclass(frozen=True)
class Solution:
    """Which unknowns are free, and how the others follow from them.

    Attributes:
        roots: for each unknown the one that it follows from; 0 if it is 0.
        ratios: how often it counts.
        causes: for each unknown that must be 0 the number of the reason, or -1.
        reasons: the reasons.
        chose: whether others could have been free instead.
    """

    roots: Numbers
    ratios: Floats
    causes: Numbers
    reasons: Sequence[Why]
    chose: bool

    def why_zero(self, ids: Numbers) -> Why | None:
        """Why the first of these unknowns that must be 0 is."""
        causes = self.causes[ids.ravel()]
        found = causes[causes >= 0]
        return self.reasons[int(found.min())] if len(found) else None


class Unknowns:
    """Collects unknowns, and sums of them that must be 0."""

    def __init__(self) -> None:
        self._next = 1
        self._rows: list[tuple[list[Numbers], list[Floats], Why]] = []
        self._kept: list[Numbers] = []

    def fresh(self, shape: Sequence[int], *, keep: bool = False) -> Term:
        """A term of new unknowns.

        Args:
            shape: its shape.
            keep: whether others become 0 rather than these, where there is a choice.
        """
        size = int(np.prod(shape, dtype=np.int64))
        ids = np.arange(self._next, self._next + size, dtype=np.int64).reshape(shape)
        self._next += size
        if keep:
            self._kept.append(ids.ravel())
        return Term(ids, np.ones(shape))

    def vanish(self, terms: Sequence[Term], why: Why) -> None:
        """The sum of terms is 0 at every position."""
        terms = [term for term in terms if term.ids.any()]
        if not terms:
            return
        shape = np.broadcast_shapes(*(term.ids.shape for term in terms))
        if np.prod(shape, dtype=np.int64) > MOST:
            for term in terms:
                self.vanish([term.reshape(-1)], why)
            return
        every = [term.broadcast(*shape).reshape(-1) for term in terms]
        self._rows.append(([t.ids for t in every], [t.counts for t in every], why))

    def solve(self, *, turned: bool = False) -> Solution:
        """Find the free unknowns.

        Where a sum of three or more unknowns is left, all but two become 0: first those
        that the most sums have.

        Args:
            turned: first those that the fewest sums have.
        """
        size = self._next
        system, reason_of, reasons = self._system(size)
        kept = np.zeros(size, bool)
        kept[np.concatenate([np.zeros(0, np.int64), *self._kept])] = True
        follows = csr_array(eye_array(size, format="csr"))
        causes = np.full(size, -1, np.int64)
        chose = False
        while True:
            left = csr_array(system @ follows)
            left.data[np.abs(left.data) < 1e-9] = 0
            left.eliminate_zeros()
            counts = np.diff(left.indptr)
            alone = np.flatnonzero(counts == 1)
            pairs = np.flatnonzero(counts == 2)
            zero = np.full(size, -1, np.int64)
            if not len(alone) and not len(pairs):
                many = np.flatnonzero(counts > 2)
                if not len(many):
                    break
                zero[_least_needed(left, many, kept, turned)] = len(reasons)
                chose = True
            else:
                why = _reasons(system, alone, causes, reason_of)
                # The first reason stays.
                zero[left.indices[left.indptr[alone[::-1]]]] = why[::-1]
            step, causing = _merged(left, pairs, zero, reason_of)
            hit = causes < 0
            root = follows.indices[follows.indptr[:-1].clip(max=follows.nnz - 1)]
            held = hit & (np.diff(follows.indptr) == 1)
            causes[held] = causing[root[held]]
            follows = csr_array(follows @ step)
            follows.eliminate_zeros()
        roots, ratios = np.zeros(size, np.int64), np.zeros(size)
        free = np.flatnonzero(np.diff(follows.indptr))
        roots[free] = follows.indices[follows.indptr[free]]
        ratios[free] = follows.data[follows.indptr[free]]
        roots[0] = ratios[0] = 0
        choice = Why("another parameter", note="takes the factor")
        return Solution(roots, ratios, causes, (*reasons, choice), chose)

    def _system(self, size: int) -> tuple[csr_array, Numbers, list[Why]]:
        rows, ids, counts, reason_of = [], [], [], []
        start = 0
        for number, (each_ids, each_counts, _) in enumerate(self._rows):
            length = len(each_ids[0])
            for one, count in zip(each_ids, each_counts, strict=True):
                rows.append(np.arange(start, start + length))
                ids.append(one)
                counts.append(count)
            reason_of.append(np.full(length, number))
            start += length
        none = [np.zeros(0, np.int64)]
        flat = np.concatenate(ids or none)
        data = np.concatenate(counts or [np.zeros(0)])
        data = np.where(flat == 0, 0.0, data)
        where = (np.concatenate(rows or none), flat)
        system = csr_array(coo_array((data, where), (max(start, 1), size)))
        every = np.concatenate([*reason_of, np.zeros(1, np.int64)])
        return system, every, [why for _, _, why in self._rows]


def _reasons(
    system: csr_array, alone: Numbers, causes: Numbers, reason_of: Numbers
) -> Numbers:
    """Why the unknowns that are alone in these sums are 0: what made others 0."""
    part = coo_array(system[alone])
    never = np.iinfo(np.int64).max
    found = np.full(len(alone), never)
    given = causes[part.coords[1]]
    np.minimum.at(found, part.coords[0], np.where(given < 0, never, given))
    return np.where(found == never, reason_of[alone], found)


def _least_needed(
    left: csr_array,
    many: Numbers,
    kept: np.ndarray[Any, np.dtype[np.bool_]],
    turned: bool,
) -> Numbers:
    """Of each of these sums the unknown that is set to 0."""
    uses = np.bincount(left.indices, minlength=left.shape[1])
    found = []
    for row in many:
        ids = left.indices[left.indptr[row] : left.indptr[row + 1]]
        sign = -1 if turned else 1
        found.append(min(ids, key=lambda i: (kept[i], -sign * uses[i], sign * i)))
    return np.unique(np.asarray(found, np.int64))


def _merged(
    left: csr_array, pairs: Numbers, zero: Numbers, reason_of: Numbers
) -> tuple[csr_array, Numbers]:
    """What each unknown becomes, given sums of two that are 0 and those that are 0.

    Returns:
        The matrix from the unknowns that stay to all, and why others are 0.
    """
    size = left.shape[1]
    first = left.indptr[pairs]
    a, b = left.indices[first], left.indices[first + 1]
    ratio = -left.data[first] / left.data[first + 1]  # x_b = ratio * x_a
    graph = coo_array((np.ones(len(a)), (a, b)), (size, size))
    count, component = connected_components(graph, directed=False)
    # A node before all others makes one tree of the forest.
    heads = np.zeros(count, np.int64)
    heads[component[::-1]] = np.arange(size)[::-1]
    rows = np.concatenate([a, np.full(count, size)])
    columns = np.concatenate([b, heads])
    tree = csr_array((np.ones(len(rows)), (rows, columns)), (size + 1, size + 1))
    _, parent = breadth_first_order(tree, size, directed=False)
    parent = np.asarray(parent, np.int64)
    parent[size] = size
    weight = np.ones(size + 1)
    weight[:size] = _ratios(a, b, ratio, parent[:size], size)
    parent[heads] = heads
    while (parent[parent] != parent).any():
        weight, parent = weight * weight[parent], parent[parent]
    weight, parent = weight[:size], parent[:size]
    wrong = np.abs(weight[b] - ratio * weight[a]) > 1e-6 * np.abs(weight[b])
    cause = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(cause, component[a[wrong]], reason_of[pairs[wrong]])
    held = np.flatnonzero(zero >= 0)
    np.minimum.at(cause, component[held], zero[held])
    causing = np.where(cause[component] == np.iinfo(np.int64).max, -1, cause[component])
    stays = np.flatnonzero(causing < 0)
    step = coo_array((weight[stays], (stays, parent[stays])), (size, size))
    return csr_array(step), causing


def _ratios(
    a: Numbers, b: Numbers, ratio: Floats, parent: Numbers, size: int
) -> Floats:
    """By unknown its ratio to its parent in the tree; 1 for those without one."""
    ends = np.concatenate([a * (size + 1) + b, b * (size + 1) + a])
    both = np.concatenate([ratio, 1 / ratio])
    keys, where = np.unique(ends, return_index=True)
    wanted = parent * (size + 1) + np.arange(size)
    place = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
    if not len(keys):
        return np.ones(size)
    found = keys[place] == wanted
    return np.where(found, both[where[place]], 1.0)
