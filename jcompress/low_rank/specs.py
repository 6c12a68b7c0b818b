"""The specs of `factorize`: the form of the factors, and how their rank is chosen."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Svd:
    """Split a weight's matrix into two factors, by its largest singular values.

    Exactly one of the four says how many are kept. With `parameters` and `macs` the
    leaves that one rule takes share the budget: the singular values of all of them are
    taken in the order of what they hold of their leaf, by their cost, until it is
    spent.

    Attributes:
        rank: how many singular values are kept.
        energy: the fewest whose squares hold this fraction of all, in (0, 1]; in each
            copy of a stack.
        parameters: as many as leave the factors this fraction of the leaves'
            parameters.
        macs: as many as leave the factors this fraction of the leaves' multiplications.

    Raises:
        ValueError: not exactly one is given, or it is out of range.

    References:
        Eckart and Young 1936, "The approximation of one matrix by another of lower
        rank"; Denil et al. 2013, "Predicting Parameters in Deep Learning".
    """

    rank: int | None = None
    energy: float | None = None
    parameters: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        _check_choice(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spatial:
    """Split a convolution's kernel into one along each of its two window axes.

    A k x k convolution becomes a k x 1 and then a 1 x k one. How many channels lie
    between them is chosen as by `Svd`, for the matrix of the first axis and the input
    channels by the second axis and the outputs.

    Attributes:
        rank: how many channels lie between the two.
        energy: the fewest that hold this fraction of the squared singular values.
        parameters: as many as leave the factors this fraction of the leaves'
            parameters; the leaves of one rule share it.

    Raises:
        ValueError: not exactly one is given, or it is out of range.

    References:
        Jaderberg, Vedaldi and Zisserman 2014, "Speeding up Convolutional Neural
        Networks with Low Rank Expansions", section 2, scheme 2; Tai et al. 2016,
        "Convolutional neural networks with low-rank regularization", for the closed
        form.
    """

    rank: int | None = None
    energy: float | None = None
    parameters: float | None = None

    def __post_init__(self) -> None:
        _check_choice(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tucker:
    """Split a convolution's kernel into 1 x 1, k x k with few channels, 1 x 1.

    Attributes:
        ranks: channels before and after the core.
        energy: the fewest that lose at most the rest of the kernel's squared norm, half
            of it on either side; in (0, 1].
        sweeps: how often either side is refined for the other (higher-order orthogonal
            iteration); 0 is the truncated higher-order SVD.

    Raises:
        ValueError: not exactly one of `ranks` and `energy` is given, or a number is out
            of range.

    References:
        Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and
        Low Power Mobile Applications"; De Lathauwer et al. 2000, "On the
        best rank-1 and rank-(R1, R2, ..., RN) approximation of higher-order tensors".
    """

    ranks: tuple[int, int] | None = None
    energy: float | None = None
    sweeps: int = 2

    def __post_init__(self) -> None:
        if (self.ranks is None) == (self.energy is None):
            raise ValueError(
                f"Tucker: give either ranks=(before, after) or energy, not {self!r}"
            )
        if self.ranks is not None:
            if not isinstance(self.ranks, tuple) or len(self.ranks) != 2:
                raise ValueError(
                    f"Tucker: ranks are those before and after the core, not "
                    f"{self.ranks!r}"
                )
            for rank in self.ranks:
                _check_rank("Tucker", rank)
        _check_fraction("Tucker", "energy", self.energy)
        if not isinstance(self.sweeps, int) or self.sweeps < 0:
            raise ValueError(
                f"Tucker: sweeps is a number of at least 0, not {self.sweeps!r}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cp:
    """Split a convolution's kernel into 1 x 1, one depthwise for each axis, 1 x 1.

    A k x k convolution becomes a 1 x 1 one from the inputs to `rank` channels, a k x 1
    and a 1 x k one on each channel apart, and a 1 x 1 one to the outputs: the canonical
    polyadic decomposition of the kernel, a sum of `rank` outer products of vectors.
    Windows of one, two, three or more axes. With the kernel scaled to |W| = 1, damped
    alternating least squares lower

        |W - W_r|^2 + damping * (sum over the terms t of |t|^2)

    from the largest terms of the kernel's higher-order SVD; the damping begins high and
    falls to its value within some 60 sweeps. Without it, pairs of terms can grow
    without bound while they cancel.

    Attributes:
        rank: the number of terms.
        energy: the fewest found, by bisection, that lose at most the rest of the
            kernel's squared norm; in (0, 1], and of each copy of a stack.
        parameters: the most with which the factors of each leaf have at most this
            fraction of its parameters; in (0, 1].
        sweeps: how often all factors are refined, at most.
        tolerance: a sweep that lowers the above by less than this fraction is the last.
        damping: what a term's squared norm costs; in (0, 1). The relative error that it
            adds is about as large.
        seed: of the small noise that takes the start off a saddle; from 0 on.

    Raises:
        ValueError: not exactly one of `rank`, `energy` and `parameters` is given, or a
            number is out of range.

    References:
        Lebedev et al. 2015, "Speeding-up Convolutional Neural Networks Using Fine-tuned
        CP-Decomposition", section 3; Phan et al. 2020, "Stable Low-rank Tensor
        Decomposition for Compression of Convolutional Neural Network", for diverging
        terms and why they hinder fine-tuning.
    """

    rank: int | None = None
    energy: float | None = None
    parameters: float | None = None
    sweeps: int = 500
    tolerance: float = 1e-4
    damping: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice(self)
        for field, least in (("sweeps", 1), ("seed", 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"Cp: {field} is a number of at least {least}, not {value!r}"
                )
        for field in ("tolerance", "damping"):
            value = getattr(self, field)
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise ValueError(f"Cp: {field} is in (0, 1), not {value!r}")


Factoring = Svd | Spatial | Tucker | Cp
"""What a rule of `factorize` carries."""


def _check_choice(spec: Svd | Spatial | Cp) -> None:
    name = type(spec).__name__
    choices = ("rank", "energy", "parameters", "macs")
    names = [f.name for f in dataclasses.fields(spec) if f.name in choices]
    given = [field for field in names if getattr(spec, field) is not None]
    if len(given) != 1:
        raise ValueError(
            f"{name}: give exactly one of {', '.join(names)}; got "
            f"{' and '.join(given) or 'none'}"
        )
    if spec.rank is not None:
        _check_rank(name, spec.rank)
        return
    _check_fraction(name, given[0], getattr(spec, given[0]))


def _check_rank(name: str, rank: Any) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"{name}: a rank is a number of at least 1, not {rank!r}")


def _check_fraction(name: str, field: str, value: Any) -> None:
    if value is None:
        return
    known = isinstance(value, int | float) and math.isfinite(value)
    if not known or not 0 < value <= 1:
        raise ValueError(f"{name}: {field} is in (0, 1], not {value!r}")
