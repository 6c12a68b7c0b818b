"""What operations make of axes that are rotated, and which do not allow it."""

from typing import Any

import jax.numpy as jnp

from jcompress.rescaling._rotation_moves import MOVES
from jcompress.rescaling._rotation_value import (
    E,
    P,
    R,
    Rotation,
    Rule,
    S,
    Turned,
    aligned,
    refused,
    uneven,
    valued,
)
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.views import SAME


def _linear(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    for value, out in zip(ins, eqn.outvars, strict=True):
        if value.touched and not jnp.issubdtype(out.aval.dtype, jnp.inexact):
            raise refused("rounds it")
    return ins


def _product(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    marks = []
    for pair in zip(*aligned(eqn, ins), strict=True):
        if R not in pair and S not in pair:
            marks.append(E if set(pair) == {E} else P)
        elif pair == (R, R):
            marks.append(S)
        elif E in pair:
            marks.append(R if R in pair else S)
        else:
            raise refused("by channel")
    return valued(marks, any(v.zero for v in ins))


def _quotient(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    if ins[1].touched:
        raise refused()
    return _product(c, eqn, ins)


def _sum(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    full = aligned(eqn, ins)
    every = [marks for marks, v in zip(full, ins, strict=True) if not v.zero]
    if not every:
        return valued(full[0], True)
    marks = []
    for found in map(set, zip(*every, strict=True)):
        if found == {E}:
            marks.append(E)
        elif not found & {R, S}:
            marks.append(P)
        elif len(found) == 1:
            marks.append(next(iter(found)))
        elif E in found and len(found) == 2:
            # A number added to all of a rotated vector.
            c.keeps_ones |= R in found
            marks.append(R if R in found else S)
        else:
            raise refused("of what is not rotated")
    return valued(marks)


def _select(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    which, *cases = ins
    (out,) = _sum(c, eqn, cases)
    for mark, by in zip(out.marks, aligned(eqn, [which])[0], strict=True):
        if mark in (R, S) and by is not E:
            raise refused("by channel")
    return [out]


def _power(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    marks = ins[0].marks
    if not ins[0].touched:
        return valued(marks)
    if eqn.params.get("y", 2) != 2 or S in marks:
        raise refused()
    return valued([S if mark is R else mark for mark in marks])


def _reduced(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    axes = set(eqn.params["axes"])
    gone = {ins[0].marks[axis] for axis in axes}
    sums = eqn.primitive.name == "reduce_sum"
    if gone & {R, S} and not sums:
        raise refused()
    if R in gone:
        c.keeps_ones = True
    left = [mark for axis, mark in enumerate(ins[0].marks) if axis not in axes]
    if not sums and (R in left or S in left):
        raise refused()
    return [Turned(tuple(left))] * len(eqn.outvars)


def _cumsum(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    if ins[0].marks[eqn.params["axis"]] in (R, S):
        raise refused()
    return [uneven(ins[0], [eqn.params["axis"]])]


def _dot(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    contract, batch = eqn.params["dimension_numbers"]
    left, right = (value.marks for value in ins)
    for a, b in zip(*contract, strict=True):
        pair = {left[a], right[b]}
        if pair == {R, E}:
            c.keeps_ones = True
        elif pair & {R, S} and pair != {R}:
            raise refused("with what is not rotated")
    for a, b in zip(*batch, strict=True):
        if {left[a], right[b]} & {R, S}:
            raise refused("by channel")
    marks = [P for _ in batch[0]]
    for marked, n in ((left, 0), (right, 1)):
        gone = (*contract[n], *batch[n])
        marks += [mark for axis, mark in enumerate(marked) if axis not in gone]
    return valued(marks)


def _convolution(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    spec = eqn.params["dimension_numbers"]
    data, kernel = (value.marks for value in ins)
    fixed = [data[d] for d in spec.lhs_spec[2:]] + [
        kernel[d] for d in spec.rhs_spec[2:]
    ]
    inputs = {data[spec.lhs_spec[1]], kernel[spec.rhs_spec[1]]}
    grouped = eqn.params["feature_group_count"] * eqn.params["batch_group_count"] > 1
    if (R in fixed or S in fixed) or (inputs & {R, S} and (inputs != {R} or grouped)):
        raise refused("with what is not rotated")
    if grouped and kernel[spec.rhs_spec[0]] in (R, S):
        raise refused("by groups")
    marks = [P] * len(data)
    marks[spec.out_spec[0]] = data[spec.lhs_spec[0]]
    marks[spec.out_spec[1]] = kernel[spec.rhs_spec[0]]
    return valued(marks)


def other(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    """The rule of an operation that takes no rotated axis."""
    if any(value.touched for value in ins):
        raise refused()
    ranks = [len(aval_shape(v)) for v in eqn.outvars]
    if eqn.primitive.name not in _POINTWISE:
        return [Turned((P,) * rank) for rank in ranks]
    columns = map(set, zip(*aligned(eqn, ins), strict=True))
    return valued([E if column == {E} else P for column in columns])


_POINTWISE = frozenset(
    {"sqrt", "rsqrt", "exp", "log", "logistic", "tanh", "pow", "max", "min", "abs",
     "sign", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "clamp",
     "is_finite", "erf", "exp2", "log1p", "expm1", "cbrt"}
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys((*SAME, "neg"), _linear),
    "mul": _product,
    "div": _quotient,
    **dict.fromkeys(("add", "add_any", "sub"), _sum),
    "select_n": _select,
    **dict.fromkeys(("square", "integer_pow"), _power),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduced),
    "cumsum": _cumsum,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **MOVES,
}
"""The operations that an axis may pass, by the name of the primitive."""
