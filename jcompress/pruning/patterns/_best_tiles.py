"""The best n of every m along both sides of a tile: a flow of least cost, exactly."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_LEVELS = 20
"""Bits of a score, relative to the largest of its tile."""

_INFINITE = 2**26
"""More than all finite scores of a tile; a path of seven swaps of it fits int32."""

_NEVER = 2**30

MOST = 8
"""The largest m, of which the sums fit int32."""


class _State(NamedTuple):
    """Tiles on the way to their best mask.

    Attributes:
        scores: int32 [m, m, T], rows first.
        keep: bool [m, m, T]; n of each row.
    """

    scores: Any
    keep: Any


def best_masks(scores: Any, n: int) -> Any:
    """The masks with n entries in each row and column and the largest sum of scores.

    Rows keep their n best at first. Then columns that have too many hand entries on to
    those that have too few, each time along the cheapest chain of swaps within rows, so
    that no other mask with these columns is better on the way, and none in the end.
    Scores are rounded to 2^-20 of the largest of their tile, and counted in integers:
    every device makes the same mask.

    Args:
        scores: float32 [m, m, T], tiles last, m at most `MOST`; an array of NumPy or of
            JAX, and so is the result. A NaN counts as infinite.
        n: how many stay.

    Returns:
        bool [m, m, T].

    References:
        Ahuja et al. 1993, "Network Flows", section 9.7 (successive shortest paths).
    """
    if isinstance(scores, np.ndarray):
        return _on_host(scores, n)
    keep: jax.Array = _compiled(scores, n)
    return keep


def _on_host(scores: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    whole = _integers(np, scores)
    keep: np.ndarray[Any, Any] = _best_of_rows(np, whole, n)
    waiting = np.flatnonzero((keep.sum(0) != n).any(0))
    while len(waiting):
        # Only what is not done: few tiles need many turns.
        after = _turn(np, _State(whole[..., waiting], keep[..., waiting]), n)
        keep[..., waiting] = after.keep
        waiting = waiting[(after.keep.sum(0) != n).any(0)]
    return keep


@functools.partial(jax.jit, static_argnames="n")
def _compiled(scores: jax.Array, n: int) -> jax.Array:
    whole = _integers(jnp, scores)
    found = jax.lax.while_loop(
        lambda state: jnp.any(jnp.sum(state.keep, 0, dtype=jnp.int32) != n),
        lambda state: _turn(jnp, state, n),
        _State(whole, _best_of_rows(jnp, whole, n)),
    )
    keep: jax.Array = found.keep
    return keep


def _integers(of: Any, scores: Any) -> Any:
    """int32 scores; exact but for one rounding, since the factors are powers of two."""
    tiny = np.finfo(np.float32).tiny
    scores = of.where(of.isnan(scores), np.float32(np.inf), scores)
    size = of.abs(scores)
    finite = of.where(of.isinf(scores) | (size < tiny), np.float32(0), scores)
    _, power = of.frexp(of.abs(finite).max((0, 1)))
    scaled = of.ldexp(finite, (_LEVELS - power)[None, None].astype(np.int32))
    counted = of.rint(scaled).astype(np.int32)
    signs = of.sign(scores).astype(np.int32) * np.int32(_INFINITE)
    return of.where(of.isinf(scores), signs, counted)


def _best_of_rows(of: Any, scores: Any, n: int) -> Any:
    """The n largest of each row, of equal ones the last."""
    m = len(scores)
    places = np.arange(m)
    columns = []
    for own in range(m):
        mine = scores[:, own : own + 1]
        early = (places < own)[None, :, None]
        below = (scores < mine) | ((scores == mine) & early)
        columns.append(below.sum(1) >= m - n)
    return of.stack(columns, 1)


def _turn(of: Any, state: _State, n: int) -> _State:
    """Each tile that is not done hands one entry from a full column to one that lacks.

    A chain goes from column to column: a row gives up its entry in the one and takes
    that in the next. Its cost is what the sum of scores loses.
    """
    scores, keep = state
    m = len(scores)
    columns = np.arange(m, dtype=np.int32)
    held = keep.sum(0)
    far = np.int32(_NEVER)
    reached = of.where(held > n, np.int32(0), far)
    row_into = of.full(reached.shape, -1, np.int32)
    column_into = of.full(reached.shape, -1, np.int32)
    for _ in range(m - 1):
        open_ = keep & (reached < far)[None]
        given = of.where(open_, reached[None] + scores, far)
        giver = given.argmin(1).astype(np.int32)
        cost = given.min(1)
        free = ~keep & (cost < far)[:, None]
        taken = of.where(free, cost[:, None] - scores, far)
        taker = taken.argmin(0).astype(np.int32)
        best = taken.min(0)
        nearer = best < reached
        through = of.take_along_axis(giver, taker, 0)
        reached = of.where(nearer, best, reached)
        row_into = of.where(nearer, taker, row_into)
        column_into = of.where(nearer, through, column_into)
    ends = of.where(held < n, reached, far)
    place = ends.argmin(0).astype(np.int32)
    # Tiles that are done have no end.
    going = ends.min(0) < far
    for _ in range(m - 1):
        row = of.take_along_axis(row_into, place[None], 0)[0]
        before = of.take_along_axis(column_into, place[None], 0)[0]
        going = going & (row >= 0)
        in_row = (columns[:, None] == row[None])[:, None] & going[None, None]
        keep = keep | (in_row & (columns[:, None] == place[None])[None])
        keep = keep & ~(in_row & (columns[:, None] == before[None])[None])
        place = of.where(going, before, place)
    return _State(scores, keep)
