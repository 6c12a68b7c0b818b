"""Ids through operations that read or write at positions that data decides."""

from typing import TYPE_CHECKING, Any

from jcompress.shrinking._ids import Why
from jcompress.shrinking._labels import Labels, fixed_ids
from jcompress.shrinking._rule import Rule
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.values import Location

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling


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
    batch = numbers.operand_batching_dims
    for axis, other in zip(batch, numbers.scatter_indices_batching_dims, strict=True):
        c.ties.tie(operand[axis], indices[other], why)
    gone = set(numbers.inserted_window_dims)
    window = iter(numbers.update_window_dims)
    made = list(operand)
    for axis, ids in enumerate(operand):
        if axis in batch:
            made[axis] = c.ties.lasting(ids)
            continue
        if axis in gone:
            c.ties.fix(ids, why)
            continue
        given = updates[next(window)]
        if len(given) == len(ids):
            c.ties.tie(ids, given, why)
            made[axis] = c.zero_in_both(ids, given)
        else:
            c.ties.fix(ids, why)
            c.ties.fix(given, why)
    rows = [a for a in range(len(updates)) if a not in numbers.update_window_dims]
    for axis, ids in zip(rows, indices[:-1], strict=True):
        c.ties.tie(updates[axis], ids, why)
    return [Labels(tuple(made))]


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
    made = []
    for ids, given in zip(ins[0].ids, ins[1].ids, strict=True):
        if len(ids) == len(given):
            c.ties.tie(ids, given, why)
            made.append(c.zero_in_both(ids, given))
        else:
            c.ties.fix(ids, why)
            c.ties.fix(given, why)
            made.append(ids)
    return [Labels(tuple(made))]


_SCATTERS = (
    *("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min"),
    *("scatter-max", "scatter_add", "scatter_sub", "scatter_mul", "scatter_min"),
    "scatter_max",
)

LOOKUPS: dict[str, Rule] = {
    "gather": _gather,
    **dict.fromkeys(_SCATTERS, _scatter),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
}
"""The rules, by the name of the primitive."""
