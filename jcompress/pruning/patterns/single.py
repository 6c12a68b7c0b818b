"""Single weights."""

import dataclasses
import math
from typing import Any

from jcompress.errors import MismatchError
from jcompress.pruning.patterns.base import Pattern
from jcompress.tensors.axes import Axes


@dataclasses.dataclass(frozen=True)
class Unstructured(Pattern):
    """Single weights, ranked over the whole leaf, stacked copies included.

    Any entry may go, so a stacked leaf needs no equal share for each copy, and layers
    that matter less give more, as Han et al. 2015 (section 3) find for whole networks.
    """

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the leaf has fewer than two entries."""
        if math.prod(shape) < 2:
            raise MismatchError(
                f"{path!r} of shape {shape} has a single entry, which must stay; "
                f"put the rule ({path!r}, None) before"
            )

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row of all entries, in the order of the leaf."""
        return scores.reshape(1, scores.size)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row of all entries."""
        return 1, math.prod(shape)

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """The row in the leaf's shape."""
        return keep.reshape(shape)
