"""Names of the leaves of a parameter tree, as rules, reports and errors write them."""

from typing import Any

import jax

from jcompress.tensors import is_compressed

__all__ = ["named_leaves", "path_name"]


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf: its keys joined by slashes, `params/Dense_0/kernel`.

    An NNX variable holds its array in an attribute; that last key is dropped, so the
    name is the same for the module, its state and the optimizer's copy of it.
    """
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey):
        last = path[-1].name
        if len(path) > 1 and last in ("value", "raw_value"):
            path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names; a compressed leaf counts as one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compressed)
    return [(path_name(path), leaf) for path, leaf in leaves]
