"""The lowest scores of a row, without sorting it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_SMALL = 16
"""Comparing all pairs of a short row takes less time than a search."""


def lowest(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """Mark the lowest scores of each row, of equal ones the first.

    The bits of floats that are not negative are integers in the same order, so that the
    highest score to be marked is found bit by bit: 31 counts, whatever the scores are.

    Args:
        scores: float32 [R, G], none negative.
        count: how many are marked in each row, from 0 to G.

    Returns:
        bool [R, G], `count` of each row True.
    """
    size = scores.shape[1]
    if size <= _SMALL:
        place = jnp.arange(size, dtype=jnp.int32)
        mine, other = scores[:, :, None], scores[:, None, :]
        earlier = (place[None, :] < place[:, None])[None]
        below = (other < mine) | ((other == mine) & earlier)
        return jnp.sum(below, axis=-1, dtype=jnp.int32) < count
    # A zero may be a negative one.
    keys = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32)
    wanted = jnp.asarray(count, jnp.int32)
    last = _largest(31, lambda bound: _count(keys < bound) < wanted, len(scores))
    below, equal = keys < last, keys == last
    rest = wanted - _count(below)

    def some(_: None) -> jax.Array:
        """Of the equal ones the first."""
        place = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 1)
        end = _largest(
            size.bit_length(),
            lambda bound: _count(equal & (place < bound)) <= rest,
            len(scores),
        )
        return below | (equal & (place < end))

    every = jnp.all(_count(equal) == rest)
    marked = jax.lax.cond(every, lambda _: below | equal, some, None)
    some_of_all: jax.Array = marked & (wanted > 0)
    return some_of_all


def _count(marked: jax.Array) -> jax.Array:
    return jnp.sum(marked, axis=1, keepdims=True, dtype=jnp.int32)


def _largest(bits: int, fits: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest integer of so many bits that fits, if all smaller ones do: [R, 1]."""

    def narrow(step: jax.Array, found: jax.Array) -> jax.Array:
        bit = jnp.left_shift(jnp.int32(1), jnp.int32(bits - 1) - step)
        return jnp.where(fits(found | bit), found | bit, found)

    start = jnp.zeros((rows, 1), jnp.int32)
    largest: jax.Array = jax.lax.fori_loop(0, bits, narrow, start)
    return largest
