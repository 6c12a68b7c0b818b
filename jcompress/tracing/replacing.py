"""Several equations of a program that one operation takes the place of."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jcompress.tracing.jaxprs import Body, is_literal
from jcompress.tracing.values import Location


@dataclasses.dataclass(frozen=True, eq=False)
class Replacement:
    """An operation, and the values of a program that it computes.

    What only led to these values is left out.

    Attributes:
        inputs: values and literals of the program; none depends on the results.
        results: the values.
        run: gets the inputs, and what handlers read by location; gives the results.
    """

    inputs: tuple[Any, ...]
    results: tuple[Any, ...]
    run: Callable[[list[Any], Mapping[Location, Any]], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Step:
    """What is evaluated next.

    Attributes:
        inputs: the values that it takes.
        results: those that it makes.
        index: the number of the equation; -1 for a replacement.
        replacement: the operation that takes the place of equations; None for one.
    """

    inputs: Sequence[Any]
    results: Sequence[Any]
    index: int = -1
    replacement: Replacement | None = None


def steps(
    body: Body,
    replacements: Sequence[Replacement],
    source: Callable[[Any], Any],
    *,
    only_needed: bool,
) -> list[Step]:
    """The order in which a program is evaluated: that of its equations, mostly.

    Args:
        body: the program.
        replacements: what takes the place of some of its equations.
        source: which value takes the place of a value.
        only_needed: whether equations are left out that nothing needs; of a program
            with replacements they are in any case.
    """
    every = [
        Step(
            [source(atom) for atom in eqn.invars if not is_literal(atom)],
            eqn.outvars,
            i,
        )
        for i, eqn in enumerate(body.jaxpr.eqns)
    ]
    if not replacements and not only_needed:
        return every
    makers: dict[Any, Step] = {var: step for step in every for var in step.results}
    for one in replacements:
        inputs = [source(atom) for atom in one.inputs if not is_literal(atom)]
        step = Step(inputs, one.results, replacement=one)
        makers.update(dict.fromkeys(one.results, step))
    wanted = [source(atom) for atom in body.jaxpr.outvars if not is_literal(atom)]
    with_effects = [every[i] for i, e in enumerate(body.jaxpr.eqns) if e.effects]
    needed = _reached(
        [makers[var] for var in wanted if var in makers] + with_effects, makers
    )
    order: list[Step] = []
    done: set[int] = set()
    for step in every:
        if id(step) in needed:
            _append(step, makers, order, done)
    for var in wanted:
        if var in makers:
            _append(makers[var], makers, order, done)
    return order


def _reached(start: Iterable[Step], makers: Mapping[Any, Step]) -> set[int]:
    """The steps that some steps need, by `id`, these among them."""
    found: set[int] = set()
    waiting = list(start)
    while waiting:
        step = waiting.pop()
        if id(step) in found:
            continue
        found.add(id(step))
        waiting += [makers[var] for var in step.inputs if var in makers]
    return found


def _append(
    step: Step, makers: Mapping[Any, Step], order: list[Step], done: set[int]
) -> None:
    """Append a step, after those that it needs."""
    waiting = [step]
    while waiting:
        last = waiting[-1]
        if id(last) in done:
            waiting.pop()
            continue
        before = [makers[var] for var in last.inputs if var in makers]
        missing = [one for one in before if id(one) not in done]
        if missing:
            waiting += missing
            continue
        done.add(id(last))
        order.append(last)
        waiting.pop()
