"""Which weights stay: trees of Booleans, True for keep."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning.patterns import NM, Unstructured
from jcompress.pruning.spec import Prune, PruningPlan, Scope, Sparsity, make_plan
from jcompress.rules import Rules
from jcompress.sites import Sites
from jcompress.tensors import is_compressed


def make_masks(
    scores: Any,
    rules: Rules[Prune],
    *,
    sites: Sites,
    sparsity: Sparsity | None = None,
    step: int | jax.Array | None = None,
) -> Any:
    """Choose which weights stay, by their scores.

    Groups are removed from the lowest score upwards, and of equal scores the first
    in the leaf goes first (over several leaves: in tree order), so the count is exact
    whatever the scores: of G competing groups `round(sparsity * G)` go, but one always
    stays. It can be traced, with the sparsity as an array too.

    Args:
        scores: a tree like the parameters, such as `score_by_magnitude(params)`.
        rules: ordered pairs of a predicate and a `Prune`; the first match wins.
        sites: the sites of the function that these parameters belong to.
        sparsity: for rules that have none of their own.
        step: where schedules are read.

    Returns:
        A tree of the structure of `scores`: Boolean arrays at the pruned leaves, True
        for keep, and None at the others, so that nothing is stored for them.

    Raises:
        MismatchError: a rule matches nothing, does not fit its leaves or has no
            sparsity; a leaf is missing or has a score that is NaN (checked outside of
            tracing); a schedule without a `step`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.pruning import Prune, score_by_magnitude
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.array([[4.0, -1.0], [2.0, -3.0]])}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 2)))
        >>> scores = score_by_magnitude(params)
        >>> masks = make_masks(scores, [(..., Prune(sparsity=0.5))], sites=sites)
        >>> apply_masks(params, masks)["w"].tolist()
        [[4.0, 0.0], [0.0, -3.0]]
    """
    plan = make_plan(rules, sites, sparsity, "make_masks")
    found = plan.find(scores)
    for path, leaf in found.items():
        if not isinstance(leaf, jax.core.Tracer) and bool(_has_nan(leaf)):
            raise MismatchError(f"make_masks: the scores of {path!r} hold a NaN")
    if step is None and any(map(callable, plan.sparsity.values())):
        raise MismatchError("make_masks: a sparsity is a schedule; say at which step=")
    return place_masks(scores, choose(plan, found, 0 if step is None else step))


def apply_masks(params: Any, masks: Any) -> Any:
    """Set the weights that a mask removes to zero.

    Args:
        params: a tree of arrays; gradients serve as well.
        masks: what `make_masks` returns; leaves are matched by name.

    Returns:
        The tree with exact zeros, each leaf of its own dtype.

    Raises:
        MismatchError: a mask has no leaf of its name and shape, or there is no mask.
    """
    return apply_by_name(params, dict(named_leaves(masks)))


def apply_by_name(tree: Any, masks: Mapping[str, Any]) -> Any:
    """Set what masks given by leaf name remove to zero."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_compressed)
    names = [name for name, _ in named_leaves(tree)]
    unknown = [name for name in masks if name not in names]
    if unknown or not masks:
        raise MismatchError(
            f"apply_masks: there is a mask for {unknown[0]!r}, but no such leaf"
            if unknown
            else "apply_masks: the tree of masks holds no mask"
        )
    done = [
        _masked(name, leaf, masks[name]) if name in masks else leaf
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, done)


def _masked(name: str, leaf: Any, mask: Any) -> jax.Array:
    if is_compressed(leaf):
        raise MismatchError(
            f"apply_masks: {name!r} is already compressed ({type(leaf).__name__}); "
            "mask before converting"
        )
    if jnp.shape(leaf) != jnp.shape(mask):
        raise MismatchError(
            f"apply_masks: {name!r} has shape {jnp.shape(leaf)} and its mask "
            f"{jnp.shape(mask)}"
        )
    leaf = jnp.asarray(leaf)
    return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def place_masks(tree: Any, masks: Mapping[str, jax.Array]) -> Any:
    """A tree of the structure of `tree` with masks by name, and None elsewhere."""
    treedef = jax.tree.structure(tree, is_leaf=is_compressed)
    placed = [masks.get(name) for name, _ in named_leaves(tree)]
    return jax.tree.unflatten(treedef, placed)


