"""Calls of compiled functions within a program, written out in their place.

`jnp.where`, `jax.nn.gelu` and many others are calls within a traced program. Whoever
looks for patterns of several equations needs them all in one program; XLA writes them
out, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from jcompress.tracing.jaxprs import Body, Kind, bodies, is_literal, kind_of

_HELD = ("jaxpr", "branches", "cond_jaxpr", "body_jaxpr", "call_jaxpr", "fun_jaxpr")
"""The parameters by which equations hold programs."""


def inlined(program: Any) -> Any:
    """A traced program in which calls are written out, also within loops and branches.

    A call stays if it places its arrays on devices or has compiler options of its own.
    Functions with gradient rules of their own stay, too.

    Args:
        program: an open or a closed jaxpr.

    Returns:
        A program of the same kind, with the same inputs and results.
    """
    body = Body.of(program)
    known: dict[Any, Any] = {}
    eqns = _written_out(body.jaxpr.eqns, known, _same_source)
    outvars = [_of(atom, known) for atom in body.jaxpr.outvars]
    changed = body.jaxpr.replace(eqns=eqns, outvars=outvars)
    if program is body.jaxpr:
        return changed
    return program.replace(jaxpr=changed)


def _written_out(
    eqns: Sequence[Any], known: dict[Any, Any], source: Callable[[Any], Any]
) -> list[Any]:
    """Equations in terms of the program around them.

    Args:
        eqns: the equations.
        known: what their variables are called there; gains their results.
        source: where an equation comes from, as the program around says it.
    """
    made: list[Any] = []
    for eqn in eqns:
        ins = [_of(atom, known) for atom in eqn.invars]
        if _opens(eqn):
            (body,) = bodies(eqn)
            inner = dict(zip(body.jaxpr.invars, ins, strict=True))
            made += _written_out(body.jaxpr.eqns, inner, _within(eqn, source))
            for var, atom in zip(eqn.outvars, body.jaxpr.outvars, strict=True):
                known[var] = _of(atom, inner)
            continue
        outs = [_fresh(var, known) for var in eqn.outvars]
        params = _params(eqn)
        made.append(
            eqn.replace(
                invars=ins, outvars=outs, params=params, source_info=source(eqn)
            )
        )
    return made


def _of(atom: Any, known: dict[Any, Any]) -> Any:
    return atom if is_literal(atom) else known.get(atom, atom)


def _fresh(var: Any, known: dict[Any, Any]) -> Any:
    if type(var).__name__ == "DropVar":
        return var
    # A function that is called twice names its variables alike both times.
    known[var] = jex.Var(var.aval)
    return known[var]


def _opens(eqn: Any) -> bool:
    kind = kind_of(eqn)
    if kind is Kind.INLINE:
        return not bodies(eqn)[0].consts
    if kind is not Kind.CALL or bodies(eqn)[0].consts:
        return False
    params = eqn.params
    placed = (*params["in_shardings"], *params["out_shardings"])
    if any(isinstance(one, jax.sharding.Sharding) for one in placed):
        return False
    layouts = (*params["in_layouts"], *params["out_layouts"])
    return not params["compiler_options_kvs"] and all(one is None for one in layouts)


def _params(eqn: Any) -> dict[str, Any]:
    """An equation's parameters, the programs among them with calls written out."""
    if kind_of(eqn) not in (Kind.SCAN, Kind.WHILE, Kind.COND, Kind.REMAT):
        return dict(eqn.params)
    return {
        name: _held(value) if name in _HELD else value
        for name, value in eqn.params.items()
    }


def _held(value: Any) -> Any:
    return tuple(map(inlined, value)) if isinstance(value, tuple) else inlined(value)


def _same_source(eqn: Any) -> Any:
    return eqn.source_info


def _within(call: Any, source: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Sources of equations within a call, with the call's scopes before their own."""
    before = source(call).name_stack

    def of(eqn: Any) -> Any:
        found = eqn.source_info
        return found.replace(name_stack=before + found.name_stack)

    return of
