"""Along which axes of a mesh a value differs, inside of `shard_map`."""

from collections.abc import Sequence
from typing import Any

import jax


def varying(*values: Any) -> frozenset[str]:
    """The mesh axes along which any array of these trees differs between devices.

    Known where `shard_map` checks it (`check_vma`); elsewhere there are none.
    """
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(values):
        kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        manual = getattr(kind, "manual_axis_type", None)
        # What JAX calls it depends on its version.
        found = getattr(manual, "varying", None) or getattr(kind, "vma", None)
        axes |= frozenset(found or ())
    return axes


def spread(tree: Any, axes: Sequence[str] | frozenset[str]) -> Any:
    """The same arrays, declared to differ along these axes of the mesh, too."""

    def one(leaf: Any) -> Any:
        more = tuple(sorted(frozenset(axes) - varying(leaf)))
        return jax.lax.pcast(leaf, more, to="varying") if more else leaf

    return jax.tree.map(one, tree)
