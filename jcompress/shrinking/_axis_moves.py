"""Ids through operations that move positions: transposes, slices, joins."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from jcompress.shrinking._ids import Ids, Why
from jcompress.shrinking._labels import Labels, fixed_ids
from jcompress.shrinking._reshapes import reshaped
from jcompress.shrinking._rule import Rule, unknown
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.values import Location

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling


def _reshape(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    (value,) = ins[:1]
    if len(ins) > 1 or eqn.params.get("dimensions") is not None:
        return unknown(c, eqn, ins, why, here)
    ids = reshaped(c, value.ids, aval_shape(eqn.outvars[0]), why, here)
    return [dataclasses.replace(value, ids=ids)]


def _squeeze(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    gone = set(eqn.params["dimensions"])
    kept = tuple(ids for axis, ids in enumerate(ins[0].ids) if axis not in gone)
    return [dataclasses.replace(ins[0], ids=kept)]


def _transpose(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    return [Labels(tuple(ins[0].ids[axis] for axis in eqn.params["permutation"]))]


def _broadcast(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    shape = aval_shape(eqn.outvars[0])
    if len(ins) > 1:
        return unknown(c, eqn, ins, why, here)
    ids = list(c.copies(shape))
    for axis, out in enumerate(eqn.params["broadcast_dimensions"]):
        if len(ins[0].ids[axis]) == shape[out]:
            ids[out] = ins[0].ids[axis]
    return [dataclasses.replace(ins[0], ids=tuple(ids))]


def _rev(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    turned = set(eqn.params["dimensions"])
    return [
        Labels(
            tuple(
                ids[::-1] if axis in turned else ids
                for axis, ids in enumerate(ins[0].ids)
            )
        )
    ]


def _cut(c: "Coupling", before: Ids, after: Ids, why: Why) -> Ids:
    """The ids of a part of an axis; a single position of several is fixed."""
    if len(after) == 1 and len(before) > 1:
        c.ties.fix(after, why)
        return fixed_ids(1)
    return after


def _slice(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    p = eqn.params
    strides = p["strides"] or (1,) * len(ins[0].ids)
    ids = tuple(
        _cut(c, ids, ids[start:stop:step], why)
        for ids, start, stop, step in zip(
            ins[0].ids, p["start_indices"], p["limit_indices"], strides, strict=True
        )
    )
    return [Labels(ids)]


def _split(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    axis = eqn.params["axis"]
    ids = ins[0].ids
    pieces = np.split(ids[axis], np.cumsum(eqn.params["sizes"])[:-1])
    return [
        Labels((*ids[:axis], _cut(c, ids[axis], piece, why), *ids[axis + 1 :]))
        for piece in pieces
    ]


def _concatenate(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    axis = eqn.params["dimension"]
    ids = list(ins[0].ids)
    for other in ins[1:]:
        for number, one in enumerate(other.ids):
            if number != axis:
                c.ties.tie(ids[number], one, why)
                ids[number] = c.zero_in_both(ids[number], one)
    ids[axis] = np.concatenate([value.ids[axis] for value in ins])
    return [Labels(tuple(ids))]


def _stack(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    for other in ins[1:]:
        c.alike(ins[0], other, why)
    ids = list(map(c.zero_in_both, *(value.ids for value in ins)))
    ids.insert(eqn.params["axis"], fixed_ids(len(ins)))
    return [Labels(tuple(ids))]


def _unstack(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    axis, ids = eqn.params["axis"], ins[0].ids
    c.ties.fix(ids[axis], why)
    return [Labels((*ids[:axis], *ids[axis + 1 :]))] * len(eqn.outvars)


def _tile(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    times = eqn.params["reps"]
    ids = zip(ins[0].ids, times, strict=True)
    return [Labels(tuple(np.tile(one, n) for one, n in ids))]


def _pad(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    made = []
    before = ins[0].ids
    if ins[1].number != 0:
        before = tuple(map(c.ties.lasting, before))
    for ids, (low, high, interior) in zip(
        before, eqn.params["padding_config"], strict=True
    ):
        if (low, high, interior) == (0, 0, 0):
            made.append(ids)
        elif interior or low < 0 or high < 0:
            c.ties.fix(ids, why)
            size = low + high + len(ids) + interior * max(len(ids) - 1, 0)
            made.append(fixed_ids(size))
        else:
            new = c.ties.fresh(low), c.ties.fresh(high)
            made.append(np.concatenate([new[0], ids, new[1]]))
    return [Labels(tuple(made))]


MOVES: dict[str, Rule] = {
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "pad": _pad,
}
"""The rules, by the name of the primitive."""
