"""Find layer and RMS normalisation in a program, however they are written."""

import dataclasses
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np

from jcompress.fusion.graph import Graph, floats
from jcompress.fusion.rowwise import (
    Array,
    Form,
    Region,
    Rows,
    Unknown,
    full,
    same,
    vector,
)
from jcompress.kernels import normalize
from jcompress.tracing.jaxprs import aval_shape, is_literal

_MOST = 40
"""Equations of a normalisation."""
_NEAREST = 4
"""How many values are tried as what is normalised."""
_ROOTS = frozenset({"rsqrt", "sqrt", "pow"})


@dataclasses.dataclass(frozen=True)
class Normalization:
    """A normalisation of each row, along the last axis.

    Attributes:
        inputs: the rows, what is added to them before, the scale and the bias, those
            that there are.
        results: the normalised rows; then, if something else needs it, the sum.
        epsilon: what is added to the mean of squares.
        centered: whether the mean is subtracted, as layer normalisation does.
        has_residual: whether there is something to add before.
        has_scale: whether there is a scale.
        has_bias: whether there is a bias.
        equations: all that this takes the place of.
    """

    inputs: tuple[Any, ...]
    results: tuple[Any, ...]
    epsilon: float
    centered: bool
    has_residual: bool
    has_scale: bool
    has_bias: bool
    equations: tuple[int, ...]

    def run(self, *values: Any) -> list[jax.Array]:
        """Compute it by the one operation."""
        x, *rest = values
        residual = rest.pop(0) if self.has_residual else None
        scale = rest.pop(0).reshape(-1) if self.has_scale else None
        bias = rest.pop(0).reshape(-1) if self.has_bias else None
        given: dict[str, Any] = {"epsilon": self.epsilon, "centered": self.centered}
        if len(self.results) == 1:
            return [normalize(x, scale, bias, residual=residual, **given)]
        return list(
            normalize(x, scale, bias, residual=residual, keep_sum=True, **given)
        )


def find_normalizations(graph: Graph, other: Collection[int]) -> list[Normalization]:
    """All normalisations of a program, none within another.

    Args:
        graph: the program.
        other: equations that are part of something else.
    """
    found: list[Normalization] = []
    taken = set(other)
    for number, eqn in enumerate(graph.body.jaxpr.eqns):
        if eqn.primitive.name not in _ROOTS or number in taken:
            continue
        one = _around(graph, number, eqn.outvars[0])
        if one is not None and not taken.intersection(one.equations):
            found.append(_with_sum(graph, one, taken))
            taken.update(found[-1].equations)
    return found


def _around(graph: Graph, number: int, root: Any) -> Normalization | None:
    """The normalisation that takes a square root, if it is part of one."""
    for start in _starts(graph, number):
        shape = aval_shape(start)
        known = bool(shape) and isinstance(shape[-1], int)
        if not known or shape[-1] < 2 or not floats(start):
            continue
        for end, equations in _ends(graph, start, root):
            given = _vectors(graph, equations, start, shape)
            if given is None or not graph.closed(equations, {end}):
                continue
            if not graph.differentiates(equations):
                continue
            found = _identified(graph, start, end, equations, given)
            if found is not None:
                return found
    return None


def _starts(graph: Graph, number: int) -> list[Any]:
    """What may be normalised: what is summed, or squared before; first ones first."""
    eqns = graph.body.jaxpr.eqns
    found: dict[int, Any] = {}
    waiting, seen = [number], {number}
    while waiting and len(seen) < _MOST:
        eqn = eqns[waiting.pop()]
        if eqn.primitive.name == "reduce_sum":
            atom = eqn.invars[0]
            squared = graph.maker(atom)
            names = ("square", "mul", "integer_pow")
            if squared is not None and squared.primitive.name in names:
                atom = squared.invars[0]
            found[graph.makers.get(atom, -1)] = atom
            centred = graph.maker(atom)
            if centred is None or centred.primitive.name != "sub":
                continue
        for atom in eqn.invars:
            place = None if is_literal(atom) else graph.makers.get(atom)
            if place is not None and place not in seen:
                seen.add(place)
                waiting.append(place)
    return [found[place] for place in sorted(found)[-_NEAREST:]]


def _ends(graph: Graph, start: Any, root: Any) -> Iterator[tuple[Any, list[int]]]:
    """Values of the rows' shape that come from a root, the last ones first."""
    shape = aval_shape(start)
    reached: list[Any] = []
    frontier, seen = [root], {root}
    while frontier:
        var = frontier.pop()
        for number in graph.users.get(var, []):
            (out, *more) = graph.body.jaxpr.eqns[number].outvars
            if more or out in seen or len(seen) > _MOST:
                continue
            inputs = graph.body.jaxpr.eqns[number].invars
            if not all(
                is_literal(v)
                or v in seen
                or _is_vector(v, shape)
                or graph.between(_stops(graph, v, start, shape), v, _MOST) is not None
                for v in inputs
            ):
                continue
            seen.add(out)
            frontier.append(out)
            if aval_shape(out) == shape:
                reached.append(out)
    for end in sorted(reached, key=lambda v: -graph.makers[v]):
        equations = graph.between(_stops(graph, end, start, shape), end, _MOST)
        if equations:
            yield end, equations


