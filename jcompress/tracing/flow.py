"""Follow parameter leaves through a traced function and note where they meet data."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax

from jcompress.tracing.jaxprs import (
    Body,
    Kind,
    aval_shape,
    bodies,
    is_literal,
    kind_of,
    scan_counts,
    split,
)
from jcompress.tracing.site import Operation, Site
from jcompress.tracing.uses import (
    ELEMENTWISE,
    Role,
    is_scaling,
    leaf_axes_of,
    lookup_role,
    product_role,
)
from jcompress.tracing.values import CONST, DATA, Location, Place, Use, Value
from jcompress.tracing.views import SAME, View, arranged, follow


class Flow:
    """The sites of a traced function, found by following its leaves."""

    def __init__(self, leaves: Sequence[tuple[str, jax.ShapeDtypeStruct]]) -> None:
        self._leaves = leaves
        self.uses: dict[Location, Use] = {}

    @property
    def table(self) -> tuple[Site, ...]:
        """Every site, in the order of execution."""
        ordered = sorted(self.uses.items(), key=lambda item: item[0])
        return tuple(site for _, use in ordered for site in use.sites)

    def run(
        self, body: Body, inputs: list[Value], place: Place | None = None
    ) -> list[Value]:
        """Follow the leaves through a program; gives the values of its results."""
        place = place or Place()
        known: dict[Any, Value] = dict.fromkeys(body.jaxpr.constvars, CONST)
        known.update(zip(body.jaxpr.invars, inputs, strict=True))
        for index, eqn in enumerate(body.jaxpr.eqns):
            ins = [CONST if is_literal(v) else known[v] for v in eqn.invars]
            if not any(value.sources for value in ins):
                made = DATA if any(value.data for value in ins) else CONST
                outs = [made] * len(eqn.outvars)
            else:
                outs = self._equation(eqn, ins, place.inside(index))
            known.update(zip(eqn.outvars, outs, strict=True))
        return [CONST if is_literal(v) else known[v] for v in body.jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        match kind_of(eqn):
            case Kind.LEAF:
                return self._primitive(eqn, ins, place)
            case Kind.SCAN:
                return self._scan(eqn, ins, place)
            case Kind.WHILE:
                return self._while(eqn, ins, place)
            case Kind.COND:
                return self._cond(eqn, ins, place)
            case Kind.SHARD_MAP:
                return self._shard_map(eqn, ins, place)
            case Kind.SEALED:
                (body,) = bodies(eqn)
                return self.run(body, ins, place.inside(0, sealed=True))
        (body,) = bodies(eqn)
        return self.run(body, ins, place.inside(0))

    def _primitive(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        if eqn.primitive.name in SAME and len(ins) == len(eqn.outvars):
            return ins
        meets_data = any(value.data for value in ins)
        scaling = any(is_scaling(eqn, operand) for operand in range(len(ins)))
        if scaling and not meets_data:
            return self._parameters_only(eqn, ins, place)
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
            if eqn.primitive.name in ELEMENTWISE:
                plain = Operation.ELEMENTWISE
            if scaling:
                plain = Operation.ELEMENTWISE
            roles = [Role(plain) if value.sources else None for value in ins]
            self._note(eqn, ins, roles, place)
            return [DATA] * len(eqn.outvars)
        return self._parameters_only(eqn, ins, place)

    def _parameters_only(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        sources = frozenset[int]().union(*(value.sources for value in ins))
        views: list[list[View]] = [[] for _ in eqn.outvars]
        scaling = any(is_scaling(eqn, operand) for operand in range(len(ins)))
        if scaling or eqn.primitive.name in ELEMENTWISE:
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
        shown = [
            tuple(arranged(eqn, operand, view, shape) for view in value.views)
            for operand, value in enumerate(ins)
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
        # A leaf that comes by several ways is one leaf.
        changed = dict.fromkeys(dataclasses.replace(v, derived=True) for v in full)
        return list(changed), used

    def _note(
        self, eqn: Any, ins: list[Value], roles: list[Role | None], place: Place
    ) -> None:
        if not place.recording:
            return
        sites: list[Site] = []
        for operand, (value, role) in enumerate(zip(ins, roles, strict=True)):
            if role is None:
                continue
            shown = {view.leaf for view in value.views}
            # Where two parameters meet, the multiplications count once.
            counted = not any(roles[operand + 1 :])
            size = math.prod(aval_shape(eqn.invars[operand])) if counted else 0
            for view, count in zip(
                value.views, _shared(size, value.views), strict=True
            ):
                macs = role.repeats * count
                sites.append(self._site(eqn, operand, role, view, macs, place))
            for leaf in sorted(value.sources - shown):
                lost = View.whole(leaf, self._leaves[leaf][1].shape)
                macs = 0
                if counted and not value.views and leaf == min(value.sources):
                    macs = role.repeats * math.prod(aval_shape(eqn.invars[operand]))
                opaque = Role(Operation.OPAQUE)
                sites.append(self._site(eqn, operand, opaque, lost, macs, place))
        if not sites:
            return
        weights = [role for role in roles if role and role.data is not None]
        data = weights[0].data if len(weights) == 1 else None
        leaves = {view.leaf for value in ins for view in value.views}
        self.uses[place.location] = Use(
            eqn=eqn,
            sites=tuple(sites),
            views=tuple(value.views for value in ins),
            data=data,
            stacked=tuple(
                (where, length)
                for where, length, stacked in place.stacks
                if stacked & leaves
            ),
        )

    def _site(
        self,
        eqn: Any,
        operand: int,
        role: Role,
        view: View,
        macs: int,
        place: Place,
    ) -> Site:
        path, leaf = self._leaves[view.leaf]
        inputs, outputs, stack = leaf_axes_of(view, role, len(leaf.shape))
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
            window_axes=tuple(sorted(view.axes(*role.window_dims))),
            groups=role.groups,
            data_shape=data,
            out_shape=aval_shape(eqn.outvars[0]),
            macs=macs,
            runs=None if place.runs is None else math.ceil(place.runs * view.share),
            derived=view.derived,
            sealed=place.sealed,
            location=place.location,
            operand=operand,
        )

    def _scan(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        (body,) = bodies(eqn)
        n_consts, n_carry = scan_counts(eqn)
        consts, carry, xs = split(ins, n_consts, n_carry)
        length = eqn.params["length"]
        slices = [
            dataclasses.replace(
                x, views=tuple(view.take(0, length) for view in x.views)
            )
            for x in xs
        ]
        stacked = frozenset(view.leaf for x in xs for view in x.views)
        inner = place.inside(
            0,
            runs=None if place.runs is None else place.runs * length,
            stacks=(*place.stacks, (place.location, length, stacked)),
        )
        silent = dataclasses.replace(inner, recording=False)
        carry = self._fixed_point(
            eqn,
            lambda now: self.run(body, [*consts, *now, *slices], silent)[:n_carry],
            carry,
            place,
        )
        outs = self.run(body, [*consts, *carry, *slices], inner)[n_carry:]
        taken = {view.leaf: view for x in xs for view in x.views}
        ys = [
            dataclasses.replace(
                out,
                views=tuple(
                    view.restacked(taken.get(view.leaf), length) for view in out.views
                ),
            )
            for out in outs
        ]
        return [*carry, *ys]

    def _while(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        cond, body = bodies(eqn)
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond_consts, body_consts, carry = split(ins, n_cond, n_body)
        inner = place.inside(1, runs=None)
        silent = dataclasses.replace(inner, recording=False)
        carry = self._fixed_point(
            eqn, lambda now: self.run(body, [*body_consts, *now], silent), carry, place
        )
        self.run(cond, [*cond_consts, *carry], place.inside(0, runs=None))
        self.run(body, [*body_consts, *carry], inner)
        return carry

    def _cond(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        chosen, *operands = ins
        results = [
            self.run(branch, operands, place.inside(number))
            for number, branch in enumerate(bodies(eqn))
        ]
        joined = results[0]
        for other in results[1:]:
            joined = [
                self._join(eqn, a, b, place) for a, b in zip(joined, other, strict=True)
            ]
        if chosen.data:
            # Which branch ran depends on data, so what it returns does too, unless
            # every branch returns the same view of a leaf.
            joined = [v if v.views or v.sources else DATA for v in joined]
        return joined

    def _shard_map(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
        (body,) = bodies(eqn)
        local = [
            dataclasses.replace(
                value, views=tuple(v.local(aval_shape(var)) for v in value.views)
            )
            for value, var in zip(ins, body.jaxpr.invars, strict=True)
        ]
        # Every device along the axes that the map takes apart runs the program.
        mesh = eqn.params["mesh"]
        axes = eqn.params.get("newly_manual_axes", mesh.axis_names)
        runs = place.runs
        if runs is not None:
            runs *= math.prod(mesh.shape[axis] for axis in axes)
        outs = self.run(body, local, place.inside(0, runs=runs))
        return [dataclasses.replace(value, views=()) for value in outs]

    def _fixed_point(
        self, eqn: Any, step: Any, carry: list[Value], place: Place
    ) -> list[Value]:
        while any(not value.data for value in carry):
            after = [
                self._join(eqn, a, b, place)
                for a, b in zip(carry, step(carry), strict=True)
            ]
            if after == carry:
                break
            carry = after
        return carry

    def _join(self, eqn: Any, a: Value, b: Value, place: Place) -> Value:
        if a == b:
            return a
        lost = a.sources | b.sources
        if a.data or b.data:
            if lost:
                opaque = Value(False, (), lost)
                self._note(eqn, [opaque], [Role(Operation.OPAQUE)], place)
            return DATA
        return Value(False, tuple(v for v in a.views if v in b.views), lost)


def _shared(size: int, views: Sequence[View]) -> list[int]:
    """Share out the elements of an input among the leaves that it shows.

    Parts that are joined count each for itself; of leaves that lie over each other (a
    sum of two weights) only the first counts, and so does it where the input holds more
    than its leaves do.
    """
    left = Fraction(size)
    counts = []
    for view in views:
        count = min(view.size, math.floor(left / view.share))
        left -= count * view.share
        counts.append(count)
    if counts and left >= 1 and all(view.share == 1 for view in views):
        counts[0] += math.floor(left)
    return counts
