"""Evaluate a traced program on arrays from which positions were removed."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.shrinking._attention import Attention, WeightProducts
from jcompress.shrinking._coupling import Choices, Coupling
from jcompress.shrinking._ids import FIXED, Ids, Why
from jcompress.shrinking._labels import Labels
from jcompress.shrinking._sized import SIZED, Keep, Keeps, SizedEquation, cut
from jcompress.shrinking._sized_gradients import GRADIENTS
from jcompress.shrinking._symbolic import size_of
from jcompress.tracing.interpreter import Program, Resizing, bind
from jcompress.tracing.jaxprs import Body
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location
from jcompress.tracing.walk import walk

_PASSES = 8
_SIZED = {**SIZED, **GRADIENTS}


class Conflict(Exception):
    """An operation does not allow the removal of positions of an input.

    Attributes:
        number: which input.
        axis: which of its axes.
        why: the operation.
    """

    def __init__(self, number: int, axis: int, why: Why) -> None:
        super().__init__(number, axis, why)
        self.number, self.axis, self.why = number, axis, why


def passes(coupled: Callable[[Choices], Coupling]) -> Coupling:
    """Repeat a pass with other choices until no choice can be bettered."""
    choices: Choices = {}
    best = coupled(choices)
    for _ in range(_PASSES):
        better = best.failing()
        if not better:
            break
        choices = {**choices, **better}
        best = coupled(choices)
    return best


def resizing(
    body: Body, keeps: Sequence[Keeps], known: WeightProducts | None = None
) -> tuple[Resizing, list[Keeps]]:
    """How a program runs on inputs from which positions were removed.

    Args:
        body: the program.
        keeps: for each input and each of its axes which positions are kept.
        known: the products with weights, if attention is to be rescaled.

    Returns:
        What the interpreter needs, and which positions of the results are kept.

    Raises:
        Conflict: an operation fixes what is to be removed.
        MismatchError: the constant of attention is to be changed and is not found.
    """
    outs: list[Labels] = []

    def coupled(choices: Choices) -> Coupling:
        one = Coupling(choices, None if known is None else Attention(known))
        inputs = []
        removed.clear()
        for number, (var, axes) in enumerate(
            zip(body.jaxpr.invars, keeps, strict=True)
        ):
            ids = []
            for axis, keep in enumerate(axes):
                size = size_of(var.aval.shape[axis])
                ids.append(np.full(size, FIXED, np.int64))
                if keep is not None:
                    (gone,) = one.ties.fresh(1)
                    removed[int(gone)] = number, axis
                    ids[-1][~keep] = gone
            inputs.append(Labels(tuple(ids)))
        outs[:] = walk(body, inputs, one)
        return one

    removed: dict[int, tuple[int, int]] = {}
    coupling = passes(coupled)
    component = coupling.ties.components()
    fixed = coupling.ties.fixed()
    gone = np.zeros(component.max() + 1, bool)
    for one, (number, axis) in removed.items():
        if fixed[one]:
            why = coupling.ties.why_fixed(np.array([one]))
            raise Conflict(number, axis, why or Why("an input"))
        gone[component[one]] = True
    keep_of = _Keeps(gone[component])
    scales: dict[Location, tuple[int, float]] = {}
    if coupling.attention is not None:
        scales = coupling.attention.rescaled(keep_of.sizes)
    equations = {}
    for here, (ins, results) in coupling.equations.items():
        before = [keep_of(value) for value in ins]
        after = [keep_of(value) for value in results]
        count = _count(coupling, here, keep_of)
        scale = scales.get(here)
        cuts = any(keep is not None for v in before + after for keep in v)
        if cuts or count is not None or scale is not None:
            equations[here] = functools.partial(
                _resized, before=before, after=after, count=count, scale=scale
            )
    change = Resizing(
        equations=equations,
        inputs=_parts(coupling.taken, keep_of),
        results=_parts(coupling.returns, keep_of),
    )
    return change, [keep_of(v) for v in outs]


class _Keeps:
    """Reads off a table of removed ids which positions of a value are kept."""

    def __init__(self, gone: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self._gone = gone
        self._gone[FIXED] = False

    def __call__(self, value: Labels) -> Keeps:
        return tuple(map(self.axis, value.ids))

    def axis(self, ids: Ids) -> Keep:
        gone = self._gone[ids]
        return ~gone if gone.any() else None

    def sizes(self, axes: Sequence[Ids]) -> tuple[int, int]:
        """How many positions axes have together, before and after."""
        left = (int((~self._gone[ids]).sum()) for ids in axes)
        return math.prod(map(len, axes)), math.prod(left)


def _count(
    coupling: Coupling, here: Location, keep_of: _Keeps
) -> tuple[int, float] | None:
    """Which input is the number of terms of a sum, and the factor of that number."""
    if here not in coupling.counts:
        return None
    operand, reciprocal, summed = coupling.counts[here]
    (ins, _) = coupling.equations[here]
    before, after = keep_of.sizes(summed)
    if before == after:
        return None
    number = ins[operand].number
    assert number is not None
    terms = 1 / number if reciprocal else number
    less = round(before - terms)
    left = max(after - less, 1)
    return operand, (terms / left if reciprocal else left / terms)


def _parts(
    constants: Mapping[Location, Mapping[int, Labels]], keep_of: _Keeps
) -> dict[Location, Callable[[list[Any]], list[Any]]]:
    """Functions that take from lists of values the parts of constants that are left."""
    found: dict[Location, Callable[[list[Any]], list[Any]]] = {}
    for here, parts in constants.items():
        keeps = {number: keep_of(labels) for number, labels in parts.items()}
        if any(keep is not None for axes in keeps.values() for keep in axes):
            found[here] = functools.partial(_cut_constants, keeps)
    return found


def _cut_constants(keeps: Mapping[int, Keeps], values: list[Any]) -> list[Any]:
    values = list(values)
    for number, axes in keeps.items():
        value = values[number]
        tracer = isinstance(value, jax.core.Tracer)
        if not tracer and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = np.asarray(value)  # cut here, not in the compiled program
        values[number] = cut(value, axes)
    return values


def _resized(
    program: Program,
    eqn: Any,
    ins: list[Any],
    here: Location,
    *,
    before: list[Keeps],
    after: list[Keeps],
    count: tuple[int, float] | None,
    scale: tuple[int, float] | None,
) -> list[Any]:
    ins = list(ins)
    if scale is not None:
        operand, number = scale
        dtype = eqn.invars[operand].aval.dtype
        ins[operand] = jnp.full(np.shape(ins[operand]), number, dtype)
    if count is not None:
        operand, factor = count
        ins[operand] = ins[operand] * jnp.asarray(factor, jnp.result_type(ins[operand]))
    own = _SIZED.get(eqn.primitive.name)
    if own is None:
        return bind(eqn, ins)
    change = own(SizedEquation(program, eqn, ins, here, before, after, resizing))
    return change if isinstance(change, list) else bind(eqn, ins, **change)


def evaluate(
    traced: Traced,
    leaves: Sequence[Any],
    data: Sequence[Any],
    keeps: Sequence[Keeps],
    rescale_attention: bool,
) -> list[Any]:
    """Run a traced function on inputs from which positions were removed.

    Args:
        traced: the function, traced at its own sizes.
        leaves: the leaves, as far as they are kept.
        data: the other inputs, as far as they are kept.
        keeps: for each of both and each of its axes which positions are kept.
        rescale_attention: divide it by the root of the size that is left.
    """
    known = WeightProducts.of(traced) if rescale_attention else None
    change, _ = resizing(traced.body, keeps, known)
    results, _ = Program(traced=traced, handlers={}, resizing=change)(leaves, data)
    return results
