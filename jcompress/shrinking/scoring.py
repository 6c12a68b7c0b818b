"""Scores of units: how much each matters."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.shrinking.groups import Groups
from jcompress.tensors import is_compressed

Scores = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
"""For each group one score a unit; the lowest are removed first."""


def score_units(groups: Groups, elements: Any) -> Scores:
    """Score every unit of every group: the absolute sum of its elements' scores.

    With `jcompress.pruning.score_by_magnitude(variables)` that is the unit's L1 norm
    over all leaves that it touches; with the product of weights and gradients
    (`score_by_taylor`) how much the loss changes, to first order, if the unit goes.

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
    found = {}
    for name, leaf in named_leaves(elements):
        if leaf is None or is_compressed(leaf) or name not in shapes:
            continue
        array = np.asarray(jax.device_get(leaf), np.float64)
        if array.shape != shapes[name]:
            raise MismatchError(
                f"score_units: the scores of {name!r} have the shape "
                f"{list(array.shape)}, the leaf has {list(shapes[name])}"
            )
        found[name] = array
    scores = {}
    for group in groups:
        members = [member for member in group.members if member.path in found]
        if not members:
            raise MismatchError(
                f"score_units: no leaf of the group {group.name!r} has scores: "
                + ", ".join(member.path for member in group.members)
            )
        total = np.zeros(group.size)
        for member in members:
            array = found[member.path]
            others = tuple(a for a in range(array.ndim) if a != member.axis)
            mine = member.units >= 0
            np.add.at(total, member.units[mine], array.sum(axis=others)[mine])
        scores[group.name] = np.abs(total)
    return scores


def score_by_taylor(params: Any, gradients: Any) -> Any:
    """Score every weight by the change of the loss if it were zero, to first order.

    Signed, so that `score_units` adds up the changes of a whole unit.

    Args:
        params: a tree of float arrays.
        gradients: of the loss, on as many examples as are at hand.

    Returns:
        float32 arrays of the leaves' shapes: weight times gradient.
    """
    return jax.tree.map(
        lambda w, g: jnp.asarray(w).astype(jnp.float32) * g.astype(jnp.float32),
        params,
        gradients,
    )


def random_scores(groups: Groups, *, seed: int) -> Scores:
    """Scores that choose at random: the baseline of every other choice."""
    random = np.random.default_rng(seed)
    return {group.name: random.random(group.size) for group in groups}
