"""Functions with gradient rules of their own, which shrink with the arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jcompress.shrinking._sized import Change, SizedEquation
from jcompress.tracing.interpreter import bind
from jcompress.tracing.jaxprs import Body, bodies


def _body(at: SizedEquation) -> Callable[..., list[Any]]:
    (body,) = bodies(at.eqn)

    def run(*values: Any) -> list[Any]:
        outs, _ = at.program.run(body, values, (*at.here, 0), {})
        return outs

    return run


def _floats(values: Sequence[Any]) -> list[int]:
    return [i for i, v in enumerate(values) if jnp.issubdtype(v.dtype, jnp.inexact)]


def _at(values: Sequence[Any], numbers: Sequence[int], new: Sequence[Any]) -> list[Any]:
    whole = list(values)
    for number, value in zip(numbers, new, strict=True):
        whole[number] = value
    return whole


def _custom_jvp(at: SizedEquation) -> Change:
    """The function's own rule, traced at its own sizes and shrunk as well."""
    floats = _floats([var.aval for var in at.eqn.invars])
    call = jax.custom_jvp(_body(at))

    def derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        # A rule may refuse inputs with respect to which nobody differentiates.
        numbers = [i for i in floats if not isinstance(tangents[i], SymbolicZero)]

        def rule(values: Sequence[Any], given: Sequence[Any]) -> Any:
            return jax.jvp(
                lambda *new: bind(at.eqn, _at(values, numbers, new)),
                [values[i] for i in numbers],
                list(given),
            )

        small = _again(at, rule, numbers)
        return small(list(primals), [tangents[i] for i in numbers])

    call.defjvp(derivative, symbolic_zeros=True)
    return list(call(*at.ins))


def _custom_vjp(at: SizedEquation) -> Change:
    floats = _floats([var.aval for var in at.eqn.invars])
    outs = _floats([var.aval for var in at.eqn.outvars])
    call = jax.custom_vjp(_body(at))

    def forward(*primals: Any) -> Any:
        values = [primal.value for primal in primals]
        # A tree without arrays: () where somebody differentiates, None elsewhere.
        wanted = tuple(() if primal.perturbed else None for primal in primals)
        return call(*values), (values, wanted)

    def backward(kept: Any, cotangents: Any) -> Any:
        values, wanted = kept
        numbers = [i for i in floats if wanted[i] is not None]

        def rule(values: Sequence[Any], given: Sequence[Any]) -> Any:
            def of_floats(*new: Any) -> list[Any]:
                results = bind(at.eqn, _at(values, numbers, new))
                return [results[i] for i in outs]

            _, back = jax.vjp(of_floats, *(values[i] for i in numbers))
            return list(back(list(given)))

        small = _again(at, rule, outs, of_results=True)
        found = small(list(values), [_array(cotangents[i]) for i in outs])
        return tuple(_at([None] * len(values), numbers, found))

    call.defvjp(forward, backward, symbolic_zeros=True)
    return list(call(*at.ins))


def _array(cotangent: Any) -> Any:
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


def _again(
    at: SizedEquation, rule: Any, numbers: list[int], of_results: bool = False
) -> Callable[..., Any]:
    """A gradient rule, traced at the sizes of the trace, on the arrays there are."""
    atoms = at.eqn.outvars if of_results else at.eqn.invars
    keeps = at.after if of_results else at.before

    def dense(atom: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)

    closed, shape = jax.make_jaxpr(rule, return_shape=True)(
        [dense(atom) for atom in at.eqn.invars], [dense(atoms[i]) for i in numbers]
    )
    body = Body.of(closed)
    change, _ = at.resizer(body, [*at.before, *(keeps[i] for i in numbers)])
    program = dataclasses.replace(at.program, resizing=change, handlers={})

    def run(values: list[Any], others: list[Any]) -> Any:
        outs, _ = program.run(body, [*values, *others], (), {})
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return run


GRADIENTS: dict[str, Callable[[SizedEquation], Change]] = {
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
}
"""The operations with gradient rules, by the name of the primitive."""
