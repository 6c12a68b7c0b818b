"""How weights and data are quantized: frozen specs that rules carry."""

import dataclasses
import functools
import math
from typing import Any, TypeVar

from jcompress.formats import (
    Binary,
    FloatScales,
    Int,
    NumberFormat,
    ScaleFormat,
    Ternary,
)
from jcompress.tensors.range_specs import (
    FullRange,
    LeastError,
    Lsq,
    MeanAbsolute,
    Pact,
    Percentile,
    WeightRange,
)

Spec = TypeVar("Spec")


def explain_arguments(cls: type[Spec]) -> type[Spec]:
    """Make a spec say which arguments it takes when it is given others."""
    made: Any = cls.__init__
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(made)
    def explained(self: Any, *values: Any, **given: Any) -> None:
        odd = [name for name in given if name not in names]
        if values or odd:
            what = f"{odd[0]}=" if odd else f"{values[0]!r} without a name"
            text = f"{cls.__name__} takes no {what}; it takes {', '.join(names)}"
            raise TypeError(f"{text}{_instead(names, given)}")
        made(self, **given)

    cls.__init__ = explained  # type: ignore[method-assign]
    return cls


def _instead(names: list[str], given: dict[str, Any]) -> str:
    """How to write what was given to the wrong spec; empty if that is not known."""
    given = dict(given)
    if "bits" in given:
        numbers = {"symmetric": given.pop("symmetric")} if "symmetric" in given else {}
        try:
            given["format"] = Int(given.pop("bits"), **numbers)
        except (TypeError, ValueError):
            return ""
    weights = {field.name for field in dataclasses.fields(Weights)}
    if not set(given) <= weights:
        return ""
    inner = ", ".join(f"{name}={value!r}" for name, value in given.items())
    if "weights" in names:
        return f": Quantize(weights=Weights({inner}))"
    return f": {inner}"


def _check_format(spec: "Weights | Activation") -> None:
    if not isinstance(spec.format, NumberFormat):
        raise TypeError(
            f"{type(spec).__name__}: format is one of jcompress.formats, such as "
            f"Int(bits) or Float8(), not {spec.format!r}"
        )


def _check_full(spec: "Activation") -> None:
    if isinstance(spec.format, Int) and spec.format.full:
        raise ValueError(
            "Activation: full=True is for weights; the products of integers round "
            f"data to numbers centred at 0: Int({spec.format.bits})"
        )


