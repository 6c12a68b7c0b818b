"""The lowest scores of each row, found by counting digits: linear time, no copy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SMALL_ROW = 16
"""Comparing all pairs beats sorting and counting by far up to here."""

_PART = 2**18
"""Scores that are counted at a time, so that what they are counted by stays small."""

Key = Callable[[jax.Array, Any], jax.Array]
"""Scores [R, C] and the place of the first column -> signed integers [R, C]."""


def keep_highest_compiled(rows: jax.Array, removed: int | jax.Array) -> jax.Array:
    """Keep all but the lowest `removed` of each row, `[R, G] -> bool[R, G]`.

    Of equal scores the first go first; a NaN counts as infinite, and on every device
    a number below the smallest normal one as 0, as CPUs have it.
    """
    if isinstance(removed, int) and removed == rows.shape[1] - 1:
        keep: jax.Array = _keep_last_highest(rows)
    else:
        keep = _keep_highest(rows, removed)
    return keep


@jax.jit
def _keep_last_highest(rows: jax.Array) -> jax.Array:
    keys = _keys(rows)[:, ::-1]
    last = rows.shape[1] - 1 - jnp.argmax(keys, axis=1).astype(jnp.int32)
    return jnp.arange(rows.shape[1], dtype=jnp.int32)[None, :] == last[:, None]


@jax.jit
def _keep_highest(rows: jax.Array, removed: int | jax.Array) -> jax.Array:
    count, size = rows.shape
    removed = jnp.asarray(removed, jnp.int32)
    if size <= SMALL_ROW:
        return _by_pairs(jnp.where(jnp.isnan(rows), jnp.inf, rows), removed)
    block = max(1, _PART // size)
    if count <= block:
        return _by_digits(rows, removed)
    whole = count // block * block
    blocks = rows[:whole].reshape(-1, block, size)
    kept = jax.lax.map(functools.partial(_by_digits, removed=removed), blocks)
    keep: jax.Array = kept.reshape(whole, size)
    if whole == count:
        return keep
    return jnp.concatenate([keep, _by_digits(rows[whole:], removed)])


def _by_pairs(rows: jax.Array, removed: jax.Array) -> jax.Array:
    places = jnp.arange(rows.shape[1], dtype=jnp.int32)
    mine, other = rows[:, :, None], rows[:, None, :]
    earlier = (places[None, :] < places[:, None])[None]
    below = (other < mine) | ((other == mine) & earlier)
    return jnp.sum(below, axis=-1, dtype=jnp.int32) >= removed


def _by_digits(rows: jax.Array, removed: jax.Array) -> jax.Array:
    count, size = rows.shape
    # The last one that goes; where none goes, the first one that stays.
    rank = jnp.broadcast_to(jnp.maximum(removed, 1) - 1, (count,))
    last, below, equal = _ranked(rows, lambda part, _: _keys(part), rank)
    going = removed - below

    def first_kept(rows: jax.Array) -> jax.Array:
        """The place from which on those stay that equal the last one; int32 [R]."""

        def place(part: jax.Array, start: Any) -> jax.Array:
            begin = jnp.asarray(start).astype(jnp.int32)
            places = begin + jnp.arange(part.shape[1], dtype=jnp.int32)
            return jnp.where(_keys(part) == last[:, None], places[None, :], size)

        return _ranked(rows, place, jnp.maximum(going, 1) - 1)[0] + 1

    cut = jax.lax.cond(
        jnp.any((going > 0) & (going < equal)),
        first_kept,
        lambda _: jnp.full((count,), size, jnp.int32),
        rows,
    )
    cut = jnp.where(going > 0, cut, 0)
    places = jnp.arange(size, dtype=jnp.int32)
    late = places[None, :] >= cut[:, None]
    keys = _keys(rows)
    return (keys > last[:, None]) | ((keys == last[:, None]) & late)


def _keys(rows: jax.Array) -> jax.Array:
    """Signed integers in the order of the scores."""
    if rows.dtype != jnp.float64:
        rows = rows.astype(jnp.float32)
    info = jnp.finfo(rows.dtype)
    rows = jnp.where(jnp.isnan(rows), jnp.inf, rows)
    # Both zeros are one number.
    rows = jnp.where(jnp.abs(rows) < info.tiny, 0, rows)
    integer = jnp.int64 if info.bits == 64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(rows, integer)
    return bits ^ ((bits >> (info.bits - 1)) & jnp.iinfo(integer).max)


def _ranked(
    rows: jax.Array, key: Key, rank: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The key at a rank of each row; how many are below it; how many are it.

    Args:
        rows: scores [R, G].
        key: what makes integers of them.
        rank: int32 [R].
    """
    size = rows.shape[1]
    # A table of counts is small beside the scores.
    digit = 16 if size >= 2**19 else 8 if size >= 2**11 else 4
    found: tuple[jax.Array, jax.Array, jax.Array] = jax.lax.platform_dependent(
        rows,
        rank,
        cpu=functools.partial(_searched, key=key, digit=digit, part=_PART),
        # Where many cores would add to one count, comparing everything is faster.
        default=functools.partial(_searched, key=key, digit=1, part=size),
    )
    return found


