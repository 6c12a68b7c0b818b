"""Follow parameter leaves through a traced function and note where they meet data."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax

from jcompress.tracing.jaxprs import aval_shape, bodies
from jcompress.tracing.site import Operation, Site
from jcompress.tracing.uses import (
    Role,
    elementwise,
    leaf_axes_of,
    lookup_role,
    product_role,
    unsummed,
)
from jcompress.tracing.values import CONST, DATA, Location, Place, Use, Value
from jcompress.tracing.views import SAME, View, follow
from jcompress.tracing.walk import Domain, Inside


class Flow(Domain[Value]):
    """Notes each equation at which a leaf meets data, on a walk through a function.

    Attributes:
        uses: these equations, by location.
    """

    def __init__(self, leaves: Sequence[tuple[str, jax.ShapeDtypeStruct]]) -> None:
        self._leaves = leaves
        self._apart: dict[Location, tuple[int, frozenset[int]]] = {}
        self.uses: dict[Location, Use] = {}

    @property
    def table(self) -> tuple[Site, ...]:
        """Every site, in the order of execution."""
        ordered = sorted(self.uses.items(), key=lambda item: item[0])
        return tuple(site for _, use in ordered for site in use.sites)

    def constant(self, value: Any, aval: Any) -> Value:
        """No leaf and no data."""
        return CONST

    def equation(
        self, eqn: Any, ins: list[Value], place: Place, inside: Inside[Value] | None
    ) -> list[Value]:
        """What an equation makes of leaves and data."""
        if not any(value.sources for value in ins):
            made = DATA if any(value.data for value in ins) else CONST
            return [made] * len(eqn.outvars)
        return self._primitive(eqn, ins, place) if inside is None else inside(ins)

    def slices(self, eqn: Any, xs: list[Value], place: Place) -> list[Value]:
        """One entry of each leaf."""
        length = eqn.params["length"]
        leaves = frozenset(view.leaf for x in xs for view in x.views)
        self._apart[place.location] = length, leaves
        return [
            dataclasses.replace(
                x, views=tuple(view.take(0, length) for view in x.views)
            )
            for x in xs
        ]

    def stacked(
        self, eqn: Any, xs: list[Value], ys: list[Value], place: Place
    ) -> list[Value]:
        """The leaves again of which each step hands out its entry."""
        taken = {view.leaf: view for x in xs for view in x.views}
        length = eqn.params["length"]
        return [
            dataclasses.replace(
                y,
                views=tuple(
                    view.restacked(taken.get(view.leaf), length) for view in y.views
                ),
            )
            for y in ys
        ]

    def shards(self, eqn: Any, ins: list[Value]) -> list[Value]:
        """The part of each leaf that a device has."""
        (body,) = bodies(eqn)
        return [
            dataclasses.replace(
                value, views=tuple(v.local(aval_shape(var)) for v in value.views)
            )
            for value, var in zip(ins, body.jaxpr.invars, strict=True)
        ]

    def gathered(self, eqn: Any, outs: list[Value]) -> list[Value]:
        """Leaves in an arrangement that is not followed."""
        return [dataclasses.replace(value, views=()) for value in outs]

    def join(self, eqn: Any, a: Value, b: Value, place: Place) -> Value:
        """What both show; a leaf on one side and data on the other have met."""
        if a == b:
            return a
        lost = a.sources | b.sources
        if a.data or b.data:
            if lost:
                before = self.uses.get(place.location)
                opaque = Value(False, (), lost)
                self._note(eqn, [opaque], [Role(Operation.OPAQUE)], place)
                if before is not None:
                    now = self.uses[place.location]
                    every = tuple(dict.fromkeys(before.sites + now.sites))
                    now = dataclasses.replace(now, sites=every)
                    self.uses[place.location] = now
            return a if a == DATA else DATA
        both = Value(False, tuple(v for v in a.views if v in b.views), lost)
        return a if a == both else both

    def chosen(self, index: Value, outs: list[Value]) -> list[Value]:
        """Which branch ran may depend on data, and then what it returns does, too."""
        if not index.data:
            return outs
        # Not if every branch returns the same view of a leaf.
        return [v if v.views or v.sources else DATA for v in outs]

    def forget(self, place: Place) -> None:
        """Drop what was noted inside of a loop."""
        at = place.location
        self.uses = {
            where: use
            for where, use in self.uses.items()
            if where == at or where[: len(at)] != at
        }

    def _primitive(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        if eqn.primitive.name in SAME and len(ins) == len(eqn.outvars):
            return ins
        meets_data = any(value.data for value in ins)
        roles: list[Role | None] = [None] * len(ins)
        for operand, value in enumerate(ins):
            if value.sources:
                roles[operand] = product_role(eqn, operand)
                if roles[operand] is None:
                    roles[operand] = lookup_role(eqn, operand, meets_data)
        if any(role is not None for role in roles):
            self._note(eqn, ins, roles, place)
            if meets_data:
                return [DATA] * len(eqn.outvars)
        if meets_data:
            plain = Operation.OPAQUE
            if elementwise(eqn):
                plain = Operation.ELEMENTWISE
            roles = [Role(plain) if value.sources else None for value in ins]
            self._note(eqn, ins, roles, place)
            return [DATA] * len(eqn.outvars)
        return self._parameters_only(eqn, ins, place)

    def _parameters_only(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        sources = frozenset[int]().union(*(value.sources for value in ins))
        views: list[list[View]] = [[] for _ in eqn.outvars]
        if elementwise(eqn):
            found, spread = self._combined(eqn, ins, place)
            views[0] = found
            sources -= spread - {view.leaf for view in found}
        else:
            for leaf in sorted({v.leaf for value in ins for v in value.views}):
                one = [
                    next((v for v in value.views if v.leaf == leaf), None)
                    for value in ins
                ]
                for out, view in enumerate(follow(eqn, one)):
                    if view is not None:
                        views[out].append(view)
        return [Value(False, tuple(found), sources) for found in views]

    def _combined(
        self, eqn: Any, ins: list[Value], place: Place
    ) -> tuple[list[View], frozenset[int]]:
        """Views of the result of arithmetic on parameters, and leaves used up by it.

        A vector that scales a whole weight is used up here, as a bias is where it is
        added; the weight goes on.
        """
        shape = aval_shape(eqn.outvars[0])
        where = unsummed(eqn)
        if where is None:
            shown = [
                tuple(view.spread(aval_shape(var), shape) for view in value.views)
                for value, var in zip(ins, eqn.invars, strict=True)
            ]
        else:
            shown = [
                tuple(view.placed(dims, shape) for view in value.views)
                for value, dims in zip(ins, where, strict=True)
            ]
        full = [v for views in shown for v in views if not v.broadcast]
        spread = [tuple(v for v in views if v.broadcast) for views in shown]
        used = frozenset(v.leaf for views in spread for v in views)
        if not full:
            full, used = [v for views in spread for v in views], frozenset()
        elif used:
            values = [
                Value(False, views, frozenset(v.leaf for v in views))
                for views in spread
            ]
            role = Role(Operation.ELEMENTWISE)
            self._note(eqn, values, [role if v else None for v in spread], place)
        # A leaf that arrives by two ways (`where(mask, exp(w), w)`) is one leaf.
        derived = (dataclasses.replace(view, derived=True) for view in full)
        return list(dict.fromkeys(derived)), used

    def _note(
        self, eqn: Any, ins: list[Value], roles: list[Role | None], place: Place
    ) -> None:
        sites: list[Site] = []
        for operand, (value, role) in enumerate(zip(ins, roles, strict=True)):
            if role is None:
                continue
            views: dict[int, list[View]] = {}
            for view in value.views:
                views.setdefault(view.leaf, []).append(view)
            # Where two parameters meet, the multiplications count once.
            size = 0
            if not any(roles[operand + 1 :]):
                size = math.prod(aval_shape(eqn.invars[operand]))
            shares = _shared_out(size, role.repeats, [v[0] for v in views.values()])
            for same, share in zip(views.values(), shares, strict=True):
                sites.append(self._site(eqn, operand, role, same, share, place))
            for leaf in sorted(value.sources - views.keys()):
                lost = View.whole(leaf, self._leaves[leaf][1].shape)
                first = not views and leaf == min(value.sources)
                every = role.repeats * size
                opaque = Role(Operation.OPAQUE)
                sites.append(
                    self._site(
                        eqn, operand, opaque, [lost], every if first else 0, place
                    )
                )
        if not sites:
            return
        weights = [role for role in roles if role and role.data is not None]
        data = weights[0].data if len(weights) == 1 else None
        leaves = {view.leaf for value in ins for view in value.views}
        around = (place.location[:end] for end in range(len(place.location)))
        scans = ((at, *self._apart[at]) for at in around if at in self._apart)
        self.uses[place.location] = Use(
            eqn=eqn,
            sites=tuple(sites),
            views=tuple(value.views for value in ins),
            data=data,
            stacked=tuple(
                (at, length) for at, length, apart in scans if apart & leaves
            ),
        )

    def _site(
        self,
        eqn: Any,
        operand: int,
        role: Role,
        views: list[View],
        macs: int,
        place: Place,
    ) -> Site:
        view = views[0]
        path, leaf = self._leaves[view.leaf]
        inputs, outputs, stack = leaf_axes_of(views, role, len(leaf.shape))
        data = () if role.data is None else aval_shape(eqn.invars[role.data])
        return Site(
            path=path,
            operation=role.operation,
            primitive=eqn.primitive.name,
            shape=tuple(leaf.shape),
            dtype=leaf.dtype,
            input_axes=inputs,
            output_axes=outputs,
            stack_axes=stack,
            window_axes=tuple(
                sorted({a for v in views for a in v.axes(*role.window_dims)})
            ),
            groups=role.groups,
            data_shape=data,
            out_shape=aval_shape(eqn.outvars[0]),
            macs=macs,
            runs=None if place.in_while else math.ceil(place.runs * view.share),
            derived=any(v.derived for v in views),
            in_custom_gradient=place.in_custom_gradient,
            location=place.location,
            operand=operand,
        )


def _shared_out(size: int, repeats: int, views: list[View]) -> list[int]:
    """Share the multiplications of one equation out to the leaves it was made from.

    Parts that stand beside each other have their own; of leaves that lie on top of each
    other (added before the product) the first has all. What belongs to no leaf, such
    as padding, goes to the first. Each of the `size` numbers is multiplied `repeats`
    times, which `jax.export` may leave symbolic.
    """
    left = Fraction(size)
    parts: list[Fraction] = []
    for view in views:
        # Where a loop takes a stack of leaves apart, each meets its own steps only.
        parts.append(min(view.size * view.share, left))
        left -= parts[-1]
    if parts:
        parts[0] += left
    shares = [part / view.share for part, view in zip(parts, views, strict=True)]
    return [repeats * share.numerator // share.denominator for share in shares]
