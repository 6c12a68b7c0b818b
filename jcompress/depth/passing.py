"""What enters and what leaves blocks, compared in one evaluation of a function."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.depth.blocks import Passage
from jcompress.statistics.kinds import Sums
from jcompress.statistics.watching import Watch, watch
from jcompress.tracing.trace import Traced


def unlikeness(a: Any, b: Any) -> jax.Array:
    """1 less the cosine of two arrays [..., N] along the last axis, summed over rows.

    Half the square of the distance of the unit vectors, which is exact where they are
    nearly alike. Two rows of zeros are alike, one alone is at right angles to all.

    Returns:
        float32 [2]: the sum, and the number of rows.
    """
    a, b = (jnp.atleast_1d(x).astype(jnp.float32) for x in (a, b))
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
    a, b = (
        x / jnp.where(length > 0, length, 1)
        for x, length in zip((a, b), lengths, strict=True)
    )
    apart = jnp.sum(jnp.square(a - b), axis=-1) / 2
    zero = [jnp.squeeze(length == 0, axis=-1) for length in lengths]
    apart = jnp.where(zero[0] != zero[1], 1, apart)
    return jnp.stack([jnp.sum(apart), jnp.asarray(apart.size, jnp.float32)])


def compare_passing(
    traced: Traced, passages: Sequence[Passage]
) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """How unlike what enters and what leaves each block are, in one evaluation.

    Returns:
        For each block float64 [*steps, 2]: sums and numbers of rows, as of
        `unlikeness`, with an axis for each enclosing scan that takes its leaves apart.
    """
    watches = [
        Watch(
            place=one.place,
            atoms=tuple(value for pair in one.pairs for value in pair),
            made=_summed,
            stacked=traced.uses[one.use].stacked,
        )
        for one in passages
    ]
    watched = jax.jit(
        lambda leaves, data: watch(traced, watches, Sums(), leaves, data)[1]
    )
    statistics = jax.device_get(watched(traced.leaves, traced.data))
    return [np.asarray(each, np.float64) for each in statistics]


def _summed(values: Sequence[Any]) -> jax.Array:
    """The unlikeness of pairs of values, what enters beside what leaves."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return sum((unlikeness(a, b) for a, b in pairs), start=jnp.zeros(2, jnp.float32))
