"""What each operation does to the ids of its inputs' axes."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jcompress._jaxprs import aval_shape
from jcompress._uses import ELEMENTWISE
from jcompress._values import Location
from jcompress._views import SAME
from jcompress.shrinking._ids import Ids, Why
from jcompress.shrinking._labels import Labels, fixed_ids, fixed_labels
from jcompress.shrinking._reshapes import reshaped

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling

Rule = Callable[["Coupling", Any, list[Labels], Why, Location], list[Labels]]


def unknown(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    """An operation that is not looked into: it fixes whatever it touches."""
    for value in ins:
        c.fix(value, why)
    return [fixed_labels(var) for var in eqn.outvars]


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
        here_ids = [v.ids[axis] for v in full if len(v.ids[axis]) == size]
        for other in here_ids[1:]:
            c.ties.tie(here_ids[0], other, why)
        ids.append(here_ids[0] if here_ids else fixed_ids(size))
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
    return None


def _note_count(c: "Coupling", name: str, ins: list[Labels], here: Location) -> None:
    for operand in (1,) if name == "div" else (0, 1):
        number, summed = ins[operand].number, ins[1 - operand].summed
        if summed is None or number is None or number == 0:
            continue
        terms = math.prod(map(len, summed))
        divisor = number if name == "div" else 1 / number
        # A variance may be divided by one less than the number of its terms.
        if any(math.isclose(divisor, n, rel_tol=1e-6) for n in (terms, terms - 1)):
            c.count(here, operand, name == "mul", summed)


def _convert(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    return [ins[0]]


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
    ids[axis] = np.concatenate([value.ids[axis] for value in ins])
    return [Labels(tuple(ids))]


def _stack(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    ids = list(ins[0].ids)
    for other in ins[1:]:
        c.alike(ins[0], other, why)
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
    for ids, (low, high, interior) in zip(
        ins[0].ids, eqn.params["padding_config"], strict=True
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


def _iota(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    return [Labels(c.fresh(aval_shape(eqn.outvars[0])))]


def _reduce(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    axes = set(eqn.params["axes"])
    ids = ins[0].ids
    over = tuple(ids[axis] for axis in sorted(axes))
    for one in over:
        c.ties.reduce(one, why)
    kept = tuple(one for axis, one in enumerate(ids) if axis not in axes)
    summed = over if eqn.primitive.name == "reduce_sum" else None
    return [Labels(kept, summed=summed)] * len(eqn.outvars)


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
    return [Labels(tuple(ids))] * len(eqn.outvars)


def _window(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    p = eqn.params
    shape = aval_shape(eqn.outvars[0])
    ids = []
    for axis, one in enumerate(ins[0].ids):
        same = (
            p["window_dimensions"][axis] == 1
            and p["window_strides"][axis] == 1
            and tuple(p["padding"][axis]) == (0, 0)
            and p["base_dilation"][axis] == 1
        )
        if not same:
            c.ties.fix(one, why)
        ids.append(one if same else fixed_ids(shape[axis]))
    for value in ins[1:]:
        c.fix(value, why)
    return [Labels(tuple(ids))]


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
    ids = [left[axis] for axis in batch[0]]
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


def _gather(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    numbers = eqn.params["dimension_numbers"]
    sizes = eqn.params["slice_sizes"]
    operand, indices = ins[0].ids, ins[1].ids
    c.ties.fix(indices[-1], why)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    window = []
    for axis, ids in enumerate(operand):
        whole = sizes[axis] == len(ids) and axis not in gone
        if not whole and axis not in numbers.operand_batching_dims:
            c.ties.fix(ids, why)
        if axis not in gone:
            window.append(ids if whole else fixed_ids(sizes[axis]))
    for axis, other in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        c.ties.tie(operand[axis], indices[other], why)
    rows, windows = iter(indices[:-1]), iter(window)
    rank = len(aval_shape(eqn.outvars[0]))
    return [
        Labels(
            tuple(
                next(windows) if axis in numbers.offset_dims else next(rows)
                for axis in range(rank)
            )
        )
    ]


def _scatter(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = (value.ids for value in ins)
    c.ties.fix(indices[-1], why)
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = iter(numbers.update_window_dims)
    for axis, ids in enumerate(operand):
        if axis in gone:
            c.ties.fix(ids, why)
            continue
        given = updates[next(window)]
        if len(given) == len(ids):
            c.ties.tie(ids, given, why)
        else:
            c.ties.fix(ids, why)
            c.ties.fix(given, why)
    rows = [a for a in range(len(updates)) if a not in numbers.update_window_dims]
    for axis, ids in zip(rows, indices[:-1], strict=True):
        c.ties.tie(updates[axis], ids, why)
    return [Labels(operand)]


def _dynamic_slice(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    made = []
    for ids, size in zip(ins[0].ids, eqn.params["slice_sizes"], strict=True):
        if size != len(ids):
            c.ties.fix(ids, why)
        made.append(ids if size == len(ids) else fixed_ids(size))
    return [Labels(tuple(made))]


def _dynamic_update_slice(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    for ids, given in zip(ins[0].ids, ins[1].ids, strict=True):
        if len(ids) == len(given):
            c.ties.tie(ids, given, why)
        else:
            c.ties.fix(ids, why)
            c.ties.fix(given, why)
    return [Labels(ins[0].ids)]


def _random_bits(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    keys = ins[0].ids
    c.fix(ins[0], why)
    shape = aval_shape(eqn.outvars[0])
    return [Labels((*keys, *c.fresh(shape[len(keys) :])))]


def _bitcast(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    if aval_shape(eqn.outvars[0]) != ins[0].shape:
        return unknown(c, eqn, ins, why, here)
    return [Labels(ins[0].ids)]


_POINTWISE = ELEMENTWISE | {
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

_REDUCTIONS = ("sum", "max", "min", "prod", "and", "or", "xor")
_RUNNING = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, _elementwise),
    **dict.fromkeys(SAME, _same),
    **{f"reduce_{name}": _reduce for name in _REDUCTIONS},
    **dict.fromkeys(_RUNNING, _along),
    **dict.fromkeys(("argmax", "argmin"), _arg_reduce),
    **{f"reduce_window_{name}": _window for name in ("sum", "max", "min")},
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
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
    "iota": _iota,
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter_add": _scatter,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "random_bits": _random_bits,
}
"""The operations that are looked into, by the name of their primitive."""