def choose(
    plan: PruningPlan, scores: Mapping[str, jax.Array], step: int | jax.Array
) -> dict[str, jax.Array]:
    """The masks of a plan by leaf name, sharded like the scores."""
    masks: dict[str, jax.Array] = {}
    for index, amount in plan.sparsity.items():
        paths = [path for path in plan.leaves if plan.rule_of[path] == index]
        spec = plan.leaves[paths[0]]
        value = jnp.asarray(amount(step), jnp.float32) if callable(amount) else amount
        given: dict[str, Any] = {path: _whole(scores[path]) for path in paths}
        if isinstance(spec.pattern, Unstructured | NM) and _few(given.values()):
            # On the host nothing is compiled, where each shape would be a program.
            given = {path: np.asarray(given[path]) for path in paths}
        rows = {p: spec.pattern.rows(given[p], plan.axes[p]) for p in paths}
        if spec.scope is Scope.GLOBAL:
            shapes = [rows[path].shape for path in paths]
            join = np if isinstance(rows[paths[0]], np.ndarray) else jnp
            line = join.concatenate([rows[path].reshape(1, -1) for path in paths], 1)
            kept = _keep_highest(line, spec.pattern.count(value, line.size))
            ends = [0]
            for shape in shapes:
                ends.append(ends[-1] + math.prod(shape))
            keep = {
                path: kept[:, start:end].reshape(shape)
                for path, shape, start, end in zip(
                    paths, shapes, ends[:-1], ends[1:], strict=True
                )
            }
        else:
            keep = {
                path: _keep_highest(row, spec.pattern.count(value, row.shape[1]))
                for path, row in rows.items()
            }
        for path in paths:
            mask = spec.pattern.spread(keep[path], plan.shapes[path], plan.axes[path])
            masks[path] = _sharded_like(jax.device_put(mask), scores[path])
    return {path: masks[path] for path in plan.leaves}


# Comparing all pairs beats sorting by far while the pairs of a row fit in registers.
_SMALL_ROW = 16


@jax.jit
def _has_nan(x: jax.Array) -> jax.Array:
    return jnp.isnan(x).any()


_FEW = 2**22
"""Scores up to which sorting on the host costs less than compiling a program."""


def _few(scores: Iterable[jax.Array]) -> bool:
    return all(
        not isinstance(x, jax.core.Tracer) and x.is_fully_addressable and x.size <= _FEW
        for x in scores
    )


def _keep_highest(rows: Any, removed: int | jax.Array) -> Any:
    """Keep all but the lowest `removed` of each row, `[R, G] -> bool[R, G]`.

    Of equal scores the first go first; a NaN counts as infinite.
    """
    if not isinstance(rows, np.ndarray) or isinstance(removed, jax.core.Tracer):
        return _compiled(jnp.asarray(rows), removed)
    order = np.argsort(np.where(np.isnan(rows), np.inf, rows), 1, kind="stable")
    keep = np.ones(rows.shape, bool)
    np.put_along_axis(keep, order[:, : int(removed)], False, axis=1)
    return keep


@jax.jit
def _compiled(rows: jax.Array, removed: int | jax.Array) -> jax.Array:
    rows = jnp.where(jnp.isnan(rows), jnp.inf, rows)
    size = rows.shape[1]
    places = jnp.arange(size, dtype=jnp.int32)
    if size <= _SMALL_ROW:
        mine, other = rows[:, :, None], rows[:, None, :]
        earlier = (places[None, :] < places[:, None])[None]
        below = (other < mine) | ((other == mine) & earlier)
        return jnp.sum(below, axis=-1, dtype=jnp.int32) >= removed
    order = jnp.argsort(rows, axis=1, stable=True)
    verdicts = jnp.broadcast_to(places >= removed, rows.shape)
    keep: jax.Array = jnp.put_along_axis(
        jnp.zeros(rows.shape, bool), order, verdicts, axis=1, inplace=False
    )
    return keep


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


def _sharded_like(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    sharding = jax.typeof(leaf).sharding
    if not isinstance(leaf, jax.core.Tracer):
        # Put only if need be: it would tie a mask to a device to which nothing is tied.
        if mask.sharding != leaf.sharding:
            mask = jax.device_put(mask, leaf.sharding)
    elif any(part is not None for part in sharding.spec):
        mask = jax.sharding.reshard(mask, sharding)
    return mask
