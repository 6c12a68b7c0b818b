"""Convolutions and max pools that read each other, with integers between them.

A result that only the next convolution reads, perhaps pooled before, and that this one
rounds by a scale that is known beforehand, is stored as these integers: a quarter of
the bytes, and nothing is left to round. The largest of some numbers is rounded to the
largest of their integers, so that pools take them as they are. A result that a
convolution shares rounded (`Activation(shared=True)`) is stored so whoever reads it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jcompress.execution.after import Rounded, Stored
from jcompress.execution.convolutions import takes_data
from jcompress.execution.how import Execution, How
from jcompress.execution.members import Member
from jcompress.execution.pools import Pool
from jcompress.execution.shared import Shared
from jcompress.fusion import Graph
from jcompress.tensors.ranges import InputScale
from jcompress.tracing.deferred import opened
from jcompress.tracing.jaxprs import is_literal, split
from jcompress.tracing.replacing import Replacement
from jcompress.tracing.values import Location

Scales = Mapping[Location, InputScale]


@dataclasses.dataclass(frozen=True)
class Together:
    """A group of convolutions and max pools.

    Attributes:
        graph: their program.
        members: in the order of their results.
        shared: the values of the program that all who read them get rounded.
    """

    graph: Graph
    members: Sequence[Member]
    shared: Mapping[Any, Shared]

    def replacement(self) -> Replacement:
        """What evaluates them."""
        made = {one.result for one in self.members}
        outer = [
            [atom for atom in one.inputs if is_literal(atom) or atom not in made]
            for one in self.members
        ]
        inside = frozenset(n for one in self.members for n in one.equations)
        results = tuple(
            one.result
            for one in self.members
            if one.result in self.graph.results
            or any(u not in inside for u in self.graph.users.get(one.result, []))
        )

        def run(values: list[Any], reads: Mapping[Location, Any]) -> Sequence[Any]:
            here = {
                one.of.use.location
                for one in self.members
                if not isinstance(one.of, Pool)
            }
            scales = {where: reads[where] for where in here if where in reads}
            for one in self.members:
                if one.result in self.shared:
                    where = self.shared[one.result].location
                    scales[where] = reads[where]
            parts = split(values, *map(len, outer))[:-1]
            takers = self._takers(parts)
            kinds = self._kinds(takers, scales)

            def by(kinds: Any, values: Sequence[Any], scales: Scales) -> list[Any]:
                given = split(values, *map(len, outer))[:-1]
                env = self._evaluated(given, takers, kinds, scales)
                return [_dense(env[var]) for var in results]

            if not kinds:
                return by(kinds, values, scales)
            arrays, closed = opened(values)
            arrays, whole = _without_known(arrays, closed)
            # Locations are no keys of a pytree that can be sorted with others.
            order = sorted(scales)

            # Integers have no gradient: it is that of the same convolutions with floats
            # between them, which rounds straight through.
            @jax.custom_vjp
            def integers(arrays: Any, numbers: Any) -> Any:
                return by(kinds, whole(arrays), dict(zip(order, numbers, strict=True)))

            def floats(arrays: Any, numbers: Any) -> Any:
                return by({}, whole(arrays), dict(zip(order, numbers, strict=True)))

            def forward(arrays: Any, numbers: Any) -> tuple[Any, Any]:
                return integers(arrays, numbers), (arrays, numbers)

            def backward(saved: Any, cotangent: Any) -> Any:
                _, pull = jax.vjp(floats, *saved)
                return pull(cotangent)

            integers.defvjp(forward, backward)
            outs: Sequence[Any] = integers(arrays, [scales[where] for where in order])
            return outs

        inputs = tuple(atom for atoms in outer for atom in atoms)
        return Replacement(inputs, results, run)

    def _takers(self, parts: Sequence[Sequence[Any]]) -> dict[Any, bool]:
        """By result, whether a member reads and makes integers."""
        made = {one.result for one in self.members}
        found: dict[Any, bool] = {}
        for one, values in zip(self.members, parts, strict=True):
            if isinstance(one.of, Pool):
                found[one.result] = True
                continue
            inner = [not is_literal(a) and a in made for a in one.inputs]
            rest = iter(values)
            every = [None if mine else next(rest) for mine in inner]
            eqn = one.of.use.eqn
            inputs = every[: len(eqn.invars)]
            found[one.result] = one.of.handler.convolves(one.of.use, inputs)
        return found

    def _kinds(
        self, takers: Mapping[Any, bool], scales: Scales
    ) -> dict[Any, tuple[Location, int]]:
        """The values that are integers: by whose scale, and of how many bits."""
        found: dict[Any, tuple[Location, int]] = {}
        readers = {id(self._eqn(one)): one for one in self.members}
        for one in reversed(self.members):
            first = self.shared.get(one.result)
            if first is not None:
                if takes_data(first.format):
                    found[one.result] = (first.location, first.format.bits)
                continue
            reader = readers.get(id(self.graph.only_user(one.result)))
            if reader is None or reader.data is not one.result:
                continue
            if isinstance(reader.of, Pool):
                if reader.result in found:
                    found[one.result] = found[reader.result]
                continue
            known = scales.get(reader.of.use.location)
            both = takers[one.result] and takers[reader.result]
            activation = reader.of.handler.activation
            if both and activation and known is not None and known.scale.size == 1:
                where = reader.of.use.location
                found[one.result] = (where, activation.format.bits)
        return found

    @staticmethod
    def _eqn(one: Member) -> Any:
        return one.of.eqn if isinstance(one.of, Pool) else one.of.use.eqn

    def _evaluated(
        self,
        parts: Sequence[Sequence[Any]],
        takers: Mapping[Any, bool],
        kinds: Mapping[Any, tuple[Location, int]],
        scales: Scales,
    ) -> dict[Any, Any]:
        """All results; those of `kinds` rounded."""
        env: dict[Any, Any] = {}
        owner: dict[Any, Location] = {}
        for one, outer in zip(self.members, parts, strict=True):
            rest = iter(outer)
            values = [
                next(rest) if is_literal(atom) or atom not in env else env[atom]
                for atom in one.inputs
            ]
            stored = None
            if one.result in kinds:
                where, bits = kinds[one.result]
                stored = Stored(bits, *scales[where])
                owner[one.result] = where
            if isinstance(one.of, Pool):
                same = owner.get(one.data) == owner.get(one.result)
                value = self._pooled(one.of, values[0], keep=same)
            else:
                value = self._convolved(
                    one, values, takers, scales, stored, owner.get(one.data)
                )
            if stored is not None and not isinstance(value, Rounded):
                value = stored.rounded(value)
            elif stored is None and one.result in self.shared:
                value = self.shared[one.result].faked(value, scales)
            env[one.result] = value
        return env

    def _pooled(self, pool: Pool, value: Any, *, keep: bool) -> Any:
        if not (keep and isinstance(value, Rounded)):
            return pool.run(_dense(value))
        handler = next(o.of.handler for o in self.members if not isinstance(o.of, Pool))
        scope = str(pool.eqn.source_info.name_stack)
        bits = value.stored.bits
        handler.record["max pool", id(pool)] = Execution(
            scope, "max pool", How.FUSED, f"of integers of {bits} bits"
        )
        return Rounded(pool.run(value.integers), value.stored)

    def _convolved(
        self,
        one: Member,
        values: list[Any],
        takers: Mapping[Any, bool],
        scales: Scales,
        stored: Stored | None,
        owner: Location | None,
    ) -> Any:
        assert not isinstance(one.of, Pool)
        where, activation = one.of.use.location, one.of.handler.activation
        reads = {where: scales.get(where)}
        rounded = False
        if isinstance(values[0], Rounded):
            mine = owner == where or (activation is not None and activation.shared)
            rounded = takers[one.result] and mine
            if rounded:
                stands_for = values[0].stored
                reads = {where: InputScale(stands_for.scale, stands_for.zero)}
                values[0] = values[0].integers
        own = len(one.of.use.eqn.invars)
        values = [
            value if number >= own and atom is one.addend else _dense(value)
            for number, (atom, value) in enumerate(zip(one.inputs, values, strict=True))
        ]
        if not takers[one.result]:
            stored = None
        y = one.of.run(values, reads, stored=stored, rounded=rounded)
        return y if stored is None else Rounded(y, stored)


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, Rounded) else value


def _without_known(
    arrays: Sequence[Any], closed: Callable[[Any], list[Any]]
) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
    """Arrays less those that are known while the program is traced, and the way back.

    As arguments of a function with a gradient of its own they would be known no more,
    and a kernel could not keep what it makes of a constant weight.
    """
    known = [not isinstance(array, jax.core.Tracer) for array in arrays]
    pairs = list(zip(arrays, known, strict=True))

    def whole(traced: Sequence[Any]) -> list[Any]:
        rest = iter(traced)
        return closed([array if there else next(rest) for array, there in pairs])

    return [array for array, there in pairs if not there], whole
