"""Which groups stay: the lowest scores go, and of equal ones the first."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.pruning._host import Host, flush, has_nan, on_host, place_like
from jcompress.pruning._selection import SMALL_ROW, keep_highest_compiled
from jcompress.pruning.patterns import Pattern
from jcompress.pruning.scores.magnitude import magnitude
from jcompress.pruning.spec import PruningPlan
from jcompress.pruning.thresholds import Threshold


def choose(
    plan: PruningPlan,
    leaves: Mapping[str, Any],
    step: int | jax.Array,
    *,
    by_magnitude: bool = False,
) -> dict[str, jax.Array]:
    """The masks of a plan by leaf name, sharded like the leaves.

    Args:
        plan: the plan.
        leaves: the scores of its leaves, by name.
        step: where schedules are read.
        by_magnitude: whether the leaves are weights instead, to be scored one after the
            other by their magnitudes.

    Raises:
        MismatchError: a leaf holds a NaN (checked outside of tracing).
    """
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.core.Tracer) and has_nan(leaf):
            what = "weights" if by_magnitude else "scores"
            raise MismatchError(f"{plan.transform}: the {what} of {path!r} hold a NaN")
    masks: dict[str, jax.Array] = {}
    for index, amount in plan.amounts.items():
        threshold = amount if isinstance(amount, Threshold) else None
        value: Any = amount.value if isinstance(amount, Threshold) else amount
        if callable(value):
            value = jnp.asarray(value(step), jnp.float32)
        if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
            value = np.asarray(value)
        for paths in plan.competing[index]:
            arrays: dict[str, Any] = {path: on_host(leaves[path]) for path in paths}
            if isinstance(value, jax.core.Tracer) or any(
                array is None for array in arrays.values()
            ):
                arrays = {path: _whole(jnp.asarray(leaves[path])) for path in paths}
            scores = _Scores(plan, arrays, by_magnitude)
            if threshold is not None:
                keeps = _above(scores, paths, threshold, value)
            elif len(paths) == 1:
                keeps = _rank_one(scores, paths, value)
            else:
                keeps = _rank_several(scores, paths, value)
            for path, keep in zip(paths, keeps, strict=True):
                pattern = plan.leaves[path].pattern
                mask = pattern.spread(keep, plan.shapes[path], plan.axes[path])
                masks[path] = _sharded_like(mask, leaves[path])
    return {path: masks[path] for path in plan.leaves}


class _Scores:
    """The group scores of leaves, made when they are asked for and not kept."""

    def __init__(
        self, plan: PruningPlan, arrays: Mapping[str, Any], by_magnitude: bool
    ):
        self.plan, self.arrays, self.by_magnitude = plan, arrays, by_magnitude
        self.hosted = isinstance(next(iter(arrays.values())), np.ndarray)
        wide = any(array.dtype == np.float64 for array in arrays.values())
        self.dtype = np.float64 if wide and not by_magnitude else np.float32

    def pattern(self, path: str) -> Pattern:
        return self.plan.leaves[path].pattern

    def shape(self, path: str) -> tuple[int, int]:
        plan = self.plan
        return self.pattern(path).row_shape(plan.shapes[path], plan.axes[path])

    def rows(self, path: str) -> Any:
        scores = self.arrays[path]
        if self.by_magnitude:
            scores = magnitude(scores)
        return self.pattern(path).rows(scores, self.plan.axes[path])


def _above(
    scores: _Scores, paths: Sequence[str], threshold: Threshold, value: Any
) -> list[Any]:
    """What is not below a threshold; of one leaf at least one group of each row."""
    rows = [scores.rows(path) for path in paths]
    least = np.float32(value) if isinstance(value, float | int) else value
    least = least * threshold.unit(rows)
    # What differs from itself is a NaN, which counts as infinite.
    keeps = [(each >= least.astype(each.dtype)) | (each != each) for each in rows]
    if len(paths) == 1:
        (keep,), (each,) = keeps, rows
        best = keep_highest(each, each.shape[1] - 1)
        keeps = [keep | (~keep.any(axis=1, keepdims=True) & best)]
    return keeps


def _rank_one(scores: _Scores, paths: Sequence[str], value: Any) -> list[Any]:
    (path,) = paths
    rows = scores.rows(path)
    return [keep_highest(rows, scores.pattern(path).count(value, rows.shape[1]))]


def _rank_several(scores: _Scores, paths: Sequence[str], value: Any) -> list[Any]:
    """All groups of several leaves in one row, in the order of the leaves."""
    shapes = [scores.shape(path) for path in paths]
    ends = np.cumsum([0, *map(math.prod, shapes)]).tolist()
    removed = scores.pattern(paths[0]).count(value, ends[-1])
    if not scores.hosted:
        # Written one after the other, where joining them would copy each one first; and
        # begun with the first, so that all are on the same devices.
        line: Any = None
        for path, start in zip(paths, ends[:-1], strict=True):
            part = scores.rows(path).reshape(1, -1).astype(scores.dtype)
            if line is None:
                line = jnp.pad(part, ((0, 0), (0, ends[-1] - part.size)))
            else:
                line = jax.lax.dynamic_update_slice_in_dim(line, part, start, 1)
        kept = keep_highest_compiled(line, removed)
        return [
            kept[:, start:end].reshape(shape)
            for shape, start, end in zip(shapes, ends[:-1], ends[1:], strict=True)
        ]
    if not removed:
        return [np.ones(shape, bool) for shape in shapes]
    # The only copy of all scores, which loses its order.
    whole = np.empty(ends[-1], scores.dtype)
    for path, start, end in zip(paths, ends[:-1], ends[1:], strict=True):
        whole[start:end] = _ordered(scores.rows(path)).reshape(-1)
    whole.partition(int(removed) - 1)
    last = whole[int(removed) - 1]
    going = int(removed) - int(np.count_nonzero(whole[: int(removed)] < last))
    del whole
    keeps = []
    for path in paths:
        rows = _ordered(scores.rows(path))
        keep = rows > last
        equal = np.flatnonzero(rows == last)
        keep.reshape(-1)[equal[going:]] = True
        going = max(0, going - len(equal))
        keeps.append(keep)
    return keeps


def keep_highest(rows: Any, removed: int | jax.Array) -> Any:
    """Keep all but the lowest `removed` of each row, `[R, G] -> bool[R, G]`.

    Of equal scores the first go first; a NaN counts as infinite. In linear time and
    with one copy, on the host and in a compiled program.
    """
    if isinstance(rows, jax.Array) or isinstance(removed, jax.core.Tracer):
        return keep_highest_compiled(jnp.asarray(rows), removed)
    return _selected(rows, int(removed))


def _ordered(rows: Any) -> Host:
    """Scores as they are compared: NaN as infinite, subnormal numbers as 0."""
    rows = np.asarray(rows)
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float32)
    if np.isnan(rows.max(initial=0)):
        rows = np.where(np.isnan(rows), np.array(np.inf, rows.dtype), rows)
    return flush(rows)


def _selected(rows: Host, removed: int) -> Host:
    if not removed:
        return np.ones(rows.shape, bool)
    rows = _ordered(rows)
    count, size = rows.shape
    if removed == size - 1:
        highest = size - 1 - rows[:, ::-1].argmax(axis=1)
        alone: Host = np.arange(size) == highest[:, None]
        return alone
    if size <= SMALL_ROW and count > size:
        return _by_pairs(rows, removed)
    last = np.partition(rows, removed - 1, axis=1)[:, removed - 1 : removed].copy()
    keep = rows > last
    equal = rows == last
    # Of the equal ones the first go, as many as the lower ones leave to be removed.
    going = removed - (size - keep.sum(1) - equal.sum(1))
    if count == 1:
        keep[0, np.flatnonzero(equal[0])[int(going[0]) :]] = True
        return keep
    place = np.cumsum(equal, axis=1, dtype=np.min_scalar_type(size))
    keep |= equal & (place > going[:, None])
    return keep


def _by_pairs(rows: Host, removed: int) -> Host:
    """For many short rows: how many of its row stand below each, pair by pair."""
    below = np.zeros(rows.shape[::-1], np.uint8)
    for late in range(rows.shape[1]):
        for early in range(late):
            above = rows[:, early] > rows[:, late]
            below[early] += above
            below[late] += ~above
    return np.ascontiguousarray((below >= removed).T)


def _whole(x: jax.Array) -> jax.Array:
    """A copy on every device where sharding is part of the type: ranking needs all."""
    sharding = jax.typeof(x).sharding
    if all(part is None for part in sharding.spec):
        return x
    everywhere = jax.sharding.PartitionSpec()
    whole: jax.Array = jax.sharding.reshard(
        x, jax.sharding.NamedSharding(sharding.mesh, everywhere)
    )
    return whole


def _sharded_like(mask: Any, leaf: Any) -> jax.Array:
    if isinstance(mask, np.ndarray):
        return place_like(mask, leaf)
    if not isinstance(leaf, jax.core.Tracer):
        # Put only if need be: it would tie a mask to a device to which nothing is tied.
        if isinstance(leaf, jax.Array) and mask.sharding != leaf.sharding:
            mask = jax.device_put(mask, leaf.sharding)
    elif any(part is not None for part in jax.typeof(leaf).sharding.spec):
        mask = jax.sharding.reshard(mask, jax.typeof(leaf).sharding)
    placed: jax.Array = mask
    return placed
