"""Move ids through a traced function: which axes must shrink together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jcompress.shrinking._attention import Attention
from jcompress.shrinking._axis_rules import POINTWISE, RULES
from jcompress.shrinking._ids import FIXED, Ids, Ties, Why
from jcompress.shrinking._labels import (
    Labels,
    Total,
    fixed_ids,
    fixed_labels,
    number_of,
)
from jcompress.shrinking._rule import unknown
from jcompress.shrinking._symbolic import concrete, size_of
from jcompress.tracing.jaxprs import CUSTOM_GRADIENTS, Kind, kind_of, scan_counts
from jcompress.tracing.values import Location, Place
from jcompress.tracing.views import SAME
from jcompress.tracing.walk import Domain, Inside

Choices = dict[tuple[Location, int], int]
"""Which of several axes keeps its ids at a reshape that mixes axes."""


@dataclasses.dataclass(frozen=True)
class Ambiguity:
    """A reshape at which one of several axes had to be chosen."""

    key: tuple[Location, int]
    options: int
    chosen: Ids


class Coupling(Domain[Labels]):
    """One pass through a program.

    Attributes:
        ties: what the operations said.
        equations: for each equation the labels of its inputs and results.
        taken: which inputs of which equations are constants, each with the ids of the
            part that the equation takes.
        returns: the same for the results of programs within the program, by the
            location of the program.
        counts: the equations that divide a sum by the number of its terms: which input
            is that number, whether it is its reciprocal, and the ids of the summed
            axes.
        ambiguities: the reshapes at which a choice was made.
        attention: follows the constants by which attention is scaled; None if nobody
            asks.
    """

    def __init__(
        self,
        choices: Mapping[tuple[Location, int], int],
        attention: Attention | None = None,
    ) -> None:
        self.attention = attention
        self.ties = Ties()
        self.equations: dict[
            Location, tuple[tuple[Labels, ...], tuple[Labels, ...]]
        ] = {}
        self.taken: dict[Location, dict[int, Labels]] = {}
        self.returns: dict[Location, dict[int, Labels]] = {}
        self.counts: dict[Location, tuple[int, bool, tuple[Ids, ...]]] = {}
        self.ambiguities: list[Ambiguity] = []
        self._choices = choices
        self._copies: set[int] = set()

    def fresh(self, shape: Sequence[int]) -> tuple[Ids, ...]:
        """Ids for a new array; an axis of one position is fixed."""
        return tuple(self.ties.fresh(n) if n != 1 else fixed_ids(1) for n in shape)

    def copies(self, shape: Sequence[int]) -> tuple[Ids, ...]:
        """Ids for axes along which a value is repeated."""
        made = tuple(map(self.ties.lasting, self.fresh(shape)))
        self._copies.update(int(ids[0]) for ids in made if len(ids))
        return made

    def is_copies(self, ids: Ids) -> bool:
        """Whether an axis is one along which a value is repeated."""
        return int(ids[0]) in self._copies and int(ids[0]) != FIXED

    def choose(self, here: Location, number: int, options: Sequence[Ids]) -> int:
        """Which of several axes keeps its ids; recorded, to be tried again."""
        if len(options) == 1:
            return 0
        key = (here, number)
        chosen = self._choices.get(key, 0) % len(options)
        self.ambiguities.append(Ambiguity(key, len(options), options[chosen]))
        return chosen

    def failing(self) -> dict[tuple[Location, int], int]:
        """The next choice wherever the axis that was chosen turned out fixed."""
        fixed = self.ties.fixed()
        found = {}
        for at in self.ambiguities:
            now = self._choices.get(at.key, 0)
            if now + 1 < at.options and fixed[at.chosen].all():
                found[at.key] = now + 1
        return found

    def constant(self, value: Any, aval: Any) -> Labels:
        """What depends on no leaf and no argument; one number may matter."""
        ids = tuple(map(fixed_ids, np.shape(value)))
        return Labels(ids, number=number_of(value), constant=True)

    def equation(
        self, eqn: Any, ins: list[Labels], place: Place, inside: Inside[Labels] | None
    ) -> list[Labels]:
        """Move the ids of the inputs of an equation to its results."""
        here = place.location
        eqn = concrete(eqn)
        made_of = [frozenset() if v.constant else v.arguments for v in ins]
        data = frozenset[str]().union(*(names for names in made_of if names))
        why = Why(eqn.primitive.name, place.scope_of(eqn), " and ".join(sorted(data)))
        if all(value.constant for value in ins) and not eqn.effects:
            outs = self._constant(eqn, ins, why, here)
        else:
            ins = self._parts(eqn, ins, here)
            if inside is not None and _entered(eqn):
                if kind_of(eqn) is Kind.CUSTOM_GRADIENT and self.attention is not None:
                    self.attention.custom_gradients.append(here)
                outs = inside(ins)
            else:
                outs = self._rule(eqn, ins, why, here)
            if None not in made_of:
                outs = [dataclasses.replace(out, arguments=data) for out in outs]
        self.equations[here] = (tuple(ins), tuple(outs))
        return outs

    def _rule(
        self, eqn: Any, ins: list[Labels], why: Why, here: Location
    ) -> list[Labels]:
        outs = RULES.get(eqn.primitive.name, unknown)(self, eqn, ins, why, here)
        if self.attention is None:
            return outs
        return self.attention.follow(eqn, ins, outs, here, why)

    def _constant(
        self, eqn: Any, ins: list[Labels], why: Why, here: Location
    ) -> list[Labels]:
        """What depends on constants only is one, of which the number may be known."""
        numbers: list[float | None] = [None] * len(eqn.outvars)
        if eqn.primitive.name in POINTWISE or eqn.primitive.name in SAME:
            numbers = [v.number for v in self._rule(eqn, ins, why, here)]
        elif eqn.primitive.name == "broadcast_in_dim" and ins[0].number == 0:
            numbers = [0.0]
        return [
            dataclasses.replace(fixed_labels(var), number=number, constant=True)
            for var, number in zip(eqn.outvars, numbers, strict=True)
        ]

    def _parts(self, eqn: Any, ins: list[Labels], here: Location) -> list[Labels]:
        """The inputs with ids of their own for the parts of constants.

        So no two layers are tied that read the same table. Programs within the program
        get the whole constant, but for those that change it from step to step.
        """
        kept = range(0)
        match kind_of(eqn):
            case Kind.CALL | Kind.INLINE | Kind.REMAT | Kind.COND:
                kept = range(len(ins))
            case Kind.SCAN:
                kept = range(scan_counts(eqn)[0])
            case Kind.WHILE:
                kept = range(eqn.params["cond_nconsts"] + eqn.params["body_nconsts"])
        parts = {
            number: self._part(value)
            for number, value in enumerate(ins)
            if value.constant and value.ids and number not in kept
        }
        if parts:
            self.taken[here] = parts
        return [parts.get(number, value) for number, value in enumerate(ins)]

    def _part(self, value: Labels) -> Labels:
        ids = self.fresh(value.shape)
        if value.number != 0:
            ids = tuple(map(self.ties.lasting, ids))
        return dataclasses.replace(value, ids=ids, constant=False)

    def returned(self, outs: list[Labels], place: Place) -> list[Labels]:
        """The results with ids of their own for the parts of constants."""
        parts = {
            number: self._part(value)
            for number, value in enumerate(outs)
            if value.constant and value.ids
        }
        if parts:
            self.returns[place.location] = parts
        return [parts.get(number, value) for number, value in enumerate(outs)]

    def carried(self, value: Labels) -> Labels:
        """The ids alone: a number is another one in the next step, a zero none."""
        return Labels(tuple(map(self.ties.lasting, value.ids)))

    def slices(self, eqn: Any, xs: list[Labels], place: Place) -> list[Labels]:
        """The ids of the axes behind the first, along which all go together."""
        why = Why(eqn.primitive.name, place.scope)
        for x in xs:
            self.ties.tie(xs[0].ids[0], x.ids[0], why)
            # Without some of its steps a loop computes something else.
            self.ties.reduce(x.ids[0], why)
        return [Labels(x.ids[1:], past=x.past) for x in xs]

    def stacked(
        self, eqn: Any, xs: list[Labels], ys: list[Labels], place: Place
    ) -> list[Labels]:
        """The ids with those of the steps before them."""
        steps = xs[0].ids[0] if xs else fixed_ids(size_of(eqn.params["length"]))
        return [Labels((steps, *y.ids), past=y.past) for y in ys]

    def join(self, eqn: Any, a: Labels, b: Labels, place: Place) -> Labels:
        """One value, position by position."""
        self.alike(a, b, Why(eqn.primitive.name, place.scope))
        ids = tuple(map(self.zero_in_both, a.ids, b.ids))
        same = all(new is old for new, old in zip(ids, a.ids, strict=True))
        return a if same else dataclasses.replace(a, ids=ids)

    def chosen(self, index: Labels, outs: list[Labels]) -> list[Labels]:
        """The ids alone: a number may be another one in another branch."""
        return [Labels(value.ids, past=value.past) for value in outs]

    def alike(self, a: Labels, b: Labels, why: Why) -> None:
        """Two values of one shape are one and the same, position by position."""
        for left, right in zip(a.ids, b.ids, strict=True):
            self.ties.tie(left, right, why)

    def zero_in_both(self, a: Ids, *others: Ids) -> Ids:
        """Ids of an axis that values have, zero where all of them are."""
        for b in others:
            last = self.ties.lasts(b) & ~self.ties.lasts(a) & (a != FIXED)
            if last.any():
                a = np.where(last, b, a)
        return a

    def zero_in_either(self, a: Ids, b: Ids) -> Ids:
        """Ids of an axis that two values have, zero where one of them is."""
        last = self.ties.lasts(a)
        return np.where(last, b, a) if last.any() else a

    def fix(self, labels: Labels, why: Why) -> None:
        """No position of a value can be removed."""
        for ids in labels.ids:
            self.ties.fix(ids, why)

    def count(
        self,
        here: Location,
        operand: int,
        reciprocal: bool,
        total: Total,
    ) -> None:
        """An equation divides a sum by the number of its terms."""
        if any((ids != FIXED).any() for ids in total.over):
            self.counts[here] = (operand, reciprocal, total.over)
        for ids in total.over:
            # However small its terms are, there are fewer.
            self.ties.reduce(ids, total.why)


def _entered(eqn: Any) -> bool:
    """Whether the ids go on in the programs that an equation holds."""
    kind = kind_of(eqn)
    if kind is Kind.CUSTOM_GRADIENT:
        return eqn.primitive.name in CUSTOM_GRADIENTS
    # Ids of a whole axis are not those of one device's part of it.
    return kind is not Kind.SHARD_MAP
