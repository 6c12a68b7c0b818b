"""How often numbers of each size occur, without a range known before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Host = np.ndarray[Any, Any]

_PARTS = 8
"""Bins from a power of 2 to the next."""
_LOWEST, _HIGHEST = -24, 24
"""Powers of 2: smaller sizes count as 0, larger ones as the largest."""
BINS = _PARTS * (_HIGHEST - _LOWEST)
"""Bins of the numbers above 0, and of those below."""


class Tally(NamedTuple):
    """How often numbers of each size occur.

    Attributes:
        below: counts of numbers below 0, by size, float32 [..., BINS].
        zero: of numbers that are 0, or nearly, float32 [...].
        above: of numbers above 0, float32 [..., BINS].
        low: the smallest number, at most 0, float32 [...].
        high: the largest number, at least 0, float32 [...].
    """

    below: jax.Array
    zero: jax.Array
    above: jax.Array
    low: jax.Array
    high: jax.Array


def tally(x: jax.Array) -> Tally:
    """Count all numbers of an array; those that are not finite count as 0."""
    x = jnp.nan_to_num(x.astype(jnp.float32).ravel(), nan=0, posinf=0, neginf=0)
    size = jnp.abs(x)
    power = jnp.log2(jnp.maximum(size, np.float32(2.0**_LOWEST)))
    place = jnp.floor((power - np.float32(_LOWEST)) * np.float32(_PARTS))
    bins = jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
    near = size < np.float32(2.0**_LOWEST)

    def counts(chosen: jax.Array) -> jax.Array:
        ones = chosen.astype(jnp.int32)
        return jnp.zeros(BINS, jnp.int32).at[bins].add(ones).astype(jnp.float32)

    return Tally(
        below=counts((x < 0) & ~near),
        zero=jnp.sum(near, dtype=jnp.int32).astype(jnp.float32),
        above=counts((x > 0) & ~near),
        low=jnp.min(x, initial=0),
        high=jnp.max(x, initial=0),
    )


class Tallies:
    """How tallies become one; the statistic that an interpreted program collects."""

    def empty(self, like: Any) -> Any:
        """That of no numbers."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def join(self, a: Tally, b: Tally) -> Tally:
        """That of the numbers of both."""
        return Tally(
            a.below + b.below,
            a.zero + b.zero,
            a.above + b.above,
            jnp.minimum(a.low, b.low),
            jnp.maximum(a.high, b.high),
        )

    def reduce(self, stacked: Tally) -> Tally:
        """That of all along the leading axis."""
        return Tally(
            stacked.below.sum(0),
            stacked.zero.sum(0),
            stacked.above.sum(0),
            stacked.low.min(0),
            stacked.high.max(0),
        )

    def across(self, value: Tally, axis_names: tuple[str, ...]) -> Tally:
        """That of all devices."""
        below, zero, above = (jax.lax.psum(part, axis_names) for part in value[:3])
        return Tally(
            below,
            zero,
            above,
            jax.lax.pmin(value.low, axis_names),
            jax.lax.pmax(value.high, axis_names),
        )


class Samples(NamedTuple):
    """Numbers that stand for a distribution, in increasing order.

    Attributes:
        values: the numbers, float64.
        weights: how often each occurs, float64, the sum is 1.
    """

    values: Host
    weights: Host


def samples_of(found: Tally, each: int = 16) -> Samples:
    """Numbers spread evenly over each bin, none beyond the smallest and largest.

    Args:
        found: a tally of scalars, concrete.
        each: numbers of a bin.
    """
    steps = (np.arange(each) + 0.5) / each
    edges = 2.0 ** (_LOWEST + np.arange(BINS + 1) / _PARTS)
    sizes = (edges[:-1, None] + steps * np.diff(edges)[:, None]).ravel()
    below, above = (
        np.repeat(np.asarray(part, np.float64) / each, each)
        for part in (found.below, found.above)
    )
    values = np.concatenate([-sizes[::-1], np.zeros(1), sizes])
    weights = np.concatenate([below[::-1], [float(found.zero)], above])
    live = weights > 0
    values = np.clip(values[live], float(found.low), float(found.high))
    weights = weights[live]
    return Samples(values, weights / max(weights.sum(), 1))
