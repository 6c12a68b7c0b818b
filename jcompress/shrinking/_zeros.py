"""Where the result of arithmetic is zero, told from where its inputs are."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jcompress.shrinking._ids import Ids
from jcompress.shrinking._labels import Labels, fixed_ids
from jcompress.tracing.jaxprs import aval_shape

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling

_OF_ALL = frozenset(
    (
        *("abs", "add", "add_any", "asin", "asinh", "atan", "atanh", "cbrt", "ceil"),
        *("complex", "conj", "erf", "erf_inv", "expm1", "floor", "imag", "log1p"),
        *("max", "min", "neg", "or", "real", "round", "sign", "sin", "sinh", "sqrt"),
        *("square", "sub", "tan", "tanh", "xor"),
    )
)
"""What is zero where all of its inputs are."""


def zeros_through(c: "Coupling", eqn: Any, ins: Sequence[Labels], axis: int) -> Ids:
    """The ids of an axis of the result of arithmetic, element by element.

    They are `lasting` where the result need not be zero though the unit is removed.
    """
    size = aval_shape(eqn.outvars[0])[axis]
    along = [_along(value, axis, size) for value in ins]
    found = [ids for ids in along if ids is not None]
    if not found:
        return fixed_ids(size)
    first = along[0]
    match eqn.primitive.name:
        case "mul" | "and":
            return functools.reduce(c.zero_in_either, found)
        case "div" if first is not None:
            # Nothing is divided by zero: not by what is zero at the same positions.
            if along[1] is None or c.ties.lasts(along[1]).all():
                return first
        case "clamp" if along[1] is not None:
            low, high = ins[0].number, ins[2].number
            if low is not None and high is not None and low <= 0 <= high:
                return along[1]
        case "integer_pow" if eqn.params["y"] > 0:
            return found[0]
        case "pow" if first is not None and (ins[1].number or 0) > 0:
            return first
        case "select_n":
            return _in_all(c, ins[1:], along[1:], found)
        case name if name in _OF_ALL:
            return _in_all(c, ins, along, found)
    return c.ties.lasting(found[0])


def _along(value: Labels, axis: int, size: int) -> Ids | None:
    """The ids of an input; None if it is one number along the axis."""
    if axis >= len(value.ids) or len(value.ids[axis]) != size:
        return None
    return value.ids[axis]


def _in_all(
    c: "Coupling",
    ins: Sequence[Labels],
    along: Sequence[Ids | None],
    found: Sequence[Ids],
) -> Ids:
    both = list(zip(ins, along, strict=True))
    inside = [ids for _, ids in both if ids is not None]
    if inside and all(v.number == 0 for v, ids in both if ids is None):
        return c.zero_in_both(*inside)
    return c.ties.lasting(found[0])
