"""What is removed from a tree, and the smaller tree."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress._paths import named_leaves, path_name
from jcompress._trace import trace
from jcompress.shrinking._resizing import Conflict, Keeps, cut, evaluate
from jcompress.tensors import is_compressed


class ShrinkError(ValueError):
    """A plan that cannot be made or does not fit; names the leaf and the operation."""


def axis_name(path: str, axis: int) -> str:
    """How plans and errors write an axis of a leaf."""
    return f"{path}:{axis}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Which units are kept.

    A pytree of plain arrays, so that it can be saved by `jcompress.checkpoint`;
    `Plan.from_tree` makes one of what `checkpoint.load` gives back.

    Attributes:
        kept: by group int32, the numbers of the units that are kept, ascending.
        masks: by leaf and axis (a number, as text) bool [size of the axis]: True keeps.
            Axes that do not shrink are not listed.
    """

    kept: Mapping[str, Any]
    masks: Mapping[str, Mapping[str, Any]]

    @property
    def widths(self) -> dict[str, int]:
        """The new size of every axis that shrinks, as `leaf:axis`."""
        return {
            axis_name(path, int(axis)): int(np.sum(mask))
            for path, axes in self.masks.items()
            for axis, mask in axes.items()
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Plan":
        """The plan that a checkpoint holds.

        Args:
            tree: nested dicts with the entries `kept` and `masks`.

        Raises:
            ShrinkError: the tree is no plan.
        """
        if set(tree) != {"kept", "masks"}:
            raise ShrinkError(
                f"a plan has the entries 'kept' and 'masks', not {sorted(tree)}"
            )
        kept = {name: np.asarray(leaf) for name, leaf in named_leaves(tree["kept"])}
        masks: dict[str, dict[str, Any]] = {}
        for name, leaf in named_leaves(tree["masks"]):
            path, _, axis = name.rpartition("/")
            masks.setdefault(path, {})[axis] = np.asarray(leaf)
        return cls(kept, masks)

    def then(self, other: "Plan") -> "Plan":
        """This plan and afterwards another, made for the tree that this one leaves.

        Raises:
            ShrinkError: the other plan is for another tree.
        """
        masks = {path: dict(axes) for path, axes in self.masks.items()}
        for path, axes in other.masks.items():
            for axis, mask in axes.items():
                before = masks.setdefault(path, {}).get(axis)
                if before is None:
                    masks[path][axis] = mask
                    continue
                if int(np.sum(before)) != len(mask):
                    raise ShrinkError(
                        f"{axis_name(path, int(axis))}: the first plan leaves "
                        f"{int(np.sum(before))} positions, the second is for "
                        f"{len(mask)}"
                    )
                both = np.array(before)
                both[np.flatnonzero(both)] = mask
                masks[path][axis] = both
        kept = {name: np.asarray(units) for name, units in self.kept.items()}
        for name, units in other.kept.items():
            kept[name] = kept[name][units] if name in kept else np.asarray(units)
        return Plan(kept, masks)


def shrink(variables: Any, plan: Plan) -> Any:
    """Remove what a plan does not keep from the leaves of a tree.

    Args:
        variables: the tree that the plan was made for, of arrays or
            `jax.ShapeDtypeStruct`; also one of the same structure, such as gradients.
        plan: the plan.

    Returns:
        The tree with smaller leaves; what does not shrink is passed on as it is.

    Raises:
        ShrinkError: a leaf of the plan is not there, has another shape or is
            compressed.
    """
    return _changed(variables, plan, "shrink", _smaller)


def zero_units(variables: Any, plan: Plan) -> Any:
    """Set what a plan does not keep to zero, in every leaf: the masked model.

    The sizes stay, so this saves nothing; it says what `shrunk` computes. A removed
    unit has zero weights before and behind it, a zero bias and zero statistics, and
    wherever it feeds a product it contributes nothing. `fn(zero_units(v, plan), ...)`
    equals `shrunk(fn, plan)(shrink(v, plan), ...)` up to the order of summation if no
    operation reduces over the removed units and no function of two such units that is
    not zero at zero is summed (linear attention with exp; there `shrunk` leaves the
    term out).

    Args:
        variables: the tree that the plan was made for.
        plan: the plan.

    Raises:
        ShrinkError: as `shrink`.
    """
    return _changed(variables, plan, "zero_units", _zeroed)


def shrunk(fn: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    """Run a function on the smaller tree that `shrink` makes.

    Traces `fn` at its own sizes and evaluates it with every static size that depends on
    a removed position rewritten: shapes, slices, numbers of groups; constants are cut
    like leaves, and the number of terms by which a sum over removed positions is
    divided is corrected. It jits, differentiates, vmaps and exports like `fn`.

    Nothing else changes: attention is still divided by the square root of the head size
    that `fn` was written for, and dropout draws fewer, so other, random numbers.

    Args:
        fn: the function that the plan was made for, or another one of the same tree,
            such as the training mode of the same model.
        plan: the plan.

    Returns:
        A function with the arguments of `fn`, whose first is the smaller tree. Results
        that depend on removed positions (updated statistics) are smaller, too. It
        raises ShrinkError where `fn` fixes an axis that the plan shrinks.
    """

    @functools.wraps(fn)
    def run(variables: Any, *args: Any, **kwargs: Any) -> Any:
        whole = _changed(variables, plan, "shrunk", _whole)
        traced = trace(fn, whole, args, kwargs)
        small = dict(named_leaves(variables))
        leaves = [small[name] for name in traced.names]
        keeps = [
            _keeps(plan, n, np.ndim(x))
            for n, x in zip(traced.names, leaves, strict=True)
        ]
        try:
            results, _ = evaluate(traced, leaves, keeps)
        except Conflict as conflict:
            name = axis_name(traced.names[conflict.number], conflict.axis)
            raise ShrinkError(
                f"shrunk: {name} cannot shrink: {conflict.why} fixes it in this "
                "function"
            ) from conflict
        return traced.rebuild(results)

    return run


def _keeps(plan: Plan, name: str, rank: int) -> Keeps:
    axes = plan.masks.get(name, {})
    return tuple(
        np.asarray(axes[str(axis)], bool) if str(axis) in axes else None
        for axis in range(rank)
    )


def _changed(variables: Any, plan: Plan, transform: str, change: Any) -> Any:
    flat, structure = jax.tree_util.tree_flatten_with_path(
        variables, is_leaf=is_compressed
    )
    names = [path_name(path) for path, _ in flat]
    absent = [path for path in plan.masks if path not in set(names)]
    if absent:
        raise ShrinkError(
            f"{transform}: the plan is for another tree: it has no leaf {absent[0]!r}; "
            f"it has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        )
    made = []
    for name, (_, leaf) in zip(names, flat, strict=True):
        if name not in plan.masks:
            made.append(leaf)
            continue
        if is_compressed(leaf):
            raise ShrinkError(
                f"{transform}: {name!r} is a {type(leaf).__name__}; shrink the dense "
                "tree and compress afterwards"
            )
        made.append(change(name, leaf, _keeps(plan, name, np.ndim(leaf)), plan))
    return jax.tree_util.tree_unflatten(structure, made)


def _fits(name: str, leaf: Any, plan: Plan, after: bool) -> None:
    for axis, mask in plan.masks[name].items():
        wanted = int(np.sum(mask)) if after else len(mask)
        rank = len(leaf.shape)
        size = leaf.shape[int(axis)] if int(axis) < rank else None
        if size != wanted:
            kind = "shrunk" if after else "dense"
            raise ShrinkError(
                f"{axis_name(name, int(axis))}: the plan speaks of {wanted} positions "
                f"of the {kind} tree, and this leaf has the shape {list(leaf.shape)}"
            )


def _smaller(name: str, leaf: Any, keeps: Keeps, plan: Plan) -> Any:
    _fits(name, leaf, plan, after=False)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        sizes = zip(leaf.shape, keeps, strict=True)
        shape = tuple(n if k is None else int(k.sum()) for n, k in sizes)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)
    return cut(leaf, keeps)


def _zeroed(name: str, leaf: Any, keeps: Keeps, plan: Plan) -> Any:
    _fits(name, leaf, plan, after=False)
    for axis, keep in enumerate(keeps):
        if keep is not None:
            wide = keep.reshape([-1 if d == axis else 1 for d in range(leaf.ndim)])
            xp: Any = np if isinstance(leaf, np.ndarray) else jnp
            leaf = xp.where(wide, leaf, xp.zeros((), leaf.dtype))
    return leaf


def _whole(name: str, leaf: Any, keeps: Keeps, plan: Plan) -> Any:
    _fits(name, leaf, plan, after=True)
    shape = list(leaf.shape)
    for axis, keep in enumerate(keeps):
        if keep is not None:
            shape[axis] = len(keep)
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
