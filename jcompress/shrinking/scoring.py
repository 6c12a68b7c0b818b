"""Scores of units: how much each matters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.shrinking.groups import Groups, Member
from jcompress.sites import leaf_axes
from jcompress.tensors import is_compressed

Scores = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
"""For each group one score a unit; the lowest are removed first."""


def score_units(groups: Groups, elements: Any, *, mean: bool = False) -> Scores:
    """Score every unit of every group: the absolute sum of its elements' scores.

    With `score_by_magnitude(variables)` of `jcompress.pruning.scores` that is the
    unit's L1 norm over all leaves that it touches; with the product of weights and
    gradients (`score_by_taylor`, too) how much the loss changes, to first order, if the
    unit goes.

    Args:
        groups: the groups.
        elements: a tree of the structure of the variables, with arrays of their shapes;
            None, or no entry, for a leaf that has no say.
        mean: take the mean over a unit's elements in place of the absolute sum. That
            gives back scores which all elements of a unit share, such as those of
            `score_by_activations`.

    Returns:
        float64 [units] by group.

    Raises:
        MismatchError: an array has another shape than its leaf, or a group has no leaf
            with scores.

    References:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets"; Molchanov et al.
        2019, "Importance Estimation for Neural Network Pruning", equation 8; Fang et
        al. 2023, "DepGraph", section 3.3 (sums over coupled leaves).
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in groups.sites.leaves}
    totals = {group.name: np.zeros(group.size) for group in groups}
    counts = {group.name: np.zeros(group.size) for group in groups}
    members: dict[str, list[tuple[str, Member]]] = {}
    for group in groups:
        for member in group.members:
            members.setdefault(member.path, []).append((group.name, member))
    scored: set[str] = set()
    for name, leaf in named_leaves(elements):
        if leaf is None or is_compressed(leaf) or name not in shapes:
            continue
        if np.shape(leaf) != shapes[name]:
            raise MismatchError(
                f"score_units: the scores of {name!r} have the shape "
                f"{list(np.shape(leaf))}, the leaf has {list(shapes[name])}"
            )
        # One leaf at a time, and summed without a copy of it in float64.
        array = np.asarray(leaf)
        if np.iscomplexobj(array):
            array = np.abs(array)
        for group_name, member in members.get(name, ()):
            scored.add(group_name)
            others = tuple(a for a in range(array.ndim) if a != member.axis)
            mine = member.units >= 0
            sums = array.sum(axis=others, dtype=np.float64)
            np.add.at(totals[group_name], member.units[mine], sums[mine])
            each = array.size // max(1, len(mine))
            np.add.at(counts[group_name], member.units[mine], each)
    for group in groups:
        if group.name not in scored:
            raise MismatchError(
                f"score_units: no leaf of the group {group.name!r} has scores: "
                + ", ".join(member.path for member in group.members)
            )
    if mean:
        return {n: total / np.maximum(counts[n], 1) for n, total in totals.items()}
    return {name: np.abs(total) for name, total in totals.items()}


def spread_units(groups: Groups, scores: Scores) -> dict[str, Any]:
    """Give the weights that make a unit the score of the unit: the way back.

    For masks of whole units, by `jcompress.pruning.make_masks` and the pattern
    `Channels()`, from scores that stand elsewhere: those of a batch norm's scales, or
    of activations that the next layer meets.

    Args:
        groups: the groups.
        scores: of the groups, as `score_units` gives them.

    Returns:
        float32 arrays by the names of the weights that have an output axis in one of
        the scored groups; a weight with several has the mean of their scores, and
        positions of no unit score 0. As a tree it is flat: give it to `make_masks` with
        the sites, and the masks to `apply_masks`, which match by name.

    Raises:
        MismatchError: a group has another number of scores than units, or no weight
            makes any unit.
    """
    made: dict[str, list[np.ndarray[Any, Any]]] = {}
    for group in groups:
        if group.name not in scores:
            continue
        own = np.asarray(scores[group.name], np.float32)
        if own.shape != (group.size,):
            raise MismatchError(
                f"spread_units: the group {group.name!r} has {group.size} units and "
                f"scores of the shape {list(own.shape)}"
            )
        for member in group.members:
            products = groups.sites.products(member.path)
            if not products or member.axis not in leaf_axes(products).output:
                continue
            shape = products[0].shape
            line = np.where(member.units >= 0, own[member.units], np.float32(0))
            wide = [1] * len(shape)
            wide[member.axis] = len(line)
            made.setdefault(member.path, []).append(
                np.broadcast_to(line.reshape(wide), shape)
            )
    if not made:
        raise MismatchError(
            "spread_units: no weight makes the units of "
            + (", ".join(name for name in scores) or "no group")
        )
    return {path: np.mean(parts, axis=0) for path, parts in made.items()}


def random_scores(groups: Groups, *, seed: int) -> Scores:
    """Scores that choose at random: the baseline of every other choice."""
    random = np.random.default_rng(seed)
    return {group.name: random.random(group.size) for group in groups}
