"""Putting the mean of several blocks or layers into the ones that stay."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.depth.blocks import below, check_blocks, named
from jcompress.depth.stacks import is_stack
from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.shrinking.groups import Groups, Member
from jcompress.shrinking.plan import Plan, axis_name
from jcompress.tensors import is_compressed

_Run = tuple[int, list[int], Any]
"""A layer that stays, the layers whose mean it gets, and their weights."""


def merge_blocks(
    variables: Any,
    into: str,
    others: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
) -> Any:
    """Put the mean of several like blocks into one of them.

    Args:
        variables: the tree.
        into: name of the block that gets the mean.
        others: names of the others, whose arrays stay; leave them out afterwards.
        weights: of `into` and of the others, in this order; equal by default.

    Returns:
        The tree, in which arrays of floats of `into` are means, taken in float32 at
        least; other arrays are its own.

    Raises:
        MismatchError: there are no others, a name has no leaf below it or is given
            twice, the blocks differ, a leaf is compressed, or the weights are not one
            number a block, none negative and not all zero.
    """
    leaves = dict(named(variables))
    check_blocks(others, list(leaves), "merge_blocks")
    blocks = [into, *others]
    check_blocks(blocks, list(leaves), "merge_blocks")
    share = np.ones(len(blocks)) if weights is None else np.asarray(weights, float)
    if share.shape != (len(blocks),) or not _weigh(share):
        raise MismatchError(
            f"merge_blocks: weights are {len(blocks)} numbers, one for each of "
            f"{blocks}, none negative and not all zero, not {weights!r}"
        )

    def change(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        if not below(name, into):
            return leaf
        parts = []
        for block in blocks:
            twin = block + name[len(into) :]
            if twin not in leaves or leaves[twin].shape != leaf.shape:
                raise MismatchError(
                    f"merge_blocks: {name!r} is {list(leaf.shape)}, and there is no "
                    f"{twin!r} of that shape"
                )
            _check_dense(twin, leaves[twin], "merge_blocks")
            parts.append(leaves[twin])
        return _mean(jnp, parts, share) if _has_mean(leaf) else leaf

    return jax.tree_util.tree_map_with_path(change, variables, is_leaf=is_compressed)


def merge_layers(
    variables: Any,
    groups: Groups,
    plan: Plan,
    *,
    weights: Mapping[str, Any] | None = None,
) -> Any:
    """Put the layers that a plan removes from a stack into the ones that it keeps.

    A layer that stays becomes the mean of itself and the removed ones that follow it up
    to the next that stays; removed ones before the first that stays join that. The
    sizes are as before: `shrink(merge_layers(variables, groups, plan), plan)` is the
    smaller tree, `shrunk(fn, plan)` its function.

    Args:
        variables: the tree that the plan was made for.
        groups: the groups that the plan was made from.
        plan: keeps layers of one or more stacks, the groups of the layers that a `scan`
            runs over. Its other groups play no part here.
        weights: for each stack one number a layer, such as the scores of
            `score_layers`; equal by default.

    Returns:
        The tree, in which arrays of floats of the layers that stay are means, taken in
        float32 at least; all else is as it was.

    Raises:
        MismatchError: the plan keeps no stack or is not of these groups, a leaf is
            missing or compressed, or the weights are not one number a layer, none
            negative and not all of a mean zero.
    """
    stacks = [name for name in plan.kept if is_stack(groups, groups[name])]
    if not stacks:
        raise MismatchError(
            f"merge_layers: the plan removes no layers of a stack, only units of "
            f"{list(plan.kept)}"
        )
    if weights is not None and (unknown := set(weights) - set(stacks)):
        raise MismatchError(
            f"merge_layers: the weights are of {sorted(unknown)}, the stacks of the "
            f"plan are {stacks}"
        )
    leaves = dict(named(variables))
    for name in stacks:
        group = groups[name]
        given = None if weights is None else weights.get(name)
        runs = _runs(name, group.size, plan.kept[name], given)
        for member in group.members:
            if member.path not in leaves:
                raise MismatchError(f"merge_layers: there is no leaf {member.path!r}")
            leaf = leaves[member.path]
            _check_dense(member.path, leaf, "merge_layers")
            if np.shape(leaf)[member.axis] != len(member.units):
                raise MismatchError(
                    f"merge_layers: {axis_name(member.path, member.axis)} has "
                    f"{np.shape(leaf)[member.axis]} positions, the plan is for "
                    f"{len(member.units)}; merge before you shrink"
                )
            if _has_mean(leaf):
                leaves[member.path] = _merged(leaf, member, group.size, runs)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves[path_name(path)], variables, is_leaf=is_compressed
    )


def _runs(name: str, size: int, kept: Any, weights: Any) -> list[_Run]:
    share = np.ones(size) if weights is None else np.asarray(weights, float)
    if share.shape != (size,):
        raise MismatchError(
            f"merge_layers: the weights of {name!r} are {size} numbers, one a layer, "
            f"not {weights!r}"
        )
    stay = np.asarray(kept)
    if stay.max() >= size:
        raise MismatchError(
            f"merge_layers: the plan keeps layer {int(stay.max())} of {name!r}, which "
            f"has {size}"
        )
    owner = np.maximum(np.searchsorted(stay, np.arange(size), "right") - 1, 0)
    found = []
    for number, layer in enumerate(stay):
        run = np.flatnonzero(owner == number)
        if not _weigh(share[run]):
            raise MismatchError(
                f"merge_layers: the weights of the layers {run.tolist()} of {name!r}, "
                f"{share[run].tolist()}, are negative or all zero"
            )
        found.append((int(layer), run.tolist(), share[run]))
    return found


def _merged(leaf: Any, member: Member, size: int, runs: Sequence[_Run]) -> Any:
    """A leaf with the means of its layers' slices."""
    xp: Any = np if isinstance(leaf, np.ndarray) else jnp
    slices = list(xp.moveaxis(leaf, member.axis, 0))
    order = np.argsort(member.units, kind="stable")[int((member.units < 0).sum()) :]
    # A layer has one position, or several if the axis holds other things, too.
    for column in order.reshape(size, -1).T:
        before = list(slices)
        for layer, run, share in runs:
            slices[column[layer]] = _mean(xp, [before[column[i]] for i in run], share)
    return xp.moveaxis(xp.stack(slices), 0, member.axis)


def _weigh(share: Any) -> bool:
    """Whether numbers can be the weights of a mean."""
    return bool((share >= 0).all() and share.sum() > 0)


def _has_mean(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _mean(xp: Any, arrays: Sequence[Any], weights: Any) -> Any:
    first = arrays[0]
    if len(arrays) == 1:
        return first
    wide = jnp.float32 if first.dtype.itemsize < 4 else first.dtype
    share = weights / weights.sum()
    parts = [
        array.astype(wide) * xp.asarray(part, wide)
        for array, part in zip(arrays, share, strict=True)
    ]
    return sum(parts[1:], start=parts[0]).astype(first.dtype)


def _check_dense(name: str, leaf: Any, transform: str) -> None:
    if is_compressed(leaf):
        raise MismatchError(
            f"{transform}: {name!r} is a {type(leaf).__name__}; merge dense arrays, "
            "then compress"
        )
