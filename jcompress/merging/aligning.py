"""Bring the units of one model into the order of another's, so that both average."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.merging.averaging import check_alike
from jcompress.shrinking import Group, find_groups

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
    ours, theirs = _arrays(params), _arrays(reference)
    orders = {group.name: np.arange(group.size) for group in groups}
    members = _by_leaf(groups)
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
    moved = {
        name: _permuted(leaf, members.get(name, {}), orders)
        for name, leaf in ours.items()
    }

    def placed(path: tuple[Any, ...], leaf: Any) -> Any:
        new = moved.get(path_name(path))
        return leaf if new is None else jnp.asarray(new, jnp.result_type(leaf))

    aligned = jax.tree_util.tree_map_with_path(placed, params)
    _check_same(fn, params, aligned, args, kwargs, tolerance)
    return aligned


Places = Mapping[int, list[tuple[str, Host]]]
"""For each axis of a leaf the groups, and the units of its positions."""


def _arrays(tree: Any) -> dict[str, Host]:
    return {
        name: np.asarray(leaf)
        for name, leaf in named_leaves(tree)
        if hasattr(leaf, "shape")
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    }


def _by_leaf(groups: Any) -> dict[str, dict[int, list[tuple[str, Host]]]]:
    found: dict[str, dict[int, list[tuple[str, Host]]]] = {}
    for group in groups:
        for member in group.members:
            axes = found.setdefault(member.path, {})
            axes.setdefault(member.axis, []).append((group.name, member.units))
    return found


def _positions(units: Host, size: int) -> Host:
    """Where each unit stands, [units, positions of each]."""
    return np.stack([np.flatnonzero(units == unit) for unit in range(size)])


def _index(parts: list[tuple[str, Host]], orders: Mapping[str, Host]) -> Host:
    index = np.arange(len(parts[0][1]))
    for name, units in parts:
        places = _positions(units, len(orders[name]))
        index[places] = places[orders[name]]
    return index


def _permuted(
    leaf: Host, places: Places, orders: Mapping[str, Host], *, but: int | None = None
) -> Host:
    for axis, parts in places.items():
        if axis != but:
            leaf = np.take(leaf, _index(parts, orders), axis=axis)
    return leaf


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
        places = _positions(member.units, group.size)
        moved = _permuted(leaf, members[member.path], orders, but=member.axis)

        def rows(array: Host, axis: int = member.axis, places: Host = places) -> Host:
            kind = np.complex128 if np.iscomplexobj(array) else np.float64
            front = np.moveaxis(array, axis, 0)[places]
            return front.reshape(len(places), -1).astype(kind)

        total += (rows(theirs[member.path]) @ rows(moved).conj().T).real
    return total


def _check_same(
    fn: Callable[..., Any],
    before: Any,
    after: Any,
    args: Any,
    kwargs: Any,
    tolerance: float,
) -> None:
    run = jax.jit(lambda tree: fn(tree, *args, **kwargs))
    for was, now in zip(
        jax.tree.leaves(run(before)), jax.tree.leaves(run(after)), strict=True
    ):
        was, now = (np.asarray(x, np.float64) for x in (was, now))
        size = np.abs(was).max(initial=0.0)
        far = np.abs(now - was).max(initial=0.0)
        if not far <= tolerance * max(size, np.finfo(np.float32).tiny):
            raise MismatchError(
                f"align: the function changed by {far / size if size else far:.2g} of "
                "its largest output, so that something in it depends on the order of "
                "the units; it cannot be aligned"
            )