def _stops(graph: Graph, end: Any, start: Any, shape: tuple[int, ...]) -> set[Any]:
    """Where the way back from a value ends: at the rows, and at vectors."""
    found = {start}
    waiting = [end]
    seen: set[Any] = set()
    while waiting and len(seen) < 2 * _MOST:
        atom = waiting.pop()
        if is_literal(atom) or atom in seen or atom is start:
            continue
        seen.add(atom)
        if _is_vector(atom, shape) and atom is not end:
            found.add(atom)
            continue
        eqn = graph.maker(atom)
        waiting += [] if eqn is None else eqn.invars
    return found


def _is_vector(atom: Any, shape: tuple[int, ...]) -> bool:
    """Whether a value has one number for each place of a row, and is one for all."""
    own = aval_shape(atom)
    last = own[-1:] == shape[-1:]
    return (
        not is_literal(atom) and last and all(n == 1 for n in own[:-1]) and own != shape
    )


def _vectors(
    graph: Graph, equations: list[int], start: Any, shape: tuple[int, ...]
) -> list[Any] | None:
    """The vectors that equations take besides the rows; None if there is more."""
    eqns = [graph.body.jaxpr.eqns[number] for number in equations]
    made = {var for eqn in eqns for var in eqn.outvars}
    found: dict[Any, None] = {}
    for eqn in eqns:
        for atom in eqn.invars:
            if is_literal(atom) or atom in made or atom is start:
                continue
            if not _is_vector(atom, shape):
                return None
            found[atom] = None
    return list(found) if len(found) <= 2 else None


def _identified(
    graph: Graph, start: Any, end: Any, equations: list[int], vectors: list[Any]
) -> Normalization | None:
    shape = aval_shape(start)
    numbers = np.random.default_rng(0)
    epsilons = _small_numbers(graph, equations)
    # In rows as small as that an epsilon shows.
    rows = full(numbers, shape[-1], [float(np.sqrt(e)) for e in epsilons if e])
    given: dict[Any, Rows] = {start: rows}
    given |= {one: vector(numbers, shape[-1]) for one in vectors}
    try:
        made = Region(graph.body, shape, given).evaluate(equations)[end]
    except Unknown:
        return None
    if made.form is not Form.FULL:
        return None
    roles = [
        pair
        for pair in itertools.product([None, *vectors], repeat=2)
        if set(vectors) == {one for one in pair if one is not None}
        and len(vectors) == sum(one is not None for one in pair)
    ]
    for centered, epsilon in itertools.product((True, False), epsilons):
        base = _normalized(rows.numbers, epsilon, centered)
        for scale, bias in roles:
            expected = base if scale is None else base * given[scale].numbers
            if bias is not None:
                expected = expected + given[bias].numbers
            if same(made.numbers, expected):
                return Normalization(
                    inputs=(start, *(v for v in (scale, bias) if v is not None)),
                    results=(end,),
                    epsilon=epsilon,
                    centered=centered,
                    has_residual=False,
                    has_scale=scale is not None,
                    has_bias=bias is not None,
                    equations=tuple(equations),
                )
    return None


def _normalized(x: Array, epsilon: float, centered: bool) -> Array:
    if centered:
        x = x - x.mean(axis=1, keepdims=True)
    made: Array = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + epsilon)
    return made


def _small_numbers(graph: Graph, equations: list[int]) -> list[float]:
    """What may be the epsilon: zero and every number that is written there."""
    found = {0.0}
    for number in equations:
        for atom in graph.body.jaxpr.eqns[number].invars:
            if is_literal(atom) and np.ndim(atom.val) == 0:
                found.add(float(atom.val))
    return sorted(one for one in found if 0 <= one < 1)


def _with_sum(
    graph: Graph, found: Normalization, taken: Collection[int]
) -> Normalization:
    """The same with the sum that the rows come from, if they come from one."""
    rows, *rest = found.inputs
    eqn = graph.maker(rows)
    if eqn is None or eqn.primitive.name != "add" or not floats(*eqn.invars):
        return found
    one, other = eqn.invars
    if is_literal(one) or is_literal(other):
        return found
    if aval_shape(one) != aval_shape(other):
        return found
    number = graph.makers[rows]
    if number in taken:
        return found
    whole = (number, *found.equations)
    kept = not graph.closed(whole, set(found.results))
    return dataclasses.replace(
        found,
        inputs=(one, other, *rest),
        results=(*found.results, rows) if kept else found.results,
        has_residual=True,
        equations=whole,
    )
