"""One leaf in one form, and how its error is told."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jcompress.errors import MismatchError
from jcompress.sites import Sites


@dataclasses.dataclass(frozen=True)
class Trial:
    """One leaf in one form, or one group of axes with fewer units.

    Attributes:
        path: the name of the leaf or group.
        leaf: as it is; None for a group.
        small: as the form gives it back, of the leaf's shape and dtype; None for a
            group.
        changed: all the leaves that change, by name: of a group several, with zeros in
            the place of units.
    """

    path: str
    leaf: jax.Array | None
    small: jax.Array | None
    changed: Mapping[str, jax.Array]

    def single(self, measure: str) -> tuple[jax.Array, jax.Array]:
        """The leaf before and after.

        Raises:
            MismatchError: it is a group.
        """
        if self.leaf is None or self.small is None:
            raise MismatchError(
                f"{measure} tells errors of single leaves, not of widths "
                f"({self.path}); use OutputError"
            )
        return self.leaf, self.small


class Measure(abc.ABC):
    """How the error of one leaf in one form is told.

    To add one, subclass this as a frozen dataclass and write `each`.
    """

    @abc.abstractmethod
    def each(
        self, params: Any, trials: Iterator[Trial], sites: Sites
    ) -> Iterator[float]:
        """The error of each trial, in their order.

        Args:
            params: the tree of dense weights.
            trials: leaf after leaf, and for each form after form; each is made when it
                is asked for.
            sites: the sites of the function.
        """

    def together(self, params: Any, changed: Mapping[str, jax.Array]) -> float | None:
        """The error of several changed leaves at once.

        Args:
            params: the tree of dense weights.
            changed: the leaves as their forms give them back, by name.

        Returns:
            The error, or None if the measure tells that of single leaves only.
        """
        return None

    @property
    def name(self) -> str:
        """What it measures, in a few words."""
        return type(self).__name__
