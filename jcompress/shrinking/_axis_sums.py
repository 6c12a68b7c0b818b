"""Ids through operations that sum or order positions: products, reductions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jcompress.shrinking._ids import Ids, Why
from jcompress.shrinking._labels import Labels, Total, fixed_ids
from jcompress.shrinking._rule import Rule, unknown
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.values import Location

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling


def _reduce(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    axes = set(eqn.params["axes"])
    ids = ins[0].ids
    over = tuple(ids[axis] for axis in sorted(axes))
    kept = tuple(one for axis, one in enumerate(ids) if axis not in axes)
    if eqn.primitive.name != "reduce_sum":
        for one in over:
            c.ties.reduce(one, why)
        return [Labels(kept)] * len(eqn.outvars)
    for one in over:
        # To a sum, what is zero where units are removed adds nothing, as in a product.
        c.ties.reduce(one[c.ties.lasts(one)], why)
    before = ins[0].total
    if before is not None:
        over = before.over + over
    return [Labels(kept, total=Total(over, why))]


def _arg_reduce(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    axes = set(eqn.params["axes"])
    for axis in axes:
        c.ties.fix(ins[0].ids[axis], why)
    kept = tuple(ids for axis, ids in enumerate(ins[0].ids) if axis not in axes)
    return [Labels(kept)]


def _along(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    """Sums so far and sorting: the order along one axis matters."""
    axis = eqn.params.get("axis", eqn.params.get("dimension"))
    for value in ins:
        c.ties.fix(value.ids[axis], why)
        c.alike(ins[0], value, why)
    ids = list(ins[0].ids)
    ids[axis] = fixed_ids(len(ids[axis]))
    if eqn.primitive.name == "cumlogsumexp":
        ids = [c.ties.lasting(one) for one in ids]
    return [Labels(tuple(ids))] * len(eqn.outvars)


def _generic_reduce(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    """A reduction by a function of the user's, of one array or several."""
    axes = set(eqn.params["dimensions"])
    arrays = ins[: len(eqn.outvars)]
    for value in arrays:
        c.alike(arrays[0], value, why)
    for axis in axes:
        c.ties.reduce(arrays[0].ids[axis], why)
    kept = [ids for axis, ids in enumerate(arrays[0].ids) if axis not in axes]
    return [Labels(tuple(map(c.ties.lasting, kept)))] * len(arrays)


def _window(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    shape = aval_shape(eqn.outvars[0])
    arrays = ins[: len(eqn.outvars)]
    for value in arrays:
        c.alike(arrays[0], value, why)
    ids = []
    for axis, one in enumerate(arrays[0].ids):
        slides = _slides(eqn, axis)
        if slides:
            c.ties.fix(one, why)
        ids.append(fixed_ids(shape[axis]) if slides else one)
    if eqn.primitive.name == "reduce_window":
        ids = list(map(c.ties.lasting, ids))
    return [Labels(tuple(ids))] * len(arrays)


def _window_gradient(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    source, operand = ins[0].ids, ins[1].ids
    for axis, (a, b) in enumerate(zip(source, operand, strict=True)):
        if _slides(eqn, axis):
            c.ties.fix(a, why)
            c.ties.fix(b, why)
        else:
            c.ties.tie(b, a, why)
    return [Labels(tuple(map(c.ties.lasting, operand)))]


def _slides(eqn: Any, axis: int) -> bool:
    """Whether a window takes more than one position, or not each, of an axis."""
    p = eqn.params
    return not (
        p["window_dimensions"][axis] == 1
        and p["window_strides"][axis] == 1
        and tuple(p["padding"][axis]) == (0, 0)
        and p.get("base_dilation", {axis: 1})[axis] == 1
    )


def _dot(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    (contract, batch) = eqn.params["dimension_numbers"]
    left, right = ins[0].ids, ins[1].ids
    for axes in (contract, batch):
        for a, b in zip(*axes, strict=True):
            c.ties.tie(left[a], right[b], why)
    gone_left = {*contract[0], *batch[0]}
    gone_right = {*contract[1], *batch[1]}
    pairs = zip(*batch, strict=True)
    ids = [c.zero_in_either(left[a], right[b]) for a, b in pairs]
    ids += [one for axis, one in enumerate(left) if axis not in gone_left]
    ids += [one for axis, one in enumerate(right) if axis not in gone_right]
    return [Labels(tuple(ids))]


def _ragged_dot(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    groups, rows = numbers.rhs_group_dimensions, numbers.lhs_ragged_dimensions
    if any(batch[0]) or any(axis in contract[0] for axis in rows) or not groups:
        return unknown(c, eqn, ins, why, here)
    left, right = ins[0].ids, ins[1].ids
    for a, b in zip(*contract, strict=True):
        c.ties.tie(left[a], right[b], why)
    for axis in groups:
        c.ties.fix(right[axis], why)
    for axis in rows:
        c.ties.fix(left[axis], why)
    for value in ins[2:]:
        c.fix(value, why)
    ids = [one for axis, one in enumerate(left) if axis not in contract[0]]
    gone = {*contract[1], *groups}
    ids += [one for axis, one in enumerate(right) if axis not in gone]
    return [Labels(tuple(ids))]


def _conv(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    p = eqn.params
    if p["batch_group_count"] != 1:
        return unknown(c, eqn, ins, why, here)
    spec = p["dimension_numbers"]
    data, kernel = ins[0].ids, ins[1].ids
    channels, outputs = data[spec.lhs_spec[1]], kernel[spec.rhs_spec[0]]
    inputs = kernel[spec.rhs_spec[1]]
    for axis in spec.lhs_spec[2:]:
        c.ties.fix(data[axis], why)
    for axis in spec.rhs_spec[2:]:
        c.ties.fix(kernel[axis], why)
    groups = p["feature_group_count"]
    if groups == 1:
        c.ties.tie(channels, inputs, why)
    else:
        # A group goes with all of its inputs and outputs, so that those left are equal.
        c.ties.fix(inputs, why)
        by_group = channels.reshape(groups, -1), outputs.reshape(groups, -1)
        first = by_group[1][:, :1]
        for side in by_group:
            c.ties.tie(np.broadcast_to(first, side.shape).ravel(), side.ravel(), why)
    out: list[Ids] = [fixed_ids(n) for n in aval_shape(eqn.outvars[0])]
    out[spec.out_spec[0]] = data[spec.lhs_spec[0]]
    out[spec.out_spec[1]] = outputs
    return [Labels(tuple(out))]


_REDUCTIONS = ("sum", "max", "min", "prod", "and", "or", "xor")
_RUNNING = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort")

SUMS: dict[str, Rule] = {
    **{f"reduce_{name}": _reduce for name in _REDUCTIONS},
    **dict.fromkeys(_RUNNING, _along),
    **dict.fromkeys(("argmax", "argmin"), _arg_reduce),
    "reduce": _generic_reduce,
    **{f"reduce_window_{name}": _window for name in ("sum", "max", "min")},
    "reduce_window": _window,
    "select_and_scatter_add": _window_gradient,
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
}
"""The rules, by the name of the primitive."""
