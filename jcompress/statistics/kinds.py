"""The statistics that `observe` can collect, and what one of your own must have."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jcompress.tensors.ranges import Range


class Statistic(Protocol):
    """What `observe` collects; write a frozen dataclass with these methods for more.

    A value is any pytree of arrays whose shapes do not depend on the number of rows.
    Values of several batches, products, steps of a loop or devices become one, so that
    nothing has to remember the rows. `Sums` has the last four methods for all values
    that add up.
    """

    def of(self, rows: jax.Array, valid: jax.Array | None) -> Any:
        """The value of the inputs of one matrix.

        Args:
            rows: float32 [M, K]: what is multiplied with the matrix [N, K].
            valid: bool [M]: which rows count; None if all do.
        """
        ...

    def empty(self, like: Any) -> Any:
        """The value of no rows; `like` has its shapes and dtypes (and may be abstract).

        `join(empty(a), a)` is `a`.
        """
        ...

    def join(self, a: Any, b: Any) -> Any:
        """The value of the rows of both."""
        ...

    def reduce(self, stacked: Any) -> Any:
        """The value of the rows of all values along a leading axis."""
        ...

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """The value of the rows of all devices along axes of a mesh."""
        ...


class Sums:
    """The part of a statistic's methods that is the same for all sums."""

    def empty(self, like: Any) -> Any:
        """Zeros."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def join(self, a: Any, b: Any) -> Any:
        """The sum of both."""
        return jax.tree.map(jnp.add, a, b)

    def reduce(self, stacked: Any) -> Any:
        """The sum along the leading axis."""
        return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), stacked)

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """The sum over all devices."""
        return jax.lax.psum(value, axis_names)


def _only(rows: jax.Array, valid: jax.Array | None, fill: float = 0.0) -> jax.Array:
    """The rows [M, K], those that do not count replaced."""
    if valid is None:
        return rows
    return jnp.where(valid[:, None], rows, jnp.asarray(fill, rows.dtype))


def _count(rows: jax.Array, valid: jax.Array | None) -> jax.Array:
    if valid is None:
        return jnp.asarray(rows.shape[0], jnp.int32)
    return jnp.sum(valid, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Count(Sums):
    """How many rows each matrix is multiplied with: int32 [*S]."""

    def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
        """The number of rows."""
        return _count(rows, valid)


@dataclasses.dataclass(frozen=True)
class SecondMoments(Sums):
    """The sum of x x^T over the inputs x [K]: float32 [*S, K, K].

    For a convolution in G > 1 groups, of each group: [*S, G, K, K].
    Twice this is the Hessian of the squared error of a layer's outputs: what weighted
    factorisation, GPTQ and SparseGPT need. `Count` has the number to divide by.
    """

    def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
        """The product of the rows with themselves."""
        rows = _only(rows, valid)
        return jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class DiagonalMoments(Sums):
    """The sum of the square of each input: float32 [*S, K], the norms of Wanda."""

    def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
        """The sums of squares."""
        return jnp.sum(jnp.square(_only(rows, valid)), axis=0)


class Average(NamedTuple):
    """A sum over rows, and their number.

    Attributes:
        total: float32 [*S, K].
        rows: int32 [*S].
    """

    total: jax.Array
    rows: jax.Array

    @property
    def mean(self) -> jax.Array:
        """`total / rows`, float32 [*S, K]; 0 where there were no rows."""
        rows = jnp.maximum(self.rows, 1).astype(jnp.float32)
        return self.total / rows[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Means(Sums):
    """The mean of each input: an `Average`, whose `mean` is float32 [*S, K].

    Attributes:
        absolute: of the inputs' absolute values, the importance of channels in AWQ.
    """

    absolute: bool = False

    def of(self, rows: jax.Array, valid: jax.Array | None) -> Average:
        """The sum and the number of rows."""
        kept = _only(rows, valid)
        total = jnp.sum(jnp.abs(kept) if self.absolute else kept, axis=0)
        return Average(total, _count(rows, valid))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros(Sums):
    """How often each input is zero: an `Average`, whose `mean` is the share [*S, K].

    The padding of a convolution counts, alike for all channels.

    Attributes:
        below: absolute values up to this count as zero, for activation functions that
            come near zero and seldom reach it.

    Raises:
        ValueError: `below` is negative.
    """

    below: float = 0.0

    def __post_init__(self) -> None:
        if not self.below >= 0:
            raise ValueError(f"below={self.below} is negative")

    def of(self, rows: jax.Array, valid: jax.Array | None) -> Average:
        """The numbers of zeros and of rows."""
        zero = jnp.abs(rows) <= self.below
        if valid is not None:
            zero = zero & valid[:, None]
        return Average(jnp.sum(zero, axis=0, dtype=jnp.float32), _count(rows, valid))


@dataclasses.dataclass(frozen=True)
class AbsoluteMax:
    """The largest absolute value of each input: float32 [*S, K]; 0 of no rows."""

    def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
        """The maxima."""
        return jnp.max(jnp.abs(_only(rows, valid)), axis=0, initial=0.0)

    def empty(self, like: Any) -> Any:
        """Zeros."""
        return jnp.zeros(like.shape, like.dtype)

    def join(self, a: Any, b: Any) -> Any:
        """The larger of both."""
        return jnp.maximum(a, b)

    def reduce(self, stacked: Any) -> Any:
        """The largest along the leading axis."""
        return jnp.max(stacked, axis=0, initial=0.0)

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """The largest of all devices."""
        return jax.lax.pmax(value, axis_names)


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The least and the largest value of each input: a `Range` of float32 [*S, K].

    Of no rows it is (inf, -inf).
    """

    def of(self, rows: jax.Array, valid: jax.Array | None) -> Range:
        """The range of each column."""
        high = _only(rows, valid, -jnp.inf)
        return Range(
            jnp.min(_only(rows, valid, jnp.inf), axis=0, initial=jnp.inf),
            jnp.max(high, axis=0, initial=-jnp.inf),
        )

    def empty(self, like: Any) -> Range:
        """The range of no data."""
        infinity = jnp.full(like.low.shape, jnp.inf, like.low.dtype)
        return Range(infinity, -infinity)

    def join(self, a: Any, b: Any) -> Range:
        """The range that holds both."""
        return Range(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

    def reduce(self, stacked: Any) -> Range:
        """The range that holds all along the leading axis."""
        return Range(
            jnp.min(stacked.low, axis=0, initial=jnp.inf),
            jnp.max(stacked.high, axis=0, initial=-jnp.inf),
        )

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Range:
        """The range that holds those of all devices."""
        return Range(
            jax.lax.pmin(value.low, axis_names), jax.lax.pmax(value.high, axis_names)
        )


def _tally(bins: jax.Array, valid: jax.Array | None, count: int) -> jax.Array:
    """How many numbers fall into each bin: float32 [count] of int32 [M, K]."""
    ones = jnp.ones(bins.shape, jnp.int32)
    if valid is not None:
        ones = ones * valid[:, None].astype(jnp.int32)
    # Counted in integers: floats lose single counts from 2^24 on.
    tally = jnp.zeros(count, jnp.int32).at[bins].add(ones)
    return tally.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram(Sums):
    """How many inputs lie in each of equally wide bins: float32 [*S, bins].

    What is below `low` or above `high` counts in the first and the last bin. The counts
    are exact up to 2^24 and have float32's precision beyond.

    Attributes:
        low: where the first bin begins.
        high: where the last bin ends.
        bins: how many.
        each: count those of each input by itself: float32 [*S, K, bins].

    Raises:
        ValueError: `low` is not below `high`, or there is no bin.
    """

    low: float
    high: float
    bins: int = 256
    each: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.bins < 1:
            raise ValueError(f"a histogram has at least one bin, not {self.bins}")

    @property
    def edges(self) -> jax.Array:
        """Where the bins begin, and where the last one ends: float32 [bins + 1]."""
        return jnp.linspace(self.low, self.high, self.bins + 1, dtype=jnp.float32)

    def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
        """The counts."""
        place = (rows - self.low) * (self.bins / (self.high - self.low))
        bins = jnp.clip(jnp.floor(place), 0, self.bins - 1).astype(jnp.int32)
        if not self.each:
            return _tally(bins, valid, self.bins)
        inputs = rows.shape[1]
        # One table for all of them, each with bins of its own.
        own = bins + self.bins * jnp.arange(inputs, dtype=jnp.int32)[None, :]
        return _tally(own, valid, self.bins * inputs).reshape(inputs, self.bins)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerHistogram(Sums):
    """How many inputs have each binary exponent: float32 [*S, bins].

    Bin n counts those with `2^(lowest + n) <= |x| < 2^(lowest + n + 1)`; smaller ones
    and zeros are in the first bin, larger ones in the last. It needs no range to be
    known before. Counts as in `Histogram`.

    Attributes:
        lowest: exponent of the first bin.
        highest: exponent of the last bin.

    Raises:
        ValueError: `lowest` exceeds `highest`.
    """

    lowest: int = -24
    highest: int = 15

    def __post_init__(self) -> None:
        if self.lowest > self.highest:
            raise ValueError(f"lowest={self.lowest} exceeds highest={self.highest}")

    @property
    def edges(self) -> jax.Array:
        """Where the bins begin, and where the last one ends: float32 [bins + 1]."""
        powers = jnp.arange(self.lowest, self.highest + 2, dtype=jnp.float32)
        return jnp.exp2(powers)

    def of(self, rows: jax.Array, valid: jax.Array | None) -> jax.Array:
        """The counts."""
        # x = mantissa * 2^exponent with the mantissa in [1/2, 1).
        _, exponent = jnp.frexp(rows)
        power = jnp.where(rows == 0, self.lowest, exponent.astype(jnp.int32) - 1)
        bins = jnp.clip(power, self.lowest, self.highest) - self.lowest
        return _tally(bins, valid, self.highest - self.lowest + 1)


@dataclasses.dataclass(frozen=True, init=False)
class Several:
    """Several statistics in one evaluation; its value is a tuple of theirs."""

    statistics: tuple[Statistic, ...]

    def __init__(self, *statistics: Statistic) -> None:
        object.__setattr__(self, "statistics", statistics)

    def of(self, rows: jax.Array, valid: jax.Array | None) -> tuple[Any, ...]:
        """The value of each."""
        return tuple(each.of(rows, valid) for each in self.statistics)

    def empty(self, like: Any) -> tuple[Any, ...]:
        """The value of no rows of each."""
        pairs = zip(self.statistics, like, strict=True)
        return tuple(each.empty(one) for each, one in pairs)

    def join(self, a: Any, b: Any) -> tuple[Any, ...]:
        """The joined value of each."""
        triples = zip(self.statistics, a, b, strict=True)
        return tuple(each.join(one, other) for each, one, other in triples)

    def reduce(self, stacked: Any) -> tuple[Any, ...]:
        """The reduced value of each."""
        pairs = zip(self.statistics, stacked, strict=True)
        return tuple(each.reduce(one) for each, one in pairs)

    def across(self, value: Any, axis_names: tuple[str, ...]) -> tuple[Any, ...]:
        """The value over all devices of each."""
        pairs = zip(self.statistics, value, strict=True)
        return tuple(each.across(one, axis_names) for each, one in pairs)
