"""Bring the units of one model into the order of another's, so that both average."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from jcompress.errors import MismatchError
from jcompress.merging.averaging import check_alike
from jcompress.shrinking import Group, find_groups
from jcompress.shrinking.permuting import (
    Places,
    check_same_function,
    host_arrays,
    permute,
    permuted_leaf,
    places_by_leaf,
    positions,
)

Host = np.ndarray[Any, Any]


def align(
    fn: Callable[..., Any],
    params: Any,
    reference: Any,
    *args: Any,
    key: jax.Array,
    rounds: int = 50,
    tolerance: float = 1e-4,
    **kwargs: Any,
) -> Any:
    """Permute the hidden units of a model so that its weights match another's.

    Channels, heads and widths can be numbered in any order; two models that were
    trained apart number them differently, and their mean is useless until they agree.
    Which axes have to be permuted together is found in the function itself, as for
    shrinking, so this works for any model. For one group of axes after the other, in
    random order, the permutation is the one that makes the sum of the products of both
    models' weights largest, given those of the other groups, until none changes.

    The function is evaluated before and after: that of the result is that of `params`.

    Args:
        fn: any function of a parameter tree.
        params: the tree whose units are permuted.
        reference: the tree that it is to resemble.
        *args: further arguments of `fn`: a batch.
        key: for the order of the groups.
        rounds: passes over the groups, at most.
        tolerance: by how much outputs may differ, as a share of the largest.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        A tree like `params` that computes the same.

    Raises:
        MismatchError: the trees differ in structure, shapes or dtypes, a leaf is
            compressed, the function has no units to permute, or the permuted function
            is another one, since something in it depends on the order of units.

    References:
        Ainsworth et al. 2023, "Git Re-Basin: Merging Models modulo Permutation
        Symmetries", section 3.2, algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.merging import align
        >>> model = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> ours = {
        ...     "up": jax.random.normal(keys[0], (4, 8)),
        ...     "down": jax.random.normal(keys[1], (8, 2)),
        ... }
        >>> order = jax.random.permutation(keys[2], 8)
        >>> other = {"up": ours["up"][:, order], "down": ours["down"][order]}
        >>> found = align(model, other, ours, jnp.ones((1, 4)), key=keys[2])
        >>> bool((found["up"] == ours["up"]).all())
        True
    """
    check_alike("align", [params, reference])
    groups = find_groups(fn, params, *args, **kwargs)
    if not len(groups):
        raise MismatchError("align: the function has no units that could be permuted")
    ours, theirs = host_arrays(params), host_arrays(reference)
    orders = {group.name: np.arange(group.size) for group in groups}
    members = places_by_leaf(groups)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    table = list(groups)
    for _ in range(rounds):
        changed = False
        for number in draw.permutation(len(table)):
            group = table[number]
            scores = _scores(group, ours, theirs, members, orders)
            _, best = linear_sum_assignment(scores, maximize=True)
            gain = scores[np.arange(group.size), best].sum()
            kept = scores[np.arange(group.size), orders[group.name]].sum()
            if gain > kept + 1e-9 * max(1.0, abs(kept)):
                orders[group.name], changed = best, True
        if not changed:
            break
    aligned = permute(params, groups, orders)
    check_same_function("align", fn, params, aligned, args, kwargs, tolerance)
    return aligned


def _scores(
    group: Group,
    ours: Mapping[str, Host],
    theirs: Mapping[str, Host],
    members: Mapping[str, Places],
    orders: Mapping[str, Host],
) -> Host:
    """How well unit j of ours stands in for unit i of theirs, [units, units]."""
    total = np.zeros((group.size, group.size))
    for member in group.members:
        leaf = ours[member.path]
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        places = positions(member.units, group.size)
        moved = permuted_leaf(leaf, members[member.path], orders, but=member.axis)

        def rows(array: Host, axis: int = member.axis, places: Host = places) -> Host:
            kind = np.complex128 if np.iscomplexobj(array) else np.float64
            front = np.moveaxis(array, axis, 0)[places]
            return front.reshape(len(places), -1).astype(kind)

        total += (rows(theirs[member.path]) @ rows(moved).conj().T).real
    return total
