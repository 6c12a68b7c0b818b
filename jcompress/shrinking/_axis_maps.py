"""Operations that compute over some axes, alike at each position of the others."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jcompress.shrinking._ids import Why
from jcompress.shrinking._labels import Labels, fixed_ids
from jcompress.shrinking._rule import Rule
from jcompress.tracing.jaxprs import Body, aval_shape, split
from jcompress.tracing.values import Location, Place
from jcompress.tracing.walk import walk

if TYPE_CHECKING:
    from jcompress.shrinking._coupling import Coupling

Axes = Callable[[Any], tuple[int, ...]]
"""The axes of the first input over which an equation computes."""


def _last(count: int) -> Axes:
    def axes(eqn: Any) -> tuple[int, ...]:
        rank = len(aval_shape(eqn.invars[0]))
        return tuple(range(rank - count, rank))

    return axes


def _transformed(eqn: Any) -> tuple[int, ...]:
    return _last(len(eqn.params["fft_lengths"]))(eqn)


def _ranked(eqn: Any) -> tuple[int, ...]:
    rank = len(aval_shape(eqn.invars[0]))
    axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1))
    return (axis % rank,)


def _mapped_but_for(axes: Axes) -> Rule:
    """The rule of an operation that maps over all axes but these.

    The axes that it maps over correspond in order, in every input and result; it fixes
    the others.
    """

    def rule(
        c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
    ) -> list[Labels]:
        core = axes(eqn)
        rank = len(ins[0].ids)
        mapped = [axis for axis in range(rank) if axis not in core]
        for value in ins:
            if len(value.ids) != rank:
                c.fix(value, why)
                continue
            for axis in mapped:
                c.ties.tie(ins[0].ids[axis], value.ids[axis], why)
            for axis in core:
                c.ties.fix(value.ids[axis], why)
        outs = []
        for var in eqn.outvars:
            shape = aval_shape(var)
            # Results may have fewer axes in place of those that were computed over.
            places = mapped if len(shape) == rank else range(len(mapped))
            ids = [fixed_ids(size) for size in shape]
            for place, axis in zip(places, mapped, strict=True):
                if len(ids[place]) == len(ins[0].ids[axis]):
                    ids[place] = c.ties.lasting(ins[0].ids[axis])
                else:
                    c.ties.fix(ins[0].ids[axis], why)
            outs.append(Labels(tuple(ids)))
        return outs

    return rule


def _triangular_solve(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    """Each right side is solved for by itself, and so is each matrix of a batch."""
    matrix, right = ins[0].ids, ins[1].ids
    rank = len(right)
    solved = rank - 2 if eqn.params["left_side"] else rank - 1
    for axis in range(rank - 2):
        c.ties.tie(right[axis], matrix[axis], why)
    for core in (*matrix[-2:], right[solved]):
        c.ties.fix(core, why)
    ids = [c.ties.lasting(one) for one in right]
    ids[solved] = fixed_ids(len(right[solved]))
    return [Labels(tuple(ids))]


def _linear_solve(
    c: "Coupling", eqn: Any, ins: list[Labels], why: Why, here: Location
) -> list[Labels]:
    """The solution has the axes of the right side, as far as its programs have."""
    consts, right = linear_solve_inputs(eqn, ins)
    solution = [Labels(tuple(map(c.ties.lasting, value.ids))) for value in right]
    for number, (name, body) in enumerate(linear_solve_bodies(eqn).items()):
        solves = name in ("solve", "transpose_solve")
        given, wanted = (right, solution) if solves else (solution, right)
        place = Place(location=(*here, number), scope=why.scope)
        outs = c.returned(walk(body, [*consts[name], *given], c, place), place)
        for found, other in zip(outs, wanted, strict=True):
            c.alike(other, found, why)
    return solution


def linear_solve_bodies(eqn: Any) -> dict[str, Body]:
    """The programs of a `custom_linear_solve`, by name; some are left out."""
    held = eqn.params["jaxprs"]._asdict()
    return {name: Body.of(one) for name, one in held.items() if one is not None}


def linear_solve_inputs(
    eqn: Any, ins: Sequence[Any]
) -> tuple[dict[str, list[Any]], list[Any]]:
    """The constants of each program, and the right side."""
    lengths = eqn.params["const_lengths"]._asdict()
    *pieces, right = split(ins, *lengths.values())
    return dict(zip(lengths, pieces, strict=True)), right


_MATRICES = (
    *("cholesky", "eig", "eigh", "geqrf", "hessenberg", "householder_product", "lu"),
    *("qr", "schur", "svd", "tridiagonal", "tridiagonal_solve"),
)

MAPS: dict[str, Rule] = {
    **dict.fromkeys(_MATRICES, _mapped_but_for(_last(2))),
    "triangular_solve": _triangular_solve,
    "custom_linear_solve": _linear_solve,
    "lu_pivots_to_permutation": _mapped_but_for(_last(1)),
    "fft": _mapped_but_for(_transformed),
    "top_k": _mapped_but_for(_ranked),
    "approx_top_k": _mapped_but_for(_ranked),
}
"""The rules, by the name of the primitive."""
