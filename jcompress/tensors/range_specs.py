"""How the scale of a weight is chosen: frozen specs that `Weights` carries."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullRange:
    """A scale covers the smallest and the largest of the weights that share it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastError:
    """A scale makes the least squared error; large weights are clipped if that helps.

    Of the full range the fractions from 1 down to `least` are tried, evenly spaced.
    With the second moments of the inputs (`quantize(..., moments=...)`) the error of
    each weight counts by the mean square of what it is multiplied with, which is the
    importance matrix of llama.cpp; without them all count alike.

    Attributes:
        least: the smallest fraction of the range, in (0, 1).
        steps: how many fractions are tried, at least 2.

    Raises:
        ValueError: a field is out of range.
    """

    least: float = 0.25
    steps: int = 40

    def __post_init__(self) -> None:
        number = isinstance(self.least, int | float) and math.isfinite(self.least)
        if not number or not 0 < self.least < 1:
            raise ValueError(
                f"LeastError: least is between 0 and 1, not {self.least!r}"
            )
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        if not whole or self.steps < 2:
            raise ValueError(
                f"LeastError: steps is an int of 2 or more, not {self.steps!r}"
            )


WeightRange = FullRange | LeastError
"""How the range of weights that share a scale is chosen."""
