"""What each operation does to the ids of its inputs' axes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jcompress.shrinking._axis_lookups import LOOKUPS
from jcompress.shrinking._axis_maps import MAPS
from jcompress.shrinking._axis_moves import MOVES
from jcompress.shrinking._axis_sums import SUMS
from jcompress.shrinking._ids import Why
from jcompress.shrinking._labels import Labels
from jcompress.shrinking._rule import Rule, unknown
from jcompress.shrinking._zeros import zeros_through
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.uses import ELEMENTWISE
from jcompress.tracing.values import Location
from jcompress.tracing.views import SAME

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling


def _same(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    return ins if len(ins) == len(eqn.outvars) else unknown(c, eqn, ins, why, here)


def _elementwise(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    shape = aval_shape(eqn.outvars[0])
    full = [value for value in ins if len(value.ids) == len(shape)]
    ids = []
    for axis, size in enumerate(shape):
        # An axis of one position is repeated to meet the others.
        there = [v for v in full if len(v.ids[axis]) == size]
        for other in there[1:]:
            c.ties.tie(there[0].ids[axis], other.ids[axis], why)
        ids.append(zeros_through(c, eqn, ins, axis))
    number = _number(eqn.primitive.name, [value.number for value in ins])
    if eqn.primitive.name in ("div", "mul") and len(ins) == 2:
        _note_count(c, eqn.primitive.name, ins, here)
    return [Labels(tuple(ids), number=number)] * len(eqn.outvars)


def _number(name: str, given: Sequence[float | None]) -> float | None:
    if any(number is None for number in given):
        return None
    numbers = [float(number) for number in given if number is not None]
    match name, numbers:
        case "add", [a, b]:
            return a + b
        case "sub", [a, b]:
            return a - b
        case "mul", [a, b]:
            return a * b
        case "div", [a, b] if b:
            return a / b
        case (("max" | "min"), [a, b]):
            return max(a, b) if name == "max" else min(a, b)
        case "sqrt", [a] if a >= 0:
            return math.sqrt(a)
        case "rsqrt", [a] if a > 0:
            return 1 / math.sqrt(a)
        case "pow", [a, b] if a > 0:
            return math.pow(a, b)
    return None


def _note_count(c: "Coupling", name: str, ins: list[Labels], here: Location) -> None:
    for operand in (1,) if name == "div" else (0, 1):
        number, total = ins[operand].number, ins[1 - operand].total
        if total is None or number is None or number == 0:
            continue
        terms = math.prod(map(len, total.over))
        divisor = number if name == "div" else 1 / number
        # A variance may be divided by one less than the number of its terms.
        if any(math.isclose(divisor, n, rel_tol=1e-6) for n in (terms, terms - 1)):
            c.count(here, operand, name == "mul", total)


def _convert(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    return [ins[0]]


def _bitcast(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    if aval_shape(eqn.outvars[0]) != ins[0].shape:
        return unknown(c, eqn, ins, why, here)
    return [Labels(ins[0].ids)]


def _random_bits(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    keys = ins[0].ids
    c.fix(ins[0], why)
    shape = aval_shape(eqn.outvars[0])
    return [Labels((*keys, *map(c.ties.lasting, c.fresh(shape[len(keys) :]))))]


POINTWISE = ELEMENTWISE | {
    "bessel_i0e",
    "bessel_i1e",
    "clz",
    "complex",
    "conj",
    "erf_inv",
    "imag",
    "population_count",
    "shift_left",
    "shift_right_arithmetic",
    "shift_right_logical",
}

RULES: dict[str, Rule] = {
    **MOVES,
    **SUMS,
    **LOOKUPS,
    **MAPS,
    **dict.fromkeys(POINTWISE, _elementwise),
    **dict.fromkeys(SAME, _same),
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
    "random_bits": _random_bits,
}
"""The operations that are looked into, by the name of their primitive."""
