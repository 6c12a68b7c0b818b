"""What is known of a value while ids are moved through a program."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.shrinking._ids import FIXED, Ids, Why
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.values import Location


class Constant(NamedTuple):
    """A multiplication by one number that the program holds.

    Attributes:
        at: where it stands.
        operand: which input is the number.
        factor: the number; of a division its reciprocal.
        divides: whether it is a division.
        rounding: to which relative error the number is known.
    """

    at: Location
    operand: int
    factor: float
    divides: bool
    rounding: float

    def equals(self, number: float) -> bool:
        """Whether it multiplies by this number."""
        return math.isclose(self.factor, number, rel_tol=self.rounding)


class Total(NamedTuple):
    """A sum: the ids of the axes that it runs over, and the operation."""

    over: tuple[Ids, ...]
    why: Why


class Contraction(NamedTuple):
    """A contraction, and the constants that it is multiplied by.

    Attributes:
        at: where it stands; () if it is any product with a weight.
        why: the operation.
        contracted: the ids of the axes that it sums over.
        sides: the constants by which its two inputs were multiplied since they were
            products themselves.
        after: those by which it is multiplied itself.
    """

    at: Location
    why: Why
    contracted: tuple[Ids, ...]
    sides: tuple[frozenset[Constant], ...]
    after: frozenset[Constant] = frozenset()


@dataclasses.dataclass(frozen=True)
class Labels:
    """The ids of a value's axes, and where its numbers speak of a count.

    Attributes:
        ids: for each axis one id a position.
        total: what the value is a sum of; None if it is none.
        number: the value itself, if it is one number that the program holds.
        past: the products that the value was made of by other operations, if they are
            followed.
        constant: whether it depends on no leaf and no argument. Such a value is
            computed whole; what meets it takes the part that it needs.
        arguments: the names of the arguments that it was made of, if of nothing else.
    """

    ids: tuple[Ids, ...]
    total: Total | None = None
    number: float | None = None
    past: tuple[Contraction, ...] = ()
    constant: bool = False
    arguments: frozenset[str] | None = None

    def with_past(self, past: tuple[Contraction, ...]) -> "Labels":
        """The same, made of these products."""
        return dataclasses.replace(self, past=past)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value in the traced program."""
        return tuple(map(len, self.ids))


def fixed_ids(size: int) -> Ids:
    """Ids of positions that cannot be removed."""
    return np.full(size, FIXED, np.int64)


def fixed_labels(atom: Any) -> Labels:
    """A value none of whose positions can be removed."""
    return Labels(tuple(map(fixed_ids, aval_shape(atom))))


def number_of(const: Any) -> float | None:
    """The value of a constant that is one number."""
    known = not isinstance(const, jax.core.Tracer) and np.ndim(const) == 0
    return float(const) if known and _is_number(jnp.result_type(const)) else None


def _is_number(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))
