"""What kind of nested program an equation holds, read alike in every supported JAX."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex


class Kind(enum.Enum):
    """How an equation runs the programs that it holds."""

    LEAF = "leaf"
    """It holds none, or none that can be followed."""
    CALL = "call"
    """Once, as a compiled function of its own."""
    INLINE = "inline"
    """Once, as if it stood in the program around it."""
    REMAT = "remat"
    """Once, and again in the backward pass."""
    SCAN = "scan"
    WHILE = "while"
    COND = "cond"
    SHARD_MAP = "shard_map"
    CUSTOM_GRADIENT = "custom gradient"
    """Once, with a gradient rule of its own: can be looked into, not rewritten."""


_KINDS = {
    "jit": Kind.CALL,
    "pjit": Kind.CALL,
    "closed_call": Kind.INLINE,
    "core_call": Kind.INLINE,
    "call": Kind.INLINE,
    "remat": Kind.REMAT,
    "remat2": Kind.REMAT,
    "checkpoint": Kind.REMAT,
    "scan": Kind.SCAN,
    "while": Kind.WHILE,
    "cond": Kind.COND,
    "shard_map": Kind.SHARD_MAP,
}

CUSTOM_GRADIENTS = frozenset({"custom_jvp_call", "custom_vjp_call"})
"""Those of the operations with custom gradients whose rules are functions, too."""


@dataclasses.dataclass(frozen=True)
class Body:
    """A nested program: its equations' container and the constants bound to it."""

    jaxpr: Any
    consts: tuple[Any, ...]

    @classmethod
    def of(cls, jaxpr: Any) -> "Body":
        """Read an open or a closed jaxpr; newer JAX knows only one class of both."""
        return cls(getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ())))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def kind_of(eqn: Any) -> Kind:
    """How an equation runs what it holds."""
    known = _KINDS.get(eqn.primitive.name)
    if known is not None:
        return known
    held = [value for value in eqn.params.values() if _is_program(value)]
    if len(held) == 1:
        inner = Body.of(held[0]).jaxpr
        same_inputs = len(inner.invars) == len(eqn.invars)
        if same_inputs and len(inner.outvars) == len(eqn.outvars):
            return Kind.CUSTOM_GRADIENT
    return Kind.LEAF


def bodies(eqn: Any) -> tuple[Body, ...]:
    """The programs an equation holds; of a `while`, the condition and the body."""
    match kind_of(eqn):
        case Kind.LEAF:
            return ()
        case Kind.COND:
            return tuple(Body.of(branch) for branch in eqn.params["branches"])
        case Kind.WHILE:
            keys = ("cond_jaxpr", "body_jaxpr")
            return tuple(Body.of(eqn.params[key]) for key in keys)
    return (Body.of(next(v for v in eqn.params.values() if _is_program(v))),)


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Number of constants and of carried values among the inputs of a `scan`.

    Told from the shapes: a carried result has the shape that one step gives it, a
    collected one has one axis more; likewise for what is scanned over.
    """
    (body,) = bodies(eqn)
    outs = zip(eqn.outvars, body.jaxpr.outvars, strict=True)
    carried = sum(out.aval.ndim == step.aval.ndim for out, step in outs)
    ins = zip(eqn.invars, body.jaxpr.invars, strict=True)
    scanned = sum(given.aval.ndim != step.aval.ndim for given, step in ins)
    return len(eqn.invars) - carried - scanned, carried


def split(values: Sequence[Any], *sizes: int) -> list[list[Any]]:
    """Cut a sequence after the given sizes; the rest is the last piece."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(list(values[start : start + size]))
        start += size
    return [*pieces, list(values[start:])]


def is_literal(atom: Any) -> bool:
    """Whether an equation's input is a constant written into the program."""
    return isinstance(atom, jex.Literal)


def aval_shape(atom: Any) -> tuple[int, ...]:
    """Shape of an equation's input or output; of a token, ()."""
    return tuple(getattr(atom.aval, "shape", ()))
