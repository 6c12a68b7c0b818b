"""The interpreter, with values of inner programs handed out as statistics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jcompress.tracing.handlers import Joining
from jcompress.tracing.interpreter import Program
from jcompress.tracing.jaxprs import Body, split
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location, Use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """Values of a program that is somewhere in the traced function.

    Attributes:
        place: where the program stands; () for the function itself.
        atoms: the values, as its equations name them.
        made: what is handed back of these values.
        stacked: location and length of the enclosing scans whose steps stay apart,
            along a leading axis, outermost first; those of other scans become one.
    """

    place: Location
    atoms: tuple[Any, ...]
    made: Callable[[Sequence[Any]], Any]
    stacked: tuple[tuple[Location, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Watching(Program):
    watches: Mapping[Location, Watch]

    def run(
        self,
        body: Body,
        inputs: Sequence[Any],
        at: Location,
        reads: Mapping[Location, Any],
    ) -> tuple[list[Any], dict[Location, Any]]:
        here = {key: one for key, one in self.watches.items() if one.place == at}
        if not here:
            return super().run(body, inputs, at, reads)
        results = body.jaxpr.outvars
        atoms = [atom for one in here.values() for atom in one.atoms]
        wider = body.jaxpr.replace(outvars=[*results, *atoms])
        found, statistics = super().run(Body(wider, body.consts), inputs, at, reads)
        outs, values = split(found, len(results))
        for key, one in here.items():
            own, values = split(values, len(one.atoms))
            statistics[key] = one.made([self.dense(value, "watched") for value in own])
        return outs, statistics


def watch(
    traced: Traced,
    watches: Sequence[Watch],
    statistic: Joining,
    leaves: Sequence[Any],
    data: Sequence[Any],
) -> tuple[list[Any], list[Any]]:
    """Evaluate a program, and hand back what its watches make of its values.

    Args:
        traced: the function.
        watches: what to look at.
        statistic: how what several executions hand back becomes one.
        leaves: the leaves of the function.
        data: its other inputs.

    Returns:
        The results of the program, and what each watch made.
    """
    # Below zero no equation stands, so no handler's location is taken.
    keys: dict[Location, Watch] = {
        (*one.place, -1 - n): one for n, one in enumerate(watches)
    }
    uses = {key: Use(None, (), (), None, one.stacked) for key, one in keys.items()}
    program = _Watching(
        traced=dataclasses.replace(traced, uses={**traced.uses, **uses}),
        handlers={},
        statistic=statistic,
        opened=frozenset(one.place for one in watches),
        watches=keys,
    )
    outs, statistics = program(leaves, data, dict.fromkeys(keys))
    return outs, [statistics[key] for key in keys]
