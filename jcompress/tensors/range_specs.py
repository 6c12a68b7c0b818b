"""How scales are chosen: frozen specs that `Weights` and `Activation` carry."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullRange:
    """A scale covers the smallest and the largest of the weights that share it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastError:
    """A scale makes the least squared error; large weights are clipped if that helps.

    Of the full range the fractions from 1 down to `least` are tried, evenly spaced.
    With the second moments of the inputs (`quantize(..., moments=...)`) it is the error
    of what the weights of a scale, rounded to the nearest, add to the outputs: the
    clipping that AWQ searches. Each fraction then takes a product of the weights of
    each scale with their own block of the moments, which is little for groups, and for
    scales by channel a product [N, K] x [K, K].

    `Gptq` makes up for the error of one weight by others, so there each counts by the
    mean square of what it is multiplied with, the importance matrix of llama.cpp.
    Without moments all weights count alike.

    Attributes:
        least: the smallest fraction of the range, in (0, 1).
        steps: how many fractions are tried, at least 2.

    Raises:
        ValueError: a field is out of range.

    References:
        Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression
        and Acceleration": weights are clipped for the least error of the outputs.
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
class Percentile:
    """A scale covers all but the outermost weights, which are clipped.

    Attributes:
        percent: how many are covered, above 50 and up to 100: of a symmetric range by
            their size, of another one between the numbers that cut off half of the
            rest on either side.

    Raises:
        ValueError: `percent` is out of range.
    """

    percent: float = 99.9

    def __post_init__(self) -> None:
        number = isinstance(self.percent, int | float) and math.isfinite(self.percent)
        if not number or not 50 < self.percent <= 100:
            raise ValueError(
                f"Percentile: percent is above 50 and up to 100, not {self.percent!r}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanAbsolute:
    """A scale is the mean size of the weights that share it; for -1, 0 and 1.

    For `Binary()` it makes the least squared error.

    References:
        Rastegari et al. 2016, "XNOR-Net", equation 6; Ma et al. 2024, "The Era of
        1-bit LLMs", equation 3.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lsq:
    """A scale is trained, with the gradient of learned step size quantization.

    For weights and for data, integers only. With an asymmetric format the offset, what
    the smallest number stands for, is trained as well (LSQ+). `jcompress.qat` makes
    the scales, `fake_quant(..., scales=...)` trains with them and
    `quantize(..., scales=...)` stores them.

    References:
        Esser et al. 2019, "Learned Step Size Quantization", section 2; Bhalgat et al.
        2020, "LSQ+: Improving low-bit quantization through learnable offsets and
        better initialization", section 3.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pact:
    """The value at which data is clipped is trained, by the data that it clips.

    The range is [0, high] for an asymmetric format, as after a ReLU, and [-high, high]
    for a symmetric one; integers only. The paper adds the squares of the trained
    values to the loss, which is left to the loss here.

    References:
        Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural
        Networks", section 3.
    """


WeightRange = FullRange | LeastError | Percentile | MeanAbsolute | Lsq
"""How the range of weights that share a scale is chosen."""
