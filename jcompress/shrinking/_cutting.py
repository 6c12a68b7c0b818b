"""Apply the masks of a plan to the arrays of a tree."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.shrinking._sized import Keeps, cut
from jcompress.tensors import is_compressed

Masks = Mapping[str, Mapping[int, Any]]
"""By the name of an array and by axis which positions are kept."""


def axis_name(path: str, axis: int, kind: str = "leaf") -> str:
    """How plans and errors write an axis of a leaf, of an argument or of a result."""
    return f"{array_name(path, kind)}:{axis}"


def array_name(path: str, kind: str = "leaf") -> str:
    """How errors write a leaf, an argument or a result; the only one has no name."""
    return path if kind == "leaf" else f"{kind} {path}".rstrip()


def keeps_of(masks: Masks, name: str, rank: int) -> Keeps:
    """For each axis of an array which positions are kept."""
    axes = masks.get(name, {})
    return tuple(
        np.asarray(axes[axis], bool) if axis in axes else None for axis in range(rank)
    )


def changed(
    variables: Any, masks: Masks, transform: str, change: Callable[..., Any]
) -> Any:
    """A tree with other leaves where there are masks.

    Args:
        variables: the tree.
        masks: what is kept.
        transform: who asks, for errors.
        change: `change(name, leaf, keeps, axes)` makes the new leaf.

    Raises:
        MismatchError: the tree lacks a leaf or it is compressed; or `change` raises it.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(
        variables, is_leaf=is_compressed
    )
    names = [path_name(path) for path, _ in flat]
    leaves = changed_leaves(names, [x for _, x in flat], masks, transform, change)
    return jax.tree_util.tree_unflatten(structure, leaves)


def changed_leaves(
    names: Sequence[str],
    leaves: Sequence[Any],
    masks: Masks,
    transform: str,
    change: Callable[..., Any],
    kind: str = "leaf",
) -> list[Any]:
    """As `changed`, of arrays that are called leaves, arguments or results."""
    absent = [path for path in masks if path not in set(names)]
    if absent:
        what = "tree" if kind == "leaf" else "function"
        raise MismatchError(
            f"{transform}: the plan is for another {what}: it has no {kind} "
            f"{absent[0]!r}; it has {', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''}"
        )
    made = []
    for name, leaf in zip(names, leaves, strict=True):
        if name not in masks:
            made.append(leaf)
            continue
        if is_compressed(leaf):
            raise MismatchError(
                f"{transform}: {name!r} is a {type(leaf).__name__}; shrink the dense "
                "tree and compress afterwards"
            )
        keeps = keeps_of(masks, name, np.ndim(leaf))
        made.append(change(array_name(name, kind), leaf, keeps, masks[name]))
    return made


def _fits(
    name: str, leaf: Any, axes: Mapping[int, Any], *, after: bool, of: str, hint: str
) -> None:
    for axis, mask in axes.items():
        wanted = int(np.sum(mask)) if after else len(mask)
        shape = list(np.shape(leaf))
        size = shape[axis] if axis < len(shape) else None
        if size != wanted:
            kind = "shrunk" if after else "dense"
            raise MismatchError(
                f"{axis_name(name, axis)}: the plan is for {wanted} positions "
                f"of the {kind} {of}, and this array has the shape {shape}{hint}"
            )


def smaller(
    name: str, leaf: Any, keeps: Keeps, axes: Mapping[int, Any], of: str = "tree"
) -> Any:
    """A leaf without what is not kept."""
    _fits(name, leaf, axes, after=False, of=of, hint="")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        sizes = zip(leaf.shape, keeps, strict=True)
        shape = tuple(n if k is None else int(k.sum()) for n, k in sizes)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)
    return cut(leaf, keeps)


def zeroed(name: str, leaf: Any, keeps: Keeps, axes: Mapping[int, Any]) -> Any:
    """A leaf with zeros at what is not kept."""
    _fits(name, leaf, axes, after=False, of="tree", hint="")
    for axis, keep in enumerate(keeps):
        if keep is not None:
            wide = keep.reshape([-1 if d == axis else 1 for d in range(leaf.ndim)])
            xp: Any = np if isinstance(leaf, np.ndarray) else jnp
            leaf = xp.where(wide, leaf, xp.zeros((), leaf.dtype))
    return leaf


def whole(
    name: str,
    leaf: Any,
    keeps: Keeps,
    axes: Mapping[int, Any],
    of: str = "tree",
    hint: str = "",
) -> Any:
    """The shape of the dense leaf from which a smaller one was cut."""
    _fits(name, leaf, axes, after=True, of=of, hint=hint)
    shape = list(leaf.shape)
    for axis, keep in enumerate(keeps):
        if keep is not None:
            shape[axis] = len(keep)
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
