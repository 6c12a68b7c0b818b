"""Whether the axes of some leaves can be rotated without changing the function."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.rescaling._rotation_parts import parted
from jcompress.rescaling._rotation_rules import RULES, other
from jcompress.rescaling._rotation_value import (
    CannotRotateError,
    Mark,
    Only,
    Rotation,
    Turned,
)
from jcompress.rescaling.known import Host
from jcompress.tracing.jaxprs import CUSTOM_GRADIENTS, Kind, aval_shape, kind_of
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Place
from jcompress.tracing.walk import Domain, Inside, walk


def rotation_of(
    traced: Traced,
    size: int,
    axes: Mapping[str, Sequence[int]],
    even: Mapping[str, Sequence[int]],
    parts: Mapping[str, Host],
) -> Rotation:
    """What a rotation of axes needs, after following them through the function.

    Args:
        traced: the function.
        size: the length of the vectors that are rotated, one or several to an axis.
        axes: by leaf the axes that are rotated.
        even: by leaf the axes along which all its entries are one number.
        parts: by leaf where its vectors are rotated, if not everywhere, as of `Only`.

    Raises:
        CannotRotateError: an operation does not commute with rotations; it says which.
    """
    walker = _Rotations(size)
    inputs = []
    for name, struct in traced.sites.leaves:
        marks = [Mark.PLAIN] * len(struct.shape)
        for axis in even.get(name, ()):
            marks[axis] = Mark.EVEN
        for axis in axes.get(name, ()):
            marks[axis] = Mark.ROTATED
        only = Only(parts[name]) if name in parts else None
        inputs.append(Turned(tuple(marks), only=only))
    data = [Turned((Mark.PLAIN,) * np.ndim(x)) for x in traced.data]
    for out in walk(traced.body, [*inputs, *data], walker):
        if out.touched:
            raise CannotRotateError("the function returns it")
    return walker.rotation


class _Rotations(Domain[Turned]):
    """Follows rotated axes through a program."""

    def __init__(self, size: int) -> None:
        self.rotation = Rotation(size)

    def constant(self, value: Any, aval: Any) -> Turned:
        """Numbers are even along every axis that they meet."""
        shape = tuple(np.shape(value))
        if shape or not jnp.issubdtype(aval.dtype, jnp.number):
            return Turned((Mark.PLAIN,) * len(shape))
        return Turned((), bool(np.asarray(value) == 0))

    def equation(
        self, eqn: Any, ins: list[Turned], place: Place, inside: Inside[Turned] | None
    ) -> list[Turned]:
        """What is known of the results."""
        kind = kind_of(eqn)
        name, scope = eqn.primitive.name, place.scope_of(eqn)
        rule = RULES.get(name, other)
        if inside is not None:
            own = kind is Kind.CUSTOM_GRADIENT and name not in CUSTOM_GRADIENTS
            if not own and kind is not Kind.SHARD_MAP:
                return inside(ins)
        try:
            outs = rule(self.rotation, eqn, ins)
            partial = any(value.only is not None for value in ins)
            return parted(eqn, ins, outs) if partial else outs
        except CannotRotateError as error:
            where = f" in {scope}" if scope else ""
            why = f" {error}" if str(error) else ""
            raise CannotRotateError(f"`{name}`{where} uses it{why}") from None

    def slices(self, eqn: Any, xs: list[Turned], place: Place) -> list[Turned]:
        """What one step sees; the axis of the steps is not rotated."""
        for x in xs:
            if x.marks[0] in (Mark.ROTATED, Mark.SQUARED):
                raise CannotRotateError("a loop takes its vectors apart")
            if x.only is not None and x.only.where.shape[0] > 1:
                raise CannotRotateError("a loop's steps rotate other parts")
        return [
            Turned(x.marks[1:], x.zero, x.only and Only(x.only.where[0])) for x in xs
        ]

    def stacked(
        self, eqn: Any, xs: list[Turned], ys: list[Turned], place: Place
    ) -> list[Turned]:
        """The results of all steps."""
        return [
            Turned((Mark.PLAIN, *y.marks), y.zero, y.only and Only(y.only.where[None]))
            for y in ys
        ]

    def join(self, eqn: Any, a: Turned, b: Turned, place: Place) -> Turned:
        """A rotated value, or 0, in every step and branch."""
        if a.only != b.only and not (a.zero or b.zero):
            raise CannotRotateError(
                f"`{eqn.primitive.name}` joins it with what is rotated elsewhere"
            )
        if a.marks == b.marks:
            return dataclasses.replace(a, zero=False) if a.zero and not b.zero else a
        if b.zero:
            return a
        if a.zero:
            return dataclasses.replace(b, zero=False)
        marks = []
        for one, two in zip(a.marks, b.marks, strict=True):
            if one is not two and {one, two} & {Mark.ROTATED, Mark.SQUARED}:
                raise CannotRotateError(
                    f"`{eqn.primitive.name}` joins it with what is not rotated"
                )
            marks.append(one if one is two else Mark.PLAIN)
        joined = Turned(tuple(marks), only=a.only)
        return a if joined == a else joined


def lengths_of(traced: Traced) -> set[int]:
    """The lengths of axes that products in a program meet."""
    found: set[int] = set()

    def visit(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                for atom in eqn.invars:
                    found.update(aval_shape(atom))
            for value in eqn.params.values():
                for one in value if isinstance(value, tuple) else (value,):
                    inner = getattr(one, "jaxpr", one)
                    if hasattr(inner, "eqns"):
                        visit(inner)

    visit(traced.body.jaxpr)
    return found
