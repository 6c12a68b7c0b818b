"""Sizes that `jax.export` leaves open: numbers stand in for them."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jax import export

_STANDS_IN = 60
"""For every open size: what is often divided by divides it, and ids of it are few."""

_FUNCTIONS: Mapping[str, Any] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
}


def size_of(size: Any) -> int:
    """A size, or the number that stands in for it."""
    if isinstance(size, int):
        return size
    if not export.is_symbolic_dim(size):
        return int(size)
    text = str(size)
    names = set(re.findall(r"[A-Za-z_]\w*", text)) - set(_FUNCTIONS)
    known = dict.fromkeys(names, _STANDS_IN)
    # How an expression of sizes prints is how `jax.export` reads it.
    found = int(eval(text, {"__builtins__": {}, **_FUNCTIONS, **known}))
    return max(found, 0)


def sizes_of(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape of numbers."""
    return tuple(map(size_of, shape))


@dataclasses.dataclass(frozen=True)
class _Aval:
    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class _Atom:
    aval: Any


@dataclasses.dataclass(frozen=True)
class _Equation:
    primitive: Any
    params: Mapping[str, Any]
    invars: Sequence[_Atom]
    outvars: Sequence[_Atom]
    effects: Any
    source_info: Any


def concrete(eqn: Any) -> Any:
    """An equation all of whose sizes are numbers; itself, if they are."""
    shapes = [getattr(v.aval, "shape", ()) for v in (*eqn.invars, *eqn.outvars)]
    if all(isinstance(size, int) for shape in shapes for size in shape):
        return eqn
    return _Equation(
        eqn.primitive,
        {name: _numbers(value) for name, value in eqn.params.items()},
        [_Atom(_aval(atom.aval)) for atom in eqn.invars],
        [_Atom(_aval(atom.aval)) for atom in eqn.outvars],
        eqn.effects,
        eqn.source_info,
    )


def _aval(aval: Any) -> Any:
    if not hasattr(aval, "shape"):
        return aval
    return _Aval(sizes_of(aval.shape), aval.dtype)


def _numbers(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(_numbers, value))
    return size_of(value) if export.is_symbolic_dim(value) else value
