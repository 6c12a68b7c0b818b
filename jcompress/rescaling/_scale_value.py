"""By what a value may be multiplied: a sum of terms, or what has none."""

import dataclasses
from collections.abc import Sequence

from jcompress.rescaling._unknowns import Term


@dataclasses.dataclass(frozen=True)
class Scale:
    """The logarithm of the factor of a value.

    Attributes:
        terms: its summands; without any the value keeps its scale.
        free: the value is 0 or infinite everywhere, so that every factor leaves it.
        origin: where a value without terms comes from, in words.
        constant: it depends on no leaf and no argument.
    """

    terms: tuple[Term, ...] = ()
    free: bool = False
    origin: str = ""
    constant: bool = False

    def having(self, terms: Sequence[Term]) -> "Scale":
        """The same with other terms."""
        return dataclasses.replace(self, terms=tuple(terms))


def free(value: Scale) -> bool:
    """Whether every factor leaves the value as it is."""
    return value.free and not value.terms
