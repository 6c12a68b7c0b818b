"""What operations do to the factors of their inputs, and what they forbid."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jcompress.rescaling._scale_moves import MOVES, joined, padded, split
from jcompress.rescaling._scale_products import convolution, dot, ragged_dot
from jcompress.rescaling._scale_value import Scale, free
from jcompress.rescaling._unknowns import Why
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.views import SAME

if TYPE_CHECKING:
    from jcompress.rescaling._scale_walk import Scales

Rule = Callable[["Scales", Any, list[Scale], Why], list[Scale]]
"""Makes the factors of an equation's results of those of its inputs."""


def unknown(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    """The rule of an operation that no factor passes."""
    for value in ins:
        c.vanish(value, why)
    constant = all(value.constant for value in ins)
    origin = "a constant" if constant else str(why)
    return [Scale(origin=origin, constant=constant) for _ in eqn.outvars]


def _moved(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    made = []
    for term in ins[0].terms:
        moved = MOVES[eqn.primitive.name](eqn, term, c.lead(term, eqn.invars[0]))
        if moved is None:
            return unknown(c, eqn, ins, why)
        made.append(moved)
    return [ins[0].having(made)]


def _same(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    if len(ins) != len(eqn.outvars):
        return unknown(c, eqn, ins, why)
    # What makes integers of floats rounds them.
    return [
        unknown(c, eqn, [value], why)[0]
        if value.terms and not jnp.issubdtype(out.aval.dtype, jnp.inexact)
        else value
        for value, out in zip(ins, eqn.outvars, strict=True)
    ]


def _power(count: Callable[[Any], float | None]) -> Rule:
    def rule(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
        number = count(eqn)
        if number is None:
            return unknown(c, eqn, ins, why)
        terms = [term.times(number) for term in ins[0].terms] if number else []
        kept = ins[0].free and number > 0
        return [Scale(tuple(terms), kept, ins[0].origin, ins[0].constant)]

    return rule


def _multiplied(sign: int) -> Rule:
    def rule(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
        a, b = ins = c.ranked(eqn, ins)
        if sign > 0 and (free(a) or free(b)):
            return [Scale((), True, "a constant", a.constant and b.constant)]
        terms = (*a.terms, *(term.times(sign) for term in b.terms))
        return [c.combined(terms, ins, free=sign < 0 and a.free)]

    return rule


def _alike(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    """The inputs have one factor, and so has the result."""
    return [c.alike(c.ranked(eqn, ins), why)]


def _select(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    return [c.alike(c.ranked(eqn, ins)[1:], why)]


def _compared(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    c.alike(c.ranked(eqn, ins), why)
    return [Scale(origin=str(why), constant=all(v.constant for v in ins))]


def _reduced(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    axes = tuple(eqn.params["axes"])
    made = []
    for value, atom in zip(ins, eqn.invars, strict=True):
        even = c.even(value, atom, axes, why)
        terms = []
        for term in even.terms:
            lead = c.lead(term, atom)
            terms.append(term.squeeze(*(lead + axis for axis in axes)))
        made.append(even.having(terms))
    if eqn.primitive.name.startswith("arg"):
        return [Scale(origin=str(why), constant=made[0].constant)]
    return made[:1] * len(eqn.outvars)


def _along(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    axis = eqn.params.get("axis", eqn.params.get("dimension"))
    rank = len(aval_shape(eqn.invars[0]))
    made = [
        c.even(value, atom, (axis % rank,), why)
        for value, atom in zip(ins, eqn.invars, strict=True)
    ]
    return made if len(made) == len(eqn.outvars) else unknown(c, eqn, ins, why)


def _top_k(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    rank = len(aval_shape(eqn.invars[0]))
    axis = eqn.params.get("axis", rank - 1) % rank
    return [c.even(ins[0], eqn.invars[0], (axis,), why), Scale(origin=str(why))]


def _window(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    sizes = eqn.params["window_dimensions"]
    strides = eqn.params["window_strides"]
    before, after = (aval_shape(v) for v in (eqn.invars[0], eqn.outvars[0]))
    axes = tuple(
        d
        for d, moves in enumerate(zip(sizes, strides, strict=True))
        if moves != (1, 1) or before[d] != after[d]
    )
    return [c.even(ins[0], eqn.invars[0], axes, why)]


def _split(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    parts = [split(eqn, term, c.lead(term, eqn.invars[0])) for term in ins[0].terms]
    return [
        ins[0].having([part[number] for part in parts])
        for number in range(len(eqn.outvars))
    ]


def _concatenate(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    if not any(value.terms for value in ins):
        return [c.combined((), ins, free=all(v.free for v in ins))]
    axis = eqn.params["dimension"]
    first = next(v for v in zip(ins, eqn.invars, strict=True) if v[0].terms)
    lead = c.lead(first[0].terms[0], first[1])
    sizes = [aval_shape(atom)[axis] for atom in eqn.invars]
    slots = itertools.zip_longest(*(value.terms for value in ins))
    terms = [joined(parts, sizes, lead + axis) for parts in slots]
    return [c.combined(terms, ins)]


def _pad(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    value, filling = ins
    c.vanish(filling, why)
    if not free(filling):
        c.vanish(value, why)
        return [c.combined((), ins)]
    terms = [padded(eqn, term, c.lead(term, eqn.invars[0])) for term in value.terms]
    return [value.having(terms)]


def _gather(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    numbers = eqn.params["dimension_numbers"]
    atom = eqn.invars[0]
    sizes = eqn.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    picked = tuple(
        d for d, n in enumerate(aval_shape(atom)) if sizes[d] != n or d in gone
    )
    value = c.even(ins[0], atom, picked, why)
    c.vanish(ins[1], why)
    rank = len(aval_shape(eqn.outvars[0]))
    left = [d for d in range(len(sizes)) if d not in gone]
    terms = []
    for term in value.terms:
        lead = c.lead(term, atom)
        shape = [*term.ids.shape[:lead], *[1] * rank]
        for place, axis in zip(numbers.offset_dims, left, strict=True):
            shape[lead + place] = term.ids.shape[lead + axis]
        terms.append(term.reshape(*shape))
    return [c.combined(terms, ins[:1], free=value.free)]


def _dynamic_slice(c: "Scales", eqn: Any, ins: list[Scale], why: Why) -> list[Scale]:
    atom, sizes = eqn.invars[0], eqn.params["slice_sizes"]
    axes = tuple(d for d, n in enumerate(aval_shape(atom)) if sizes[d] != n)
    for value in ins[1:]:
        c.vanish(value, why)
    return [c.even(ins[0], atom, axes, why)]


def _dynamic_update_slice(
    c: "Scales", eqn: Any, ins: list[Scale], why: Why
) -> list[Scale]:
    whole, part = aval_shape(eqn.invars[0]), aval_shape(eqn.invars[1])
    axes = tuple(d for d, (n, m) in enumerate(zip(whole, part, strict=True)) if n != m)
    pairs = zip(ins[:2], eqn.invars[:2], strict=True)
    made = [c.even(value, atom, axes, why) for value, atom in pairs]
    for value in ins[2:]:
        c.vanish(value, why)
    return [c.alike(made, why)]


def _step(eqn: Any) -> float | None:
    exponent = eqn.params.get("y")
    return float(exponent) if exponent is not None else None


_REDUCTIONS = ("sum", "max", "min", "and", "or", "xor")

RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVES, _moved),
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(("neg", "abs", "real", "imag", "conj"), _power(lambda _: 1.0)),
    **dict.fromkeys(("sign", "is_finite"), _power(lambda _: 0.0)),
    "sqrt": _power(lambda _: 0.5),
    "rsqrt": _power(lambda _: -0.5),
    "cbrt": _power(lambda _: 1 / 3),
    "square": _power(lambda _: 2.0),
    "integer_pow": _power(_step),
    "mul": _multiplied(1),
    "div": _multiplied(-1),
    **dict.fromkeys(("add", "add_any", "sub", "max", "min", "clamp"), _alike),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compared),
    "select_n": _select,
    **{f"reduce_{name}": _reduced for name in _REDUCTIONS},
    **dict.fromkeys(("argmax", "argmin"), _reduced),
    **dict.fromkeys(("cumsum", "cummax", "cummin", "sort"), _along),
    "top_k": _top_k,
    **{f"reduce_window_{name}": _window for name in ("sum", "max", "min")},
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "dot_general": dot,
    "conv_general_dilated": convolution,
    "ragged_dot_general": ragged_dot,
}
"""The operations that a factor may pass, by the name of the primitive."""
