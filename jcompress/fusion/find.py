"""Find in a traced program what one operation can take the place of."""

import contextlib
import dataclasses
import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax

from jcompress.fusion.attention import find_attention
from jcompress.fusion.graph import Graph
from jcompress.fusion.normalization import find_normalizations
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.jaxprs import Body, Kind, bodies, kind_of
from jcompress.tracing.replacing import Replacement
from jcompress.tracing.values import Location


class Fusion(enum.Enum):
    """Equations that one operation takes the place of."""

    ATTENTION = "attention"
    """Softmax attention: two products and all that is between them."""
    NORMALIZATION = "normalization"
    """Layer and RMS normalisation, with the sum of residuals before it."""
    AFTER_PRODUCTS = "after products"
    """Bias, activation function, gate and residual in the call of a product of a
    compressed leaf."""


_INTO = frozenset(
    {Kind.CALL, Kind.INLINE, Kind.REMAT, Kind.SCAN, Kind.WHILE, Kind.COND}
)


def programs(body: Body, at: Location = ()) -> Iterator[tuple[Location, Body]]:
    """A program and those within it, with their locations."""
    yield at, body
    for index, eqn in enumerate(body.jaxpr.eqns):
        if kind_of(eqn) in _INTO:
            for number, inner in enumerate(bodies(eqn)):
                yield from programs(inner, (*at, index, number))


@dataclasses.dataclass(frozen=True)
class Found:
    """A pattern that was found.

    Attributes:
        fusion: which one.
        at: the location of the program that it is in.
        scope: the named scope of its last equation.
        replacement: what takes its place.
    """

    fusion: Fusion
    at: Location
    scope: str
    replacement: Replacement


def find_fusions(
    body: Body,
    wanted: Collection[Fusion],
    taken: Mapping[Location, Collection[int]] | None = None,
) -> list[Found]:
    """All attentions and normalisations of a program, and of those within it.

    Args:
        body: the program, with calls written out.
        wanted: which patterns.
        taken: equations that are part of something else, by the program that they
            stand in.
    """
    found: list[Found] = []
    for at, program in programs(body):
        graph = Graph.of(program)
        other = set((taken or {}).get(at, ()))
        if Fusion.ATTENTION in wanted:
            for one in find_attention(graph):
                if not other.intersection(one.equations):
                    found.append(
                        _found(Fusion.ATTENTION, at, graph, one, (one.result,))
                    )
        if Fusion.NORMALIZATION in wanted:
            for norm in find_normalizations(graph, other):
                results = norm.results
                found.append(_found(Fusion.NORMALIZATION, at, graph, norm, results))
    return found


def _found(
    fusion: Fusion, at: Location, graph: Graph, pattern: Any, results: Sequence[Any]
) -> Found:
    """A pattern with what evaluates it: its operation on CPUs, else its equations."""
    equations = sorted(pattern.equations)
    original = graph.original(equations, pattern.inputs, results)
    scope = str(graph.body.jaxpr.eqns[equations[-1]].source_info.name_stack)

    def run(values: list[Any], reads: Mapping[Location, Any]) -> Sequence[Any]:
        values = [v.dense() if isinstance(v, Deferred) else v for v in values]
        with jax.named_scope(scope) if scope else contextlib.nullcontext():
            outs: Sequence[Any] = jax.lax.platform_dependent(
                *values, cpu=pattern.run, default=original
            )
            return outs

    replaced = Replacement(tuple(pattern.inputs), tuple(results), run)
    return Found(fusion, at, scope, replaced)
