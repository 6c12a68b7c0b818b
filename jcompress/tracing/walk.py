"""The one walk through a traced program: loops, branches and calls are entered here."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from jcompress.tracing.jaxprs import (
    Body,
    Kind,
    bodies,
    is_literal,
    kind_of,
    scan_counts,
    split,
)
from jcompress.tracing.values import Place

V = TypeVar("V")

Inside = Callable[[list[V]], list[V]]
"""Walks through what an equation holds: from its inputs to its results."""


class Domain(Protocol[V]):
    """What one walk wants to know of every value.

    A class names this one as its base and writes `constant` and `equation`; the rest
    says what loops, branches and meshes do to a value, and by default that is nothing.
    """

    def constant(self, value: Any, aval: Any) -> V:
        """A number that is written into the program, or an array bound to it.

        Args:
            value: the constant.
            aval: its type.
        """
        ...

    def equation(
        self, eqn: Any, ins: list[V], place: Place, inside: Inside[V] | None
    ) -> list[V]:
        """The results of an equation.

        Args:
            eqn: the equation.
            ins: its inputs.
            place: where it stands.
            inside: walks through the programs that it holds, if it holds any; whoever
                knows the results without does not call it.
        """
        ...

    def carried(self, value: V) -> V:
        """What each step of a loop may rely on, of a value that the steps change."""
        return value

    def slices(self, eqn: Any, xs: list[V], place: Place) -> list[V]:
        """What one step of a scan sees of the arrays that it takes apart."""
        return xs

    def stacked(self, eqn: Any, xs: list[V], ys: list[V], place: Place) -> list[V]:
        """What a scan over `xs` collects, if each step hands out `ys`."""
        return ys

    def shards(self, eqn: Any, ins: list[V]) -> list[V]:
        """What one device sees of the inputs of a `shard_map`."""
        return ins

    def gathered(self, eqn: Any, outs: list[V]) -> list[V]:
        """What a `shard_map` makes of the results of all devices."""
        return outs

    def returned(self, outs: list[V], place: Place) -> list[V]:
        """The results of a program that meet others: of another step or branch.

        Args:
            outs: the results.
            place: the program.
        """
        return outs

    def join(self, eqn: Any, a: V, b: V, place: Place) -> V:
        """A value that is the one or the other; `a` itself if it says enough.

        A loop is walked through again until each value that it carries does.
        """
        return a

    def chosen(self, index: V, outs: list[V]) -> list[V]:
        """What a `cond` gives, whose `index` picks one of branches that give `outs`."""
        return outs

    def forget(self, place: Place) -> None:
        """A program will be walked through again, with less known of its inputs."""
        return None


def walk(
    body: Body, inputs: Sequence[V], domain: Domain[V], place: Place | None = None
) -> list[V]:
    """Go through a program, equation by equation, and into all that they hold.

    Args:
        body: the program.
        inputs: what is known of its inputs.
        domain: makes of the inputs of an equation its results.
        place: where the program stands.

    Returns:
        What is known of the program's results.
    """
    place = place or Place()
    known: dict[Any, V] = {}
    for var, const in zip(body.jaxpr.constvars, body.consts, strict=True):
        known[var] = domain.constant(const, var.aval)
    known.update(zip(body.jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> V:
        if is_literal(atom):
            return domain.constant(atom.val, atom.aval)
        return known[atom]

    for index, eqn in enumerate(body.jaxpr.eqns):
        here = place.inside(index)
        way = _WAYS.get(kind_of(eqn))
        inside = None if way is None else way(domain, eqn, here.within(eqn))
        outs = domain.equation(eqn, [of(v) for v in eqn.invars], here, inside)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [of(atom) for atom in body.jaxpr.outvars]


def _call(domain: Domain[V], eqn: Any, place: Place) -> Inside[V]:
    (body,) = bodies(eqn)
    return lambda ins: walk(body, ins, domain, place.inside(0))


def _custom_gradient(domain: Domain[V], eqn: Any, place: Place) -> Inside[V]:
    (body,) = bodies(eqn)
    inner = place.inside(0, in_custom_gradient=True)
    return lambda ins: walk(body, ins, domain, inner)


def _scan(domain: Domain[V], eqn: Any, place: Place) -> Inside[V]:
    (body,) = bodies(eqn)
    n_consts, n_carry = scan_counts(eqn)
    inner = place.inside(0, runs=place.runs * eqn.params["length"])

    def inside(ins: list[V]) -> list[V]:
        consts, carry, xs = split(ins, n_consts, n_carry)
        slices = domain.slices(eqn, xs, place)

        def step(now: list[V]) -> list[V]:
            outs = walk(body, [*consts, *now, *slices], domain, inner)
            return domain.returned(outs, inner)

        carry, outs = _settled(domain, eqn, place, step, carry)
        return [*carry, *domain.stacked(eqn, xs, outs[n_carry:], place)]

    return inside


def _while(domain: Domain[V], eqn: Any, place: Place) -> Inside[V]:
    cond, body = bodies(eqn)
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    check, inner = (place.inside(number, in_while=True) for number in range(2))

    def inside(ins: list[V]) -> list[V]:
        cond_consts, body_consts, carry = split(ins, n_cond, n_body)

        def step(now: list[V]) -> list[V]:
            walk(cond, [*cond_consts, *now], domain, check)
            return domain.returned(
                walk(body, [*body_consts, *now], domain, inner), inner
            )

        return _settled(domain, eqn, place, step, carry)[0]

    return inside


def _settled(
    domain: Domain[V],
    eqn: Any,
    place: Place,
    step: Callable[[list[V]], list[V]],
    carry: list[V],
) -> tuple[list[V], list[V]]:
    """What holds of carried values at every step, and the results of one step."""
    carry = [domain.carried(value) for value in carry]
    while True:
        outs = step(carry)
        joined = [
            domain.join(eqn, before, after, place)
            for before, after in zip(carry, outs[: len(carry)], strict=True)
        ]
        if all(new is old for new, old in zip(joined, carry, strict=True)):
            return carry, outs
        domain.forget(place)
        carry = joined


def _cond(domain: Domain[V], eqn: Any, place: Place) -> Inside[V]:
    def inside(ins: list[V]) -> list[V]:
        index, *operands = ins
        joined: list[V] | None = None
        for number, branch in enumerate(bodies(eqn)):
            inner = place.inside(number)
            outs = domain.returned(walk(branch, operands, domain, inner), inner)
            if joined is None:
                joined = outs
                continue
            joined = [
                domain.join(eqn, a, b, place) for a, b in zip(joined, outs, strict=True)
            ]
        return domain.chosen(index, joined or [])

    return inside


def _shard_map(domain: Domain[V], eqn: Any, place: Place) -> Inside[V]:
    (body,) = bodies(eqn)
    # Every device along the axes that the map takes apart runs the program.
    mesh = eqn.params["mesh"]
    axes = eqn.params.get("newly_manual_axes", mesh.axis_names)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    inner = place.inside(0, runs=place.runs * devices)

    def inside(ins: list[V]) -> list[V]:
        outs = walk(body, domain.shards(eqn, ins), domain, inner)
        return domain.gathered(eqn, outs)

    return inside


_WAYS: dict[Kind, Callable[[Domain[Any], Any, Place], Inside[Any]]] = {
    Kind.CALL: _call,
    Kind.INLINE: _call,
    Kind.REMAT: _call,
    Kind.CUSTOM_GRADIENT: _custom_gradient,
    Kind.SCAN: _scan,
    Kind.WHILE: _while,
    Kind.COND: _cond,
    Kind.SHARD_MAP: _shard_map,
}
"""How each kind of equation that holds programs is entered."""
