"""Bytes, parameters and zeros of a parameter tree."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.leaves import named_leaves
from jcompress.sites import Sites
from jcompress.tensors import QTensor, is_compressed


def stored_bytes(tree: Any) -> int:
    """Bytes of all the arrays of a tree, as they lie in memory and on disk.

    Args:
        tree: arrays and compressed leaves. Random keys count with their data, Python
            numbers like the NumPy scalars that they become; functions, strings and
            other leaves that are no numbers count nothing.
    """
    return sum(leaf_bytes(leaf) for _, leaf in named_leaves(tree))


def leaf_bytes(leaf: Any) -> int:
    """Bytes of one leaf, see `stored_bytes`."""
    if is_compressed(leaf):
        return int(leaf.stored_bytes)
    if _is_key(leaf):
        return int(jax.random.key_data(leaf).nbytes)
    if isinstance(leaf, bool | int | float | complex):
        return int(np.asarray(leaf).nbytes)
    if not _is_array(leaf):
        return 0
    return int(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize)


def parameters(tree: Any) -> int:
    """Number of elements of the dense arrays that the leaves of a tree stand for.

    Args:
        tree: arrays and compressed leaves; random keys, functions, strings and other
            leaves that are no numbers count nothing.
    """
    return sum(
        math.prod(np.shape(leaf))
        for _, leaf in named_leaves(tree)
        if _holds_numbers(leaf)
    )


def nonzero(tree: Any, *, sites: Sites | None = None) -> int:
    """Number of elements other than zero in the dense arrays of a tree.

    Args:
        tree: parameters; compressed leaves are made dense one at a time. Leaves that
            hold no numbers count nothing, as in `parameters`.
        sites: if given, only weights of products and lookups are counted, not biases,
            scales and statistics.
    """
    names = None if sites is None else set(sites.weights)
    return sum(
        int(np.count_nonzero(leaf.dense() if is_compressed(leaf) else leaf))
        for name, leaf in named_leaves(tree)
        if (names is None or name in names) and _holds_numbers(leaf)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafBytes:
    """What one leaf of a tree takes before and after compression.

    Attributes:
        name: the leaf's name.
        form: how it is stored afterwards, such as "QTensor, int4" or "float32";
            "removed" if it is gone.
        before: bytes before; 0 for a leaf that is new.
        after: bytes after; 0 for a leaf that is gone.
    """

    name: str
    form: str
    before: int
    after: int


def bytes_by_leaf(before: Any, after: Any) -> tuple[LeafBytes, ...]:
    """The bytes of every leaf of two trees, matched by name.

    Args:
        before: the tree before compression.
        after: the tree after it.

    Returns:
        One row for each name that either tree has, in the order of `before`, new names
        last.
    """
    old, new = dict(named_leaves(before)), dict(named_leaves(after))
    return tuple(
        LeafBytes(
            name=name,
            form=_form(new[name]) if name in new else "removed",
            before=leaf_bytes(old.get(name, "")),
            after=leaf_bytes(new.get(name, "")),
        )
        for name in {**old, **new}
    )


def _form(leaf: Any) -> str:
    if is_compressed(leaf):
        kind = type(leaf).__name__
        return f"{kind}, {leaf.format}" if isinstance(leaf, QTensor) else kind
    return str(leaf.dtype) if _is_array(leaf) else type(leaf).__name__


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_key(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _holds_numbers(leaf: Any) -> bool:
    number = isinstance(leaf, bool | int | float | complex)
    return number or (_is_array(leaf) and not _is_key(leaf))
