"""Factors through products: those of summed positions cancel, the others remain."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jcompress.rescaling._scale_value import Scale
from jcompress.rescaling._unknowns import Term, Why
from jcompress.tracing.jaxprs import aval_shape

if TYPE_CHECKING:
    from jcompress.rescaling._scale_walk import Scales


def placed(term: Term, lead: int, rank: int, places: Sequence[tuple[int, int]]) -> Term:
    """A term whose axes are moved into a space of `rank` axes.

    Args:
        term: the term.
        lead: how many axes stand before those of the value.
        rank: how many axes the space has.
        places: pairs of an axis of the value and one of the space; axes that are left
            out have one position.
    """
    shape = [*term.ids.shape[:lead], *[1] * rank]
    for axis, place in places:
        shape[lead + place] = term.ids.shape[lead + axis]
    order = sorted(places, key=lambda pair: pair[1])
    rest = [d for d in range(term.ids.ndim - lead) if d not in dict(places)]
    axes = [*range(lead), *(lead + a for a, _ in order), *(lead + d for d in rest)]
    return term.each(lambda x: x.transpose(axes).reshape(shape))


def _summed(
    c: "Scales", terms: Sequence[Term], rank: int, axes: Sequence[int], why: Why
) -> list[Term]:
    """The terms of a product in the space of all of its axes, some summed over."""
    kept: list[Term] = []
    over: list[Term] = []
    for term in terms:
        lead = term.ids.ndim - rank
        varies = any(term.ids.shape[lead + axis] > 1 for axis in axes)
        (over if varies else kept).append(term)
    c.unknowns.vanish(over, why)
    return kept


def _without(term: Term, rank: int, axes: Sequence[int]) -> Term:
    gone = tuple(term.ids.ndim - rank + axis for axis in axes)
    return term.squeeze(*gone)


def _noted(why: Why, ins: Sequence[Scale]) -> Why:
    bare = [v.origin for v in ins if not v.terms and v.origin and not v.constant]
    return why._replace(note=f"reads {bare[0]}") if bare else why


def dot(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    """Batch axes, then the free ones of both inputs, then those that are summed."""
    contract, batch = eqn.params["dimension_numbers"]
    ranks = [len(aval_shape(atom)) for atom in eqn.invars]
    loose = [
        [d for d in range(rank) if d not in (*contract[n], *batch[n])]
        for n, rank in enumerate(ranks)
    ]
    out_rank = len(batch[0]) + len(loose[0]) + len(loose[1])
    rank = out_rank + len(contract[0])
    summed = range(out_rank, rank)
    terms = []
    for number in range(2):
        start = len(batch[0]) + (len(loose[0]) if number else 0)
        places = [
            *((axis, n) for n, axis in enumerate(batch[number])),
            *((axis, start + n) for n, axis in enumerate(loose[number])),
            *((axis, out_rank + n) for n, axis in enumerate(contract[number])),
        ]
        for term in ins[number].terms:
            terms.append(placed(term, c.lead(term, eqn.invars[number]), rank, places))
    kept = _summed(c, terms, rank, summed, _noted(why, ins))
    return [c.combined([_without(term, rank, summed) for term in kept], ins)]


def convolution(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    """Batch, outputs and window of the result, then inputs and window of the kernel."""
    params = eqn.params
    spec = params["dimension_numbers"]
    groups = params["feature_group_count"]
    if params["batch_group_count"] != 1:
        for value in ins:
            c.vanish(value, why)
        return [c.combined((), ins)]
    data, kernel = eqn.invars
    value = c.even(ins[0], data, spec.lhs_spec[2:], why)
    window = len(spec.lhs_spec) - 2
    outputs = aval_shape(kernel)[spec.rhs_spec[0]]
    depth = aval_shape(kernel)[spec.rhs_spec[1]]
    rank = 3 + window
    terms = []
    for term in value.terms:
        lead = c.lead(term, data)
        at = lead + spec.lhs_spec[1]
        if groups > 1 and term.ids.shape[at] > 1:
            # Each output meets the channels of its own group.
            term = placed(term, lead, 2, [(spec.lhs_spec[0], 0), (spec.lhs_spec[1], 1)])
            shape = (*term.ids.shape[:-1], groups, 1, depth)
            full = (*term.ids.shape[:-1], groups, outputs // groups, depth)
            flat = (*term.ids.shape[:-1], outputs, depth, *[1] * window)
            term = term.reshape(*shape).broadcast(*full).reshape(*flat)
        else:
            places = [(spec.lhs_spec[0], 0), (spec.lhs_spec[1], 2)]
            term = placed(term, lead, rank, places)
        terms.append(term)
    for term in ins[1].terms:
        places = [(spec.rhs_spec[0], 1), (spec.rhs_spec[1], 2)]
        places += [(axis, 3 + n) for n, axis in enumerate(spec.rhs_spec[2:])]
        terms.append(placed(term, c.lead(term, kernel), rank, places))
    kept = _summed(c, terms, rank, range(2, rank), _noted(why, ins))
    made = []
    for term in kept:
        lead = term.ids.ndim - rank
        short = _without(term, rank, range(2, rank))
        places = [(0, spec.out_spec[0]), (1, spec.out_spec[1])]
        made.append(placed(short, lead, 2 + window, places))
    return [c.combined(made, ins)]


def ragged_dot(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    """Rows of data, each with one of the matrices: `[M, K]` by `[G, K, N]`."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contract, batch = numbers.dot_dimension_numbers
    groups, rows = numbers.rhs_group_dimensions, numbers.lhs_ragged_dimensions
    if any(batch[0]) or any(axis in contract[0] for axis in rows) or not groups:
        for value in ins:
            c.vanish(value, why)
        return [c.combined((), ins)]
    for value in ins[2:]:
        c.vanish(value, why)
    data = c.even(ins[0], eqn.invars[0], rows, why)
    left = [d for d in range(len(aval_shape(eqn.invars[0]))) if d not in contract[0]]
    right = [
        d
        for d in range(len(aval_shape(eqn.invars[1])))
        if d not in (*contract[1], *groups)
    ]
    out_rank = len(left) + len(right)
    rank = out_rank + len(contract[0])
    # The summed axes, and the matrices in front of all.
    terms = []
    for term in data.terms:
        places = [(axis, n + 1) for n, axis in enumerate(left)]
        places += [(axis, out_rank + n + 1) for n, axis in enumerate(contract[0])]
        terms.append(placed(term, c.lead(term, eqn.invars[0]), rank + 1, places))
    for term in ins[1].terms:
        places = [(groups[0], 0)]
        places += [(axis, len(left) + n + 1) for n, axis in enumerate(right)]
        places += [(axis, out_rank + n + 1) for n, axis in enumerate(contract[1])]
        terms.append(placed(term, c.lead(term, eqn.invars[1]), rank + 1, places))
    summed = range(out_rank + 1, rank + 1)
    kept = _summed(c, terms, rank + 1, summed, _noted(why, ins))
    made = []
    for term in kept:
        lead = term.ids.ndim - rank - 1
        (even,) = c.level(_without(term, rank + 1, summed), (lead,), why)
        made.append(even.squeeze(lead))
    return [c.combined(made, ins)]
