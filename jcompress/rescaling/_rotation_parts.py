"""Vectors that are rotated at some positions only: the values in a fused qkv."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jcompress.rescaling._rotation_value import Only, P, R, S, Turned, refused
from jcompress.rescaling._scale_moves import blocks
from jcompress.rescaling.known import Host
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.views import SAME


def narrowed(where: Host) -> Host:
    """One position along each axis on which it does not depend."""
    for axis, size in enumerate(where.shape):
        if size > 1:
            first = np.take(where, [0], axis)
            if (where == first).all():
                where = first
    return where


def parted(eqn: Any, ins: Sequence[Turned], outs: Sequence[Turned]) -> list[Turned]:
    """The results of an operation some of whose inputs are rotated in part.

    Args:
        eqn: the operation.
        ins: its inputs.
        outs: what would be known of its results if all were rotated.

    Raises:
        CannotRotateError: it is not known what becomes of a part.
    """
    rule = _RULES.get(eqn.primitive.name)
    if rule is None:
        raise refused("and a part of it is rotated")
    masks = rule(eqn, ins)
    return [_with(out, where) for out, where in zip(outs, masks, strict=True)]


def _with(out: Turned, where: Host) -> Turned:
    where = narrowed(where)
    if where.all():
        return dataclasses.replace(out, only=None)
    if not where.any():
        marks = tuple(P if mark in (R, S) else mark for mark in out.marks)
        return Turned(marks, out.zero)
    if S in out.marks or R not in out.marks:
        raise refused("and a part of it is rotated")
    return dataclasses.replace(out, only=Only(where))


def _mask(value: Turned) -> Host:
    """Where a value is rotated; all of it if nothing else is known."""
    whole = np.full((1,) * len(value.marks), value.touched)
    return whole if value.only is None else value.only.where


def _same(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    return [_mask(value) for value in ins]


def _pointwise(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    """The one part that all rotated inputs have; numbers and zeros have any."""
    found: list[Host] = []
    for value in ins:
        if value.touched and not value.zero:
            mask = _mask(value)
            if found and not np.array_equal(found[0], mask):
                raise refused("with what is rotated elsewhere")
            found.append(mask)
    return found[:1]


def _dot(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    contract, batch = eqn.params["dimension_numbers"]
    shape = [1] * len(batch[0])
    parts = []
    for n, value in enumerate(ins):
        gone = (*contract[n], *batch[n])
        mask = _mask(value)
        if value.only is None:
            mask = np.ones((1,) * len(value.marks), bool)
        elif any(mask.shape[axis] > 1 or value.marks[axis] is R for axis in gone):
            raise refused("over what is rotated in part")
        free = [axis for axis in range(len(value.marks)) if axis not in gone]
        parts.append(mask.reshape([mask.shape[axis] for axis in free]))
    if all(value.only is not None for value in ins):
        raise refused("of two values that are rotated in part")
    first, second = parts
    left = first.reshape(*shape, *first.shape, *[1] * second.ndim)
    right = second.reshape(*shape, *[1] * first.ndim, *second.shape)
    return [np.asarray(left & right)]


def _reshape(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    before, after = (aval_shape(v) for v in (eqn.invars[0], eqn.outvars[0]))
    mask = _mask(ins[0])
    full, shape = list(mask.shape), [1] * len(after)
    for old, new in blocks(before, after):
        if any(mask.shape[axis] > 1 for axis in old):
            for axis in old:
                full[axis] = before[axis]
            for axis in new:
                shape[axis] = after[axis]
    return [np.broadcast_to(mask, full).reshape(shape)]


def _transpose(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    return [_mask(ins[0]).transpose(eqn.params["permutation"])]


def _squeeze(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    return [np.squeeze(_mask(ins[0]), tuple(eqn.params["dimensions"]))]


def _broadcast(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    mask, shape = _mask(ins[0]), [1] * len(aval_shape(eqn.outvars[0]))
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        shape[place] = mask.shape[axis]
    return [mask.reshape(shape)]


def _cut(mask: Host, axis: int, start: int, stop: int, step: int = 1) -> Host:
    if mask.shape[axis] == 1:
        return mask
    index = [slice(None)] * mask.ndim
    index[axis] = slice(start, stop, step)
    return mask[tuple(index)]


def _slice(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    p, mask = eqn.params, _mask(ins[0])
    strides = p["strides"] or (1,) * mask.ndim
    bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    for axis, (start, stop, step) in enumerate(bounds):
        mask = _cut(mask, axis, start, stop, step)
    return [mask]


def _split(eqn: Any, ins: Sequence[Turned]) -> list[Host]:
    ends = np.cumsum([0, *eqn.params["sizes"]]).tolist()
    axis, mask = eqn.params["axis"], _mask(ins[0])
    return [_cut(mask, axis, *pair) for pair in itertools.pairwise(ends)]


_RULES: dict[str, Callable[[Any, Sequence[Turned]], list[Host]]] = {
    **dict.fromkeys((*SAME, "neg"), _same),
    **dict.fromkeys(("mul", "div", "add", "add_any", "sub"), _pointwise),
    "dot_general": _dot,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
}
