"""How scales and numbers of a weight are chosen: frozen specs that formats carry."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest:
    """Every weight is rounded to the nearest number, whatever the others are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq:
    """Inputs are rounded one after the other, the rest making up for the errors.

    It needs the second moments of the inputs, `quantize(..., moments=...)`, and lowers
    the error of the layer's outputs on data like theirs, not that of its weights.
    Scales are those of the weights as they were given.

    Attributes:
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more trusts the data less.
        by_importance: whether inputs go in the order of their second moments, the
            largest first ("act-order"), rather than in their own.

    Raises:
        ValueError: `damping` is not above 0 and finite.

    References:
        Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
        Pre-trained Transformers", algorithm 1.
    """

    damping: float = 0.01
    by_importance: bool = True

    def __post_init__(self) -> None:
        number = isinstance(self.damping, int | float) and math.isfinite(self.damping)
        if not number or self.damping <= 0:
            raise ValueError(f"Gptq: damping is above 0, not {self.damping!r}")


WeightRange = FullRange | LeastError
"""How the range of weights that share a scale is chosen."""
Rounding = Nearest | Gptq
"""How weights are rounded to the numbers of a format."""
