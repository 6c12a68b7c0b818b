"""Scores of units: how much each matters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.shrinking.groups import Groups, Member
from jcompress.tensors import is_compressed

Scores = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
"""For each group one score a unit; the lowest are removed first."""


def score_units(groups: Groups, elements: Any) -> Scores:
    """Score every unit of every group: the absolute sum of its elements' scores.

    With `score_by_magnitude(variables)` of `jcompress.pruning.scores` that is the
    unit's L1 norm over all leaves that it touches; with the product of weights and
    gradients (`score_by_taylor`, too) how much the loss changes, to first order, if the
    unit goes.

    Args:
        groups: the groups.
        elements: a tree of the structure of the variables, with arrays of their shapes;
            None, or no entry, for a leaf that has no say.

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
    for group in groups:
        if group.name not in scored:
            raise MismatchError(
                f"score_units: no leaf of the group {group.name!r} has scores: "
                + ", ".join(member.path for member in group.members)
            )
    return {name: np.abs(total) for name, total in totals.items()}


def random_scores(groups: Groups, *, seed: int) -> Scores:
    """Scores that choose at random: the baseline of every other choice."""
    random = np.random.default_rng(seed)
    return {group.name: random.random(group.size) for group in groups}