def _searched(
    rows: jax.Array, rank: jax.Array, *, key: Key, digit: int, part: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From the highest digit of the keys to the lowest: which one holds the rank."""
    count, size = rows.shape
    integer = jax.eval_shape(key, rows, 0).dtype
    bits = jnp.iinfo(integer).bits

    def step(turn: jax.Array, found: Any) -> Any:
        low, below, _ = found
        shift = (bits - digit * (turn + 1)).astype(integer)
        counted = functools.partial(_counted, low=low, shift=shift, digit=digit)

        def more(n: jax.Array, counts: jax.Array) -> jax.Array:
            columns = jax.lax.dynamic_slice_in_dim(rows, n * part, part, 1)
            return counts + counted(key(columns, n * part))

        whole = size // part
        counts = jnp.zeros((count, 2**digit), jnp.int32)
        if whole:
            counts = jax.lax.fori_loop(0, whole, more, counts)
        if size % part:
            counts = counts + counted(key(rows[:, whole * part :], whole * part))
        ends = jnp.cumsum(counts, axis=1, dtype=jnp.int32) + below[:, None]
        up = jnp.sum(ends <= rank[:, None], axis=1, dtype=jnp.int32)
        starts = jnp.concatenate([below[:, None], ends[:, :-1]], axis=1)
        below = jnp.take_along_axis(starts, up[:, None], axis=1)[:, 0]
        equal = jnp.take_along_axis(counts, up[:, None], axis=1)[:, 0]
        return low + jax.lax.shift_left(up.astype(integer), shift), below, equal

    low = jnp.full((count,), jnp.iinfo(integer).min, integer)
    none = jnp.zeros((count,), jnp.int32)
    found: tuple[jax.Array, jax.Array, jax.Array] = jax.lax.fori_loop(
        0, bits // digit, step, (low, none, none)
    )
    return found


def _counted(
    keys: jax.Array, *, low: jax.Array, shift: jax.Array, digit: int
) -> jax.Array:
    """How many keys of a row have each digit, of those that begin like `low`."""
    # The distance is meant without a sign: with one it would overflow.
    digits = jax.lax.shift_right_logical(keys - low[:, None], shift)
    inside = (keys >= low[:, None]) & (digits >= 0) & (digits < 2**digit)
    if digit == 1:
        ones = jnp.sum(inside & (digits == 1), 1, dtype=jnp.int32)
        zeros = jnp.sum(inside & (digits == 0), 1, dtype=jnp.int32)
        return jnp.stack([zeros, ones], axis=1)
    rows = jnp.arange(keys.shape[0], dtype=jnp.int32)[:, None]
    column = jnp.where(inside, digits, 2**digit).astype(jnp.int32)
    counts = jnp.zeros((keys.shape[0], 2**digit), jnp.int32)
    return counts.at[rows, column].add(1, mode="drop")
