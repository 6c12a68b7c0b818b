"""Rotated axes through operations that move positions."""

from collections.abc import Sequence
from typing import Any

from jcompress.rescaling._rotation_value import (
    E,
    Mark,
    P,
    R,
    Rotation,
    Rule,
    S,
    Turned,
    refused,
    uneven,
    valued,
)
from jcompress.rescaling._scale_moves import blocks
from jcompress.tracing.jaxprs import aval_shape


def _reshape(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    before, after = (aval_shape(v) for v in (eqn.invars[0], eqn.outvars[0]))
    marks = ins[0].marks
    if eqn.params.get("dimensions") is not None or 0 in before:
        raise refused()
    made: list[Mark] = [P] * len(after)
    for old, new in blocks(before, after):
        old_axes = [d for d in old if before[d] > 1]
        new_axes = [d for d in new if after[d] > 1]
        found = [marks[d] for d in old_axes]
        if found and all(mark is E for mark in found):
            for d in new_axes:
                made[d] = E
            continue
        if not {R, S} & set(found):
            continue
        if {R, S} & set(found[:-1]) or after[new_axes[-1]] % c.size:
            raise refused("takes its vectors apart")
        made[new_axes[-1]] = found[-1]
    return valued(made, ins[0].zero)


def _transpose(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    marks = ins[0].marks
    return valued([marks[d] for d in eqn.params["permutation"]], ins[0].zero)


def _squeeze(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    gone = eqn.params["dimensions"]
    left = [mark for axis, mark in enumerate(ins[0].marks) if axis not in gone]
    return valued(left, ins[0].zero)


def _broadcast(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    shape, had = aval_shape(eqn.outvars[0]), aval_shape(eqn.invars[0])
    marks: list[Mark] = [E] * len(shape)
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        if had[axis] == shape[place]:
            marks[place] = ins[0].marks[axis]
    return valued(marks, ins[0].zero)


def _sliced(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    p, shape = eqn.params, aval_shape(eqn.invars[0])
    strides = p["strides"] or (1,) * len(shape)
    bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    for mark, (start, stop, step) in zip(ins[0].marks, bounds, strict=True):
        if mark in (R, S) and (step != 1 or start % c.size or stop % c.size):
            raise refused("takes its vectors apart")
    return [ins[0]]


def _split(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    mark = ins[0].marks[eqn.params["axis"]]
    if mark in (R, S) and any(size % c.size for size in eqn.params["sizes"]):
        raise refused("takes its vectors apart")
    return ins * len(eqn.outvars)


def _concatenate(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    axis = eqn.params["dimension"]
    marks = []
    for number, found in enumerate(zip(*(v.marks for v in ins), strict=True)):
        if {R, S} & set(found):
            rotated = [m for m, v in zip(found, ins, strict=True) if not v.zero]
            if len(set(rotated)) > 1:
                raise refused("of what is not rotated")
            marks.append(rotated[0])
        else:
            marks.append(E if set(found) == {E} and number != axis else P)
    return valued(marks)


def _pad(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    padded = [axis for axis, by in enumerate(eqn.params["padding_config"]) if any(by)]
    marks = ins[0].marks
    if ins[0].touched and (
        any(marks[axis] in (R, S) for axis in padded) or not ins[1].zero
    ):
        raise refused()
    return [uneven(ins[0], range(len(marks)))]


def _gather(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    numbers, shape = eqn.params["dimension_numbers"], aval_shape(eqn.invars[0])
    sizes = eqn.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    left = []
    for axis, mark in enumerate(ins[0].marks):
        if mark in (R, S) and (axis in gone or sizes[axis] != shape[axis]):
            raise refused("picks channels")
        if axis not in gone:
            left.append(mark if mark in (R, S) else P)
    if ins[1].touched:
        raise refused()
    marks: list[Mark] = [P] * len(aval_shape(eqn.outvars[0]))
    for place, mark in zip(numbers.offset_dims, left, strict=True):
        marks[place] = mark
    return valued(marks)


def _dynamic_slice(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    shape, sizes = aval_shape(eqn.invars[0]), aval_shape(eqn.outvars[0])
    cut = [axis for axis, n in enumerate(shape) if n != sizes[axis]]
    if any(ins[0].marks[axis] in (R, S) for axis in cut):
        raise refused("picks channels")
    return [ins[0]]


def _dynamic_update(c: Rotation, eqn: Any, ins: list[Turned]) -> list[Turned]:
    whole, part = (aval_shape(v) for v in eqn.invars[:2])
    (out,) = _concatenate_like(ins[:2])
    cut = [axis for axis, n in enumerate(whole) if n != part[axis]]
    if any(out.marks[axis] in (R, S) for axis in cut):
        raise refused("picks channels")
    return [out]


def _concatenate_like(ins: Sequence[Turned]) -> list[Turned]:
    marks = []
    for found in zip(*(v.marks for v in ins if not v.zero), strict=True):
        if {R, S} & set(found) and len(set(found)) > 1:
            raise refused("of what is not rotated")
        marks.append(found[0] if found[0] in (R, S) else P)
    return valued(marks) if marks else [ins[0]]


MOVES: dict[str, Rule] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _sliced,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
}
"""The rules, by the name of the primitive."""
