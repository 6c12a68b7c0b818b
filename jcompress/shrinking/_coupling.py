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
    fixed_ids,
    fixed_labels,
    literal_labels,
    number_of,
)
from jcompress.shrinking._rule import unknown
from jcompress.tracing.jaxprs import (
    Body,
    Kind,
    bodies,
    is_literal,
    kind_of,
    scan_counts,
    split,
)
from jcompress.tracing.values import Location
from jcompress.tracing.views import SAME

Choices = dict[tuple[Location, int], int]
"""Which of several axes keeps its ids at a reshape that mixes axes."""


CUSTOM_GRADIENTS = frozenset({"custom_jvp_call", "custom_vjp_call"})
"""Operations with a gradient rule of their own, which is shrunk as well."""


@dataclasses.dataclass(frozen=True)
class Ambiguity:
    """A reshape at which one of several axes had to be chosen."""

    key: tuple[Location, int]
    options: int
    chosen: Ids


class Coupling:
    """One pass through a program.

    Attributes:
        ties: what the operations said.
        equations: for each equation the labels of its inputs and results.
        taken: which inputs of which equations are constants, each with the ids of the
            part that the equation takes.
        returned: the same for the results of programs within the program, by the
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
        self.returned: dict[Location, dict[int, Labels]] = {}
        self.counts: dict[Location, tuple[int, bool, tuple[Ids, ...]]] = {}
        self.ambiguities: list[Ambiguity] = []
        self._choices = choices
        self._copies: set[int] = set()

    def fresh(self, shape: Sequence[int]) -> tuple[Ids, ...]:
        """Ids for a new array; an axis of one position is fixed."""
        return tuple(self.ties.fresh(n) if n != 1 else fixed_ids(1) for n in shape)

    def copies(self, shape: Sequence[int]) -> tuple[Ids, ...]:
        """Ids for axes along which a value is repeated."""
        made = self.fresh(shape)
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

    def run(
        self, body: Body, inputs: Sequence[Labels], at: Location = (), scope: str = ""
    ) -> list[Labels]:
        """Move the ids of the inputs through a program; gives those of the results."""
        consts = [
            Labels(
                tuple(map(fixed_ids, np.shape(c))), number=number_of(c), constant=True
            )
            for c in body.consts
        ]
        known: dict[Any, Labels] = dict(zip(body.jaxpr.constvars, consts, strict=True))
        known.update(zip(body.jaxpr.invars, inputs, strict=True))

        def of(atom: Any) -> Labels:
            return literal_labels(atom) if is_literal(atom) else known[atom]

        for index, eqn in enumerate(body.jaxpr.eqns):
            ins = [of(atom) for atom in eqn.invars]
            constant = all(value.constant for value in ins) and not eqn.effects
            if not constant:
                ins = self._parts(eqn, ins, (*at, index))
            inside = _joined(scope, str(eqn.source_info.name_stack))
            if constant:
                outs = self._constant(eqn, ins, (*at, index), inside)
            else:
                outs = self._equation(eqn, ins, (*at, index), inside)
            self.equations[*at, index] = (tuple(ins), tuple(outs))
            known.update(zip(eqn.outvars, outs, strict=True))
        return [of(atom) for atom in body.jaxpr.outvars]

    def _constant(
        self, eqn: Any, ins: list[Labels], here: Location, scope: str
    ) -> list[Labels]:
        """What depends on constants only is one, of which the number may be known."""
        numbers: list[float | None] = [None] * len(eqn.outvars)
        if eqn.primitive.name in POINTWISE or eqn.primitive.name in SAME:
            outs = self._equation(eqn, ins, here, scope)
            numbers = [value.number for value in outs]
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
        return dataclasses.replace(value, ids=self.fresh(value.shape), constant=False)

    def _results(
        self, body: Body, inputs: Sequence[Labels], at: Location, scope: str
    ) -> list[Labels]:
        """As `run`, for a program whose results meet others: of the next step, say."""
        outs = self.run(body, inputs, at, scope)
        parts = {
            number: self._part(value)
            for number, value in enumerate(outs)
            if value.constant and value.ids
        }
        if parts:
            self.returned[at] = parts
        return [parts.get(number, value) for number, value in enumerate(outs)]

    def _equation(
        self, eqn: Any, ins: list[Labels], here: Location, scope: str
    ) -> list[Labels]:
        why = Why(eqn.primitive.name, scope)
        match kind_of(eqn):
            case Kind.LEAF:
                rule = RULES.get(eqn.primitive.name, unknown)
                outs = rule(self, eqn, ins, why, here)
                if self.attention is None:
                    return outs
                return self.attention.follow(eqn, ins, outs, here, why)
            case Kind.SEALED if eqn.primitive.name not in CUSTOM_GRADIENTS:
                return unknown(self, eqn, ins, why, here)
            case Kind.SCAN:
                return self._scan(eqn, ins, why, here, scope)
            case Kind.WHILE:
                return self._while(eqn, ins, why, here, scope)
            case Kind.COND:
                return self._cond(eqn, ins, why, here, scope)
            case Kind.SHARD_MAP:
                return self._shard_map(eqn, ins, why, here)
            case Kind.SEALED if self.attention is not None:
                self.attention.sealed.append(here)
        (body,) = bodies(eqn)
        return self.run(body, ins, (*here, 0), scope)

    def _scan(
        self, eqn: Any, ins: list[Labels], why: Why, here: Location, scope: str
    ) -> list[Labels]:
        (body,) = bodies(eqn)
        n_consts, n_carry = scan_counts(eqn)
        consts, carry, xs = split(ins, n_consts, n_carry)
        steps = xs[0].ids[0] if xs else fixed_ids(eqn.params["length"])
        for x in xs:
            self.ties.tie(steps, x.ids[0], why)
        # Without some of its steps a loop computes something else.
        self.ties.reduce(steps, why)
        slices = [Labels(x.ids[1:], past=x.past) for x in xs]
        carry = [Labels(value.ids) for value in carry]
        outs = self._results(body, [*consts, *carry, *slices], (*here, 0), scope)
        for before, after in zip(carry, outs[:n_carry], strict=True):
            self.alike(before, after, why)
        stacked = (Labels((steps, *y.ids), past=y.past) for y in outs[n_carry:])
        return [*carry, *stacked]

    def _while(
        self, eqn: Any, ins: list[Labels], why: Why, here: Location, scope: str
    ) -> list[Labels]:
        cond, body = bodies(eqn)
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond_consts, body_consts, carry = split(ins, n_cond, n_body)
        carry = [Labels(value.ids) for value in carry]
        self.run(cond, [*cond_consts, *carry], (*here, 0), scope)
        outs = self._results(body, [*body_consts, *carry], (*here, 1), scope)
        for before, after in zip(carry, outs, strict=True):
            self.alike(before, after, why)
        return carry

    def _cond(
        self, eqn: Any, ins: list[Labels], why: Why, here: Location, scope: str
    ) -> list[Labels]:
        results = [
            self._results(branch, ins[1:], (*here, number), scope)
            for number, branch in enumerate(bodies(eqn))
        ]
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                self.alike(a, b, why)
        return [Labels(value.ids, past=value.past) for value in results[0]]

    def _shard_map(
        self, eqn: Any, ins: list[Labels], why: Why, here: Location
    ) -> list[Labels]:
        # Ids of a whole axis are not those of one device's part of it.
        return unknown(self, eqn, ins, why, here)

    def alike(self, a: Labels, b: Labels, why: Why) -> None:
        """Two values of one shape are one and the same, position by position."""
        for left, right in zip(a.ids, b.ids, strict=True):
            self.ties.tie(left, right, why)

    def fix(self, labels: Labels, why: Why) -> None:
        """No position of a value can be removed."""
        for ids in labels.ids:
            self.ties.fix(ids, why)

    def count(
        self,
        here: Location,
        operand: int,
        reciprocal: bool,
        summed: tuple[Ids, ...],
    ) -> None:
        """An equation divides a sum by the number of its terms."""
        if any((ids != FIXED).any() for ids in summed):
            self.counts[here] = (operand, reciprocal, summed)


def _joined(outer: str, inner: str) -> str:
    return "/".join(part for part in (outer, inner) if part)
