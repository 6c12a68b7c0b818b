"""What is known of a value when axes of leaves are rotated."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jcompress.rescaling.known import Host
from jcompress.tracing.jaxprs import aval_shape


class Mark(enum.Enum):
    """What is known of a value along one axis."""

    PLAIN = "plain"
    EVEN = "even"
    """The same at each position."""
    ROTATED = "rotated"
    """A vector that is rotated; along a longer axis run after run."""
    SQUARED = "squared"
    """Products of two rotated vectors, whose sum is what it was."""


P, E, R, S = Mark.PLAIN, Mark.EVEN, Mark.ROTATED, Mark.SQUARED


@dataclasses.dataclass(frozen=True, eq=False)
class Only:
    """At which positions of a value its vectors are rotated.

    Attributes:
        where: bool, of the value's rank, with 1 along axes on which it does not depend.
    """

    where: Host

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Only) and np.array_equal(self.where, other.where)

    def __hash__(self) -> int:
        return hash((self.where.shape, self.where.tobytes()))


@dataclasses.dataclass(frozen=True)
class Turned:
    """A value.

    Attributes:
        marks: what is known along each axis.
        zero: whether it is 0 everywhere.
        only: where it is rotated, if not everywhere.
    """

    marks: tuple[Mark, ...]
    zero: bool = False
    only: Only | None = None

    @property
    def touched(self) -> bool:
        """Whether an axis is rotated."""
        return any(mark in (R, S) for mark in self.marks)


class CannotRotateError(Exception):
    """What stands in the way of a rotation."""


class Rotation:
    """What the rotation of one set of axes needs.

    Attributes:
        size: the length of the vectors that are rotated.
        keeps_ones: whether the rotation must leave a vector of ones as it is.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.keeps_ones = False


Rule = Callable[[Rotation, Any, list[Turned]], list[Turned]]
"""Makes what is known of an equation's results of what is known of its inputs."""


def refused(why: str = "") -> CannotRotateError:
    """The error of an operation that does not commute with rotations."""
    return CannotRotateError(why)


def valued(marks: Sequence[Mark], zero: bool = False) -> list[Turned]:
    """The one result of an operation."""
    return [Turned(tuple(marks), zero)]


def aligned(eqn: Any, ins: Sequence[Turned]) -> list[tuple[Mark, ...]]:
    """The marks of the inputs of an element-wise operation; numbers are even."""
    rank = len(aval_shape(eqn.outvars[0]))
    return [v.marks if len(v.marks) == rank else (E,) * rank for v in ins]


def uneven(value: Turned, axes: Sequence[int]) -> Turned:
    """A value that is not the same everywhere along some axes any more."""
    marks = [
        P if axis in axes and mark is E else mark
        for axis, mark in enumerate(value.marks)
    ]
    return Turned(tuple(marks), value.zero)
