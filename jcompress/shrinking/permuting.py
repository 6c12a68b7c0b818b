"""Other orders of units: a function's hidden units may be numbered in any."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.shrinking.groups import Group

Host = np.ndarray[Any, Any]

Places = Mapping[int, list[tuple[str, Host]]]
"""For each axis of a leaf the groups, and the units of its positions."""


def host_arrays(tree: Any) -> dict[str, Host]:
    """The numeric leaves of a tree by name, on the host."""
    return {
        name: np.asarray(leaf)
        for name, leaf in named_leaves(tree)
        if hasattr(leaf, "shape")
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    }


def places_by_leaf(groups: Iterable[Group]) -> dict[str, dict[int, Any]]:
    """The `Places` of each leaf that has an axis in a group."""
    found: dict[str, dict[int, list[tuple[str, Host]]]] = {}
    for group in groups:
        for member in group.members:
            axes = found.setdefault(member.path, {})
            axes.setdefault(member.axis, []).append((group.name, member.units))
    return found


def positions(units: Host, size: int) -> Host:
    """Where each unit stands, [units, positions of each]."""
    return np.stack([np.flatnonzero(units == unit) for unit in range(size)])


def permuted_leaf(
    leaf: Host, places: Places, orders: Mapping[str, Host], *, but: int | None = None
) -> Host:
    """A leaf with its units in other orders.

    Args:
        leaf: the array.
        places: its axes with units.
        orders: for each group, which unit comes at each place.
        but: an axis that stays as it is.
    """
    for axis, parts in places.items():
        if axis != but:
            leaf = np.take(leaf, _index(parts, orders), axis=axis)
    return leaf


def _index(parts: list[tuple[str, Host]], orders: Mapping[str, Host]) -> Host:
    index = np.arange(len(parts[0][1]))
    for name, units in parts:
        own = positions(units, len(orders[name]))
        index[own] = own[orders[name]]
    return index


def permute(params: Any, groups: Iterable[Group], orders: Mapping[str, Host]) -> Any:
    """A tree with the units of all groups in other orders.

    Args:
        params: the tree.
        groups: the groups, as `find_groups` gives them.
        orders: for each of them, by name, which unit comes at each place.
    """
    members = places_by_leaf(groups)
    arrays = host_arrays(params)

    def placed(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_name(path)
        if name not in members:
            return leaf
        moved = permuted_leaf(arrays[name], members[name], orders)
        return jnp.asarray(moved, jnp.result_type(leaf))

    return jax.tree_util.tree_map_with_path(placed, params)


def check_same_function(
    transform: str,
    fn: Callable[..., Any],
    before: Any,
    after: Any,
    args: Any,
    kwargs: Any,
    tolerance: float,
) -> None:
    """Raise MismatchError if a function gives something else for another tree."""
    run = jax.jit(lambda tree: fn(tree, *args, **kwargs))
    for was, now in zip(
        jax.tree.leaves(run(before)), jax.tree.leaves(run(after)), strict=True
    ):
        was, now = (np.asarray(x, np.float64) for x in (was, now))
        size = np.abs(was).max(initial=0.0)
        far = np.abs(now - was).max(initial=0.0)
        if not far <= tolerance * max(size, np.finfo(np.float32).tiny):
            raise MismatchError(
                f"{transform}: the function changed by "
                f"{far / size if size else far:.2g} of its largest output, so that "
                "something in it depends on the order of the units; they cannot be "
                "permuted"
            )
