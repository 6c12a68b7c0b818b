"""What is known of a value while ids are moved through a program."""

import dataclasses
from typing import Any

import numpy as np

from jcompress._jaxprs import aval_shape
from jcompress.shrinking._ids import FIXED, Ids


@dataclasses.dataclass(frozen=True)
class Labels:
    """The ids of a value's axes, and where its numbers speak of a count.

    Attributes:
        ids: for each axis one id a position.
        summed: the ids of the axes that the value is a sum over; None if it is none.
        number: the value itself, if it is one number that the program holds.
    """

    ids: tuple[Ids, ...]
    summed: tuple[Ids, ...] | None = None
    number: float | None = None

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


def literal_labels(atom: Any) -> Labels:
    """A constant that is written into the program."""
    number = None
    if np.ndim(atom.val) == 0 and np.asarray(atom.val).dtype.kind in "fiu":
        number = float(atom.val)
    return dataclasses.replace(fixed_labels(atom), number=number)
