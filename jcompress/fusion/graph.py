"""Where the values of a program come from and go to."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from jcompress.tracing.interpreter import bind
from jcompress.tracing.jaxprs import (
    Body,
    Kind,
    aval_shape,
    bodies,
    is_literal,
    kind_of,
)
from jcompress.tracing.uses import elementwise

_MOVES = frozenset({"copy", "stop_gradient"})
"""Operations that hand on what they get."""
_AROUND_LARGEST = frozenset(
    {"stop_gradient", "broadcast_in_dim", "reshape", "transpose", "max", "copy"}
)
"""What may lie between the largest numbers of rows and where they are used."""
_NN = ("jax", "_src", "nn")
"""Where functions stand whose own rules give the derivative that they have."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """The values of a program.

    Attributes:
        body: the program.
        makers: the number of the equation that makes a value.
        users: the numbers of the equations that take it, one for each time.
        results: the values that the program returns.
    """

    body: Body
    makers: dict[Any, int]
    users: dict[Any, list[int]]
    results: frozenset[Any]

    @classmethod
    def of(cls, body: Body) -> "Graph":
        """Read a program."""
        makers: dict[Any, int] = {}
        users: dict[Any, list[int]] = {}
        for number, eqn in enumerate(body.jaxpr.eqns):
            for atom in eqn.invars:
                if not is_literal(atom):
                    users.setdefault(atom, []).append(number)
            makers.update(dict.fromkeys(eqn.outvars, number))
        outvars = body.jaxpr.outvars
        results = frozenset(atom for atom in outvars if not is_literal(atom))
        return cls(body, makers, users, results)

    def maker(self, atom: Any) -> Any:
        """The equation that makes a value; None for inputs and constants."""
        if is_literal(atom):
            return None
        number = self.makers.get(atom)
        return None if number is None else self.body.jaxpr.eqns[number]

    def only_user(self, var: Any) -> Any:
        """The equation that takes a value, if it is the one place that does."""
        users = self.users.get(var, [])
        if var in self.results or len(users) != 1:
            return None
        return self.body.jaxpr.eqns[users[0]]

    def between(self, start: Collection[Any], end: Any, most: int) -> list[int] | None:
        """The equations that lead from some values to another, in their order.

        Args:
            start: where the way back from the other one stops.
            end: the other one.
            most: so many equations at most.

        Returns:
            Their numbers; None if the way back meets an input of the program, or is
            longer.
        """
        found: set[int] = set()
        waiting = [end]
        while waiting:
            atom = waiting.pop()
            if is_literal(atom) or atom in start:
                continue
            number = self.makers.get(atom)
            if number is None:
                return None
            if number in found:
                continue
            found.add(number)
            if len(found) > most:
                return None
            waiting += self.body.jaxpr.eqns[number].invars
        return sorted(found)

    def closed(self, equations: Collection[int], kept: Collection[Any]) -> bool:
        """Whether nothing else takes what equations make, but some values.

        What is made of constants alone does not count: it can be made twice.
        """
        for number in equations:
            eqn = self.body.jaxpr.eqns[number]
            if all(map(is_literal, eqn.invars)):
                continue
            for var in eqn.outvars:
                if var in kept:
                    continue
                users = self.users.get(var, [])
                if var in self.results or any(u not in equations for u in users):
                    return False
        return True

    def differentiates(self, equations: Collection[int]) -> bool:
        """Whether the derivative of equations is that of the function they compute.

        It is not where a function has a rule of its own, as straight-through estimators
        do, or where a gradient is stopped; but a softmax may stop that of its largest
        input, on which it does not depend.
        """
        for number in equations:
            eqn = self.body.jaxpr.eqns[number]
            if kind_of(eqn) is Kind.CUSTOM_GRADIENT and not _of_jax(eqn):
                return False
            if eqn.primitive.name == "stop_gradient" and not self._largest(eqn):
                return False
        return True

    def _largest(self, eqn: Any) -> bool:
        """Whether an equation takes the largest numbers of something."""
        while eqn is not None and eqn.primitive.name != "reduce_max":
            if eqn.primitive.name not in _AROUND_LARGEST:
                return False
            made = [atom for atom in eqn.invars if not is_literal(atom)]
            eqn = self.maker(made[0]) if len(made) == 1 else None
        return eqn is not None

    def depends(self, value: Any, var: Any) -> bool:
        """Whether a value is made from another one, or is that one."""
        first = self.makers.get(var, -1)
        waiting, seen = [value], set[int]()
        while waiting:
            atom = waiting.pop()
            if is_literal(atom):
                continue
            if atom is var:
                return True
            number = self.makers.get(atom, -1)
            # Equations take what those before them make: further back it is not met.
            if number > first and number not in seen:
                seen.add(number)
                waiting += self.body.jaxpr.eqns[number].invars
        return False

    def constant(self, atom: Any) -> float | None:
        """The number that is in every place of a value; None if it is not known."""
        if is_literal(atom):
            return float(atom.val) if np.ndim(atom.val) == 0 else None
        eqn = self.maker(atom)
        if eqn is None:
            return None
        name = eqn.primitive.name
        if name in ("broadcast_in_dim", "convert_element_type", "reshape", *_MOVES):
            return self.constant(eqn.invars[0])
        if name == "sqrt":
            inner = self.constant(eqn.invars[0])
            return None if inner is None else float(np.sqrt(np.float32(inner)))
        return None

    def fixed_axes(self, atom: Any) -> frozenset[int]:
        """The axes of a value along which its numbers are surely the same."""
        shape = aval_shape(atom)
        every = frozenset(range(len(shape)))
        ones = frozenset(d for d in every if shape[d] == 1)
        eqn = self.maker(atom)
        if is_literal(atom):
            return every
        if eqn is None:
            return ones
        name = eqn.primitive.name
        if name == "broadcast_in_dim":
            places = [int(d) for d in eqn.params["broadcast_dimensions"]]
            inner = self.fixed_axes(eqn.invars[0])
            vary = {d for i, d in enumerate(places) if i not in inner}
            return every - vary
        if name == "transpose":
            inner = self.fixed_axes(eqn.invars[0])
            order = eqn.params["permutation"]
            return frozenset(d for d in every if order[d] in inner)
        if name == "iota":
            return every - {eqn.params["dimension"]}
        if elementwise(eqn) or name in ("convert_element_type", *_MOVES):
            fixed = every
            for one in eqn.invars:
                if len(aval_shape(one)) == len(shape):
                    fixed &= self.fixed_axes(one)
            return fixed
        return ones

    def original(
        self, equations: Sequence[int], inputs: Sequence[Any], results: Sequence[Any]
    ) -> Callable[..., list[Any]]:
        """The function that equations compute.

        Args:
            equations: their numbers, in order.
            inputs: the values that they take, the function's arguments.
            results: the values that it returns.
        """
        eqns = [self.body.jaxpr.eqns[number] for number in equations]

        def run(*values: Any) -> list[Any]:
            known = {
                atom: value
                for atom, value in zip(inputs, values, strict=True)
                if not is_literal(atom)
            }

            def of(atom: Any) -> Any:
                return atom.val if is_literal(atom) else known[atom]

            for eqn in eqns:
                with eqn.ctx.manager:
                    outs = bind(eqn, [of(atom) for atom in eqn.invars])
                known.update(zip(eqn.outvars, outs, strict=True))
            return [of(atom) for atom in results]

        return run


def _of_jax(eqn: Any) -> bool:
    """Whether an equation is a function of `jax.nn`, by where that was defined."""
    (body,) = bodies(eqn)
    source = getattr(body.jaxpr.debug_info, "func_src_info", None) or ""
    parts = pathlib.PurePath(source.partition(" at ")[2]).parts
    return any(parts[i : i + len(_NN)] == _NN for i in range(len(parts)))


def floats(*atoms: Any) -> bool:
    """Whether all values are float32."""
    return all(atom.aval.dtype == np.float32 for atom in atoms)
