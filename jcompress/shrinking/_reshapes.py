"""Ids through a reshape, which merges axes into one and splits one into several."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jcompress.shrinking._ids import FIXED, Ids, Why
from jcompress.shrinking._labels import fixed_ids
from jcompress.tracing.values import Location

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling


def reshaped(
    c: "Coupling", ids: tuple[Ids, ...], shape: tuple[int, ...], why: Why, at: Location
) -> tuple[Ids, ...]:
    """The ids of the axes of a reshaped value.

    Where axes merge, one of those that could shrink keeps its ids, repeated; the
    others are fixed. Where an axis is split, the new axis on which alone its ids
    depend gets them; if there is none, the positions that share an index of one new
    axis are tied.
    """
    if 0 in shape:
        for one in ids:
            c.ties.fix(one, why)
        return tuple(map(fixed_ids, shape))
    made: list[Ids] = []
    for number, (old, new) in enumerate(_blocks(tuple(map(len, ids)), shape)):
        axes = [ids[axis] for axis in old if len(ids[axis]) > 1]
        sizes = [shape[axis] for axis in new]
        real = [size for size in sizes if size > 1]
        if len(axes) == len(real) <= 1:
            pieces = axes
        else:
            flat = _merged(c, axes, why, (at, 2 * number))
            pieces = _split(c, flat, real, why, (at, 2 * number + 1))
        rest = iter(pieces)
        made += [next(rest) if size > 1 else fixed_ids(1) for size in sizes]
    return tuple(made)


def _blocks(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[range, range]]:
    """The shortest runs of old and new axes that hold equally many positions."""
    found = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        size_i = size_j = 1
        if i < len(before):
            size_i, i = before[i], i + 1
        if j < len(after):
            size_j, j = after[j], j + 1
        while size_i != size_j:
            if size_i < size_j:
                size_i, i = size_i * before[i], i + 1
            else:
                size_j, j = size_j * after[j], j + 1
        found.append((range(i0, i), range(j0, j)))
    return found


def _merged(c: "Coupling", axes: list[Ids], why: Why, key: tuple[Location, int]) -> Ids:
    shape = tuple(map(len, axes))
    loose = [number for number, ids in enumerate(axes) if (ids != FIXED).any()]
    if not loose:
        return fixed_ids(math.prod(shape))
    # What was there before it was repeated comes first.
    loose.sort(key=lambda number: c.is_copies(axes[number]))
    kept = loose[c.choose(*key, [axes[number] for number in loose])]
    for number in loose:
        if number != kept:
            c.ties.fix(axes[number], why)
    return np.broadcast_to(_along(axes[kept], kept, len(shape)), shape).ravel()


def _split(
    c: "Coupling",
    ids: Ids,
    sizes: list[int],
    why: Why,
    key: tuple[Location, int],
) -> list[Ids]:
    if len(sizes) == 1:
        return [ids]
    made = [fixed_ids(size) for size in sizes]
    if not (ids != FIXED).any():
        return made
    table = ids.reshape(sizes)
    for axis in range(len(sizes)):
        line = np.moveaxis(table, axis, 0).reshape(sizes[axis], -1)
        if (line == line[:, :1]).all():
            made[axis] = line[:, 0]
            return made
    lines = [
        np.moveaxis(table, axis, 0).reshape(size, -1) for axis, size in enumerate(sizes)
    ]
    chosen = c.choose(*key, [line.ravel() for line in lines])
    line = lines[chosen]
    first = np.max(line, axis=1)
    c.ties.tie(np.repeat(first, line.shape[1]), line.ravel(), why)
    made[chosen] = first
    return made


def _along(ids: Ids, axis: int, rank: int) -> Ids:
    return ids.reshape([-1 if d == axis else 1 for d in range(rank)])
