"""Terms through operations that move positions: transposes, reshapes, slices, joins."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jcompress.rescaling._unknowns import MOST, Term
from jcompress.tracing.jaxprs import aval_shape

Move = Callable[[Any, Term, int], Term | None]
"""What an equation makes of a term of its first input, which has some axes in front."""


def _reshape(eqn: Any, term: Term, lead: int) -> Term | None:
    before, after = (aval_shape(v) for v in (eqn.invars[0], eqn.outvars[0]))
    if eqn.params.get("dimensions") is not None:
        return None
    return reshaped(term, before, after, lead)


def reshaped(
    term: Term, before: Sequence[int], after: Sequence[int], lead: int
) -> Term | None:
    """A term of a value whose axes are merged and split."""
    if math.prod(before) == 0:
        return None
    has = term.ids.shape[lead:]
    full, shape = list(term.ids.shape[:lead]), list(term.ids.shape[:lead])
    for old, new in blocks(before, after):
        depends = any(has[d] > 1 for d in old)
        full += [before[d] if depends else 1 for d in old]
        shape += [after[d] if depends else 1 for d in new]
    if math.prod(full) > MOST:
        return None
    return narrowed(term.broadcast(*full).reshape(*shape))


def blocks(
    before: Sequence[int], after: Sequence[int]
) -> Iterator[tuple[range, range]]:
    """Runs of old and of new axes that hold the same positions, as short as can be."""
    ends = [list(itertools.accumulate(s, lambda a, b: a * b)) for s in (before, after)]
    i = j = 0
    for end in sorted(set(ends[0]) & set(ends[1])):
        stop_i = len(ends[0]) - ends[0][::-1].index(end)
        stop_j = len(ends[1]) - ends[1][::-1].index(end)
        yield range(i, stop_i), range(j, stop_j)
        i, j = stop_i, stop_j
    if i < len(before) or j < len(after):
        yield range(i, len(before)), range(j, len(after))


def narrowed(term: Term) -> Term:
    """A term with one position along each axis on which it does not depend."""
    for axis, size in enumerate(term.ids.shape):
        if size > 1:
            first = term.first(axis)
            same = (term.ids == first.ids) & (term.counts == first.counts)
            if same.all():
                term = first
    return term


def _transpose(eqn: Any, term: Term, lead: int) -> Term:
    order = [*range(lead), *(lead + d for d in eqn.params["permutation"])]
    return term.each(lambda x: x.transpose(order))


def _squeeze(eqn: Any, term: Term, lead: int) -> Term:
    gone = tuple(lead + d for d in eqn.params["dimensions"])
    return term.squeeze(*gone)


def _broadcast(eqn: Any, term: Term, lead: int) -> Term | None:
    if len(eqn.invars) > 1:
        return None
    shape = [*term.ids.shape[:lead], *[1] * len(aval_shape(eqn.outvars[0]))]
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        shape[lead + place] = term.ids.shape[lead + axis]
    return term.reshape(*shape)


def _expand(eqn: Any, term: Term, lead: int) -> Term:
    places = tuple(lead + d for d in eqn.params["dimensions"])
    return term.each(lambda x: np.expand_dims(x, places))


def _rev(eqn: Any, term: Term, lead: int) -> Term:
    axes = tuple(lead + d for d in eqn.params["dimensions"])
    return term.each(lambda x: np.flip(x, axes))


def cut(term: Term, lead: int, places: Sequence[slice]) -> Term:
    """The part of a term at some positions of each axis."""
    sizes = term.ids.shape[lead:]
    pairs = zip(sizes, places, strict=True)
    parts = (place if n > 1 else slice(None) for n, place in pairs)
    index = (*[slice(None)] * lead, *parts)
    return term.each(lambda x: x[index])


def _slice(eqn: Any, term: Term, lead: int) -> Term:
    p = eqn.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return cut(term, lead, [slice(*bound) for bound in bounds])


def _tile(eqn: Any, term: Term, lead: int) -> Term:
    sizes = term.ids.shape[lead:]
    times = [
        n if size > 1 else 1 for n, size in zip(eqn.params["reps"], sizes, strict=True)
    ]
    return term.each(lambda x: np.tile(x, [*[1] * lead, *times]))


MOVES: dict[str, Move] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "expand_dims": _expand,
    "broadcast_in_dim": _broadcast,
    "rev": _rev,
    "slice": _slice,
    "tile": _tile,
}
"""Operations with one input and one result, by the name of the primitive."""


def split(eqn: Any, term: Term, lead: int) -> list[Term]:
    """The terms of the parts into which a value is split."""
    axis, ends = eqn.params["axis"], np.cumsum(eqn.params["sizes"])
    made = []
    for start, stop in zip([0, *ends], ends, strict=False):
        places = [slice(None)] * len(aval_shape(eqn.invars[0]))
        places[axis] = slice(int(start), int(stop))
        made.append(cut(term, lead, places))
    return made


def joined(parts: Sequence[Term | None], sizes: Sequence[int], axis: int) -> Term:
    """One term of what is concatenated; None stands for no term."""
    given = [part for part in parts if part is not None]
    shapes = [list(part.ids.shape) for part in given]
    for shape in shapes:
        shape[axis] = 1
    common = np.broadcast_shapes(*map(tuple, shapes))

    def part(term: Term | None, size: int) -> Term:
        full = (*common[:axis], size, *common[axis + 1 :])
        if term is None:
            return Term(np.zeros(full, np.int64), np.zeros(full))
        return term.broadcast(*full)

    every = [part(term, size) for term, size in zip(parts, sizes, strict=True)]
    return narrowed(
        Term(
            np.concatenate([one.ids for one in every], axis),
            np.concatenate([one.counts for one in every], axis),
        )
    )


def _compressed(term: Term, inside: Any, axis: int) -> Term:
    return term.each(lambda x: x.compress(inside, axis))


def padded(eqn: Any, term: Term, lead: int) -> Term:
    """The term of a value with zeros (or infinities) around and between."""
    sizes = term.ids.shape[lead:]
    index: list[Any] = [slice(None)] * lead
    shape = list(term.ids.shape)
    for axis, (n, (low, high, inner)) in enumerate(
        zip(sizes, eqn.params["padding_config"], strict=True)
    ):
        if n == 1:
            index.append(slice(None))
            continue
        whole = np.arange(n) * (inner + 1) + low
        shape[lead + axis] = low + high + n + inner * (n - 1)
        inside = (whole >= 0) & (whole < shape[lead + axis])
        if not inside.all():
            term = _compressed(term, inside, lead + axis)
        index.append(whole[inside])
    ids, counts = np.zeros(shape, np.int64), np.zeros(shape)
    places = np.ix_(
        *(
            np.arange(shape[d]) if isinstance(where, slice) else where
            for d, where in enumerate(index)
        )
    )
    ids[places], counts[places] = term.ids, term.counts
    return Term(ids, counts)