def _check_learned(spec: "Weights | Activation") -> None:
    stored = spec.scales if isinstance(spec, Weights) else FloatScales()
    if isinstance(spec.range, Lsq) and stored != FloatScales():
        raise ValueError(
            "Weights: range=Lsq() learns float32 scales, so scales is FloatScales(), "
            f"not {stored!r}"
        )
    if isinstance(spec.range, Lsq | Pact) and not isinstance(spec.format, Int):
        raise TypeError(
            f"{type(spec).__name__}: range={spec.range!r} learns the scale of "
            f"integers, so format is Int(bits), not {spec.format!r}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale for the whole array; for stacked weights, one for each copy.

    For data with a `Dynamic` range, the whole batch shares one scale: a prediction then
    depends on what else is in its batch, and a large number in one example makes the
    others coarser.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One scale for each output channel of a weight."""


@dataclasses.dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `size` neighbours along the inputs of each channel.

    The inputs of a weight with several input axes are counted as one axis, the last
    leaf axis fastest; `size` must divide their number.

    Attributes:
        size: number of weights that share a scale, at least 1.

    Raises:
        ValueError: `size` is not a positive int.
    """

    size: int

    def __post_init__(self) -> None:
        wrong = isinstance(self.size, bool) or not isinstance(self.size, int)
        if wrong or self.size < 1:
            raise ValueError(f"PerGroup: size is a positive int, not {self.size!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerBlock:
    """One scale for each block of the weight's matrix [outputs, inputs].

    The outputs and the inputs of a weight with several such axes are counted as one
    axis each, the last leaf axis fastest.

    Attributes:
        outputs: neighbouring outputs that share a scale; divides their number.
        inputs: neighbouring inputs that share a scale; divides their number.

    Raises:
        ValueError: a field is not a positive int.
    """

    outputs: int
    inputs: int

    def __post_init__(self) -> None:
        for name in ("outputs", "inputs"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"PerBlock: {name} is a positive int, not {size!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerRow:
    """One range for each row of data: over the axes that the product sums over.

    What a row is rounded to does not depend on the rows beside it in the batch. For a
    convolution, one range for each example, over its positions and channels.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamic:
    """The range is taken from the very data that is quantized."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """The range is an exponential moving average over calibration or training steps.

    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.1.

    Attributes:
        decay: weight of the past, in [0, 1).

    Raises:
        ValueError: `decay` is outside of [0, 1).
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        known = isinstance(self.decay, int | float) and math.isfinite(self.decay)
        if not known or not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage: decay is in [0, 1), not {self.decay!r}")


Granularity = PerTensor | PerChannel | PerGroup | PerBlock
"""Which weights share a scale."""


@explain_arguments
@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """How a weight is quantized.

    Attributes:
        format: which numbers are stored: one of `jcompress.formats`.
        granularity: which weights share a scale.
        range: how a scale is chosen.
        scales: how scales are stored.
        outliers: the part of each matrix, its largest numbers, that is stored as
            floats in a sparse matrix of its own, below 0.5; 0 for none. A thousandth
            lets the others have much smaller scales where a few weights are large.

    Raises:
        TypeError: a field is of another kind.
        ValueError: the range does not suit the format, or there can be no outliers.
    """

    format: NumberFormat = Int(8)
    granularity: Granularity = PerChannel()
    range: WeightRange = FullRange()
    scales: ScaleFormat = FloatScales()
    outliers: float = 0.0

    def __post_init__(self) -> None:
        _check_format(self)
        number = isinstance(self.outliers, int | float)
        if not number or not 0 <= self.outliers < 0.5:
            raise ValueError(
                f"Weights: outliers is from 0 to below 0.5, not {self.outliers!r}"
            )
        odd = isinstance(self.format, Binary) or isinstance(self.range, Lsq)
        if self.outliers and odd:
            raise ValueError(
                "Weights: outliers leave 0 in their places, which Binary() does not "
                "have and Lsq() does not learn"
            )
        if not isinstance(self.granularity, Granularity):
            raise TypeError(
                "Weights: granularity is PerTensor(), PerChannel(), PerGroup(size) or "
                f"PerBlock(...), not {self.granularity!r}"
            )
        if not isinstance(self.range, WeightRange):
            raise TypeError(
                "Weights: range is FullRange(), LeastError(...), Percentile(...), "
                f"MeanAbsolute() or Lsq(), not {self.range!r}"
            )
        if not isinstance(self.scales, ScaleFormat):
            raise TypeError(
                "Weights: scales is FloatScales(bits), PowerOfTwoScales() or "
                f"QuantizedScales(), not {self.scales!r}"
            )
        by_mean = isinstance(self.range, MeanAbsolute)
        if by_mean and not isinstance(self.format, Binary | Ternary):
            raise ValueError(
                "Weights: range=MeanAbsolute() is for Binary() and Ternary(); for "
                f"{self.format!r} take FullRange(), LeastError() or Percentile()"
            )
        if isinstance(self.format, Binary) and not by_mean:
            raise ValueError(
                "Weights: Binary() needs range=MeanAbsolute(), the scale of least error"
            )
        _check_learned(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entropy:
    """Data is clipped where its distribution and the quantized one differ least.

    They are compared by the Kullback-Leibler divergence of their histograms.

    Attributes:
        bins: equally wide bins of the data up to its largest number.

    Raises:
        ValueError: there are fewer than 256 bins.

    References:
        Migacz 2017, "8-bit Inference with TensorRT".
    """

    bins: int = 2048

    def __post_init__(self) -> None:
        if not isinstance(self.bins, int) or self.bins < 256:
            raise ValueError(f"Entropy: bins is an int from 256 on, not {self.bins!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """The range is chosen once, from data, and stays.

    `jcompress.calibration.choose_ranges` chooses it.

    Attributes:
        by: `FullRange()` covers all that is seen, `Percentile(...)` all but the
            outermost numbers, `LeastError(...)` makes the least squared error,
            `Entropy(...)` the least divergence.

    Raises:
        TypeError: `by` is of another kind.
    """

    by: FullRange | Percentile | LeastError | Entropy = LeastError()

    def __post_init__(self) -> None:
        if not isinstance(self.by, FullRange | Percentile | LeastError | Entropy):
            raise TypeError(
                "Static: by is FullRange(), Percentile(...), LeastError(...) or "
                f"Entropy(...), not {self.by!r}"
            )


@explain_arguments
@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """How the data that a weight meets is quantized.

    Attributes:
        format: which numbers it is rounded to; with `Int(bits, symmetric=False)` the
            range need not be centred at 0, as after a ReLU.
        granularity: `PerRow()`, so that an example does not depend on its neighbours
            in the batch, or `PerTensor()`, one range for all. Left out, it is
            `PerRow()` with a dynamic range and `PerTensor()` with any other.
        range: where the range comes from.
        shared: whether all else that reads the product's input gets its rounded
            numbers, too, such as the sum of a residual block; where several products
            that say so read one value, it is rounded once, by the range of the first.
            A convolutional network on a CPU then keeps integers throughout.

    Raises:
        ValueError: `PerRow()` has a range that is not dynamic: the rows of the next
            batch are others; the format is full; the input is shared and its range
            is neither `MovingAverage()` nor `Static()`.
        TypeError: `format`, `granularity` or `range` is of another kind.
    """

    format: NumberFormat = Int(8, symmetric=False)
    granularity: PerTensor | PerRow | None = None
    range: Dynamic | Static | MovingAverage | Lsq | Pact = Dynamic()
    shared: bool = False

    def __post_init__(self) -> None:
        _check_format(self)
        _check_full(self)
        if self.granularity is None:
            dynamic = isinstance(self.range, Dynamic)
            default = PerRow() if dynamic else PerTensor()
            object.__setattr__(self, "granularity", default)
        if not isinstance(self.granularity, PerTensor | PerRow):
            raise TypeError(
                "Activation: granularity is PerTensor() or PerRow(), not "
                f"{self.granularity!r}"
            )
        if not isinstance(self.range, Dynamic | Static | MovingAverage | Lsq | Pact):
            raise TypeError(
                "Activation: range is Dynamic(), Static(...), MovingAverage(...), "
                f"Lsq() or Pact(), not {self.range!r}"
            )
        _check_learned(self)
        if self.shared and not isinstance(self.range, Static | MovingAverage):
            raise ValueError(
                "Activation: shared=True needs a range that is known before the "
                f"product runs, MovingAverage() or Static(), not {self.range!r}"
            )
        if isinstance(self.granularity, PerRow) and not isinstance(self.range, Dynamic):
            raise ValueError(
                "Activation: PerRow() needs range=Dynamic(), because no two batches "
                "have the same rows; every other range goes with PerTensor()"
            )
