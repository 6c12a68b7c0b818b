"""What is removed from a tree, and the smaller tree."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.shrinking._cutting import (
    Masks,
    array_name,
    changed,
    changed_leaves,
    keeps_of,
    smaller,
    whole,
    zeroed,
)
from jcompress.shrinking._cutting import axis_name as axis_name
from jcompress.shrinking._resizing import Conflict, evaluate
from jcompress.shrinking.free import Named, ShrinkableAxes
from jcompress.tracing.trace import trace


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Which units are kept.

    A pytree of plain arrays, so that it can be saved by `jcompress.checkpoint`;
    `Plan.from_tree` makes one of what `checkpoint.load` gives back.

    Attributes:
        kept: by group int32, the numbers of the units that are kept, ascending.
        masks: by leaf and axis bool [size of the axis]: True keeps. Axes that do not
            shrink are not listed.
        inputs: the same of the arguments behind the tree, by the keys that lead to the
            array, joined by slashes as in the name of a leaf: `0/image`.
        outputs: the same of the results of the function that the plan was made for.
    """

    kept: Mapping[str, Any]
    masks: Masks
    inputs: Masks = dataclasses.field(default_factory=dict)
    outputs: Masks = dataclasses.field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        """The new size of every axis that shrinks, as `leaf:axis`."""
        return {
            axis_name(path, axis): int(np.sum(mask))
            for path, axes in self.masks.items()
            for axis, mask in axes.items()
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Plan":
        """The plan that a checkpoint holds.

        Args:
            tree: nested dicts with the entries `kept` and `masks`, and `inputs` and
                `outputs` if axes of arguments and results shrink.

        Raises:
            MismatchError: the tree is no plan.
        """
        needed, known = {"kept", "masks"}, {"kept", "masks", "inputs", "outputs"}
        if not needed <= set(tree) <= known:
            raise MismatchError(
                "a plan has the entries 'kept' and 'masks', and 'inputs' and 'outputs' "
                f"where they shrink, not {sorted(tree)}"
            )
        kept = {name: np.asarray(leaf) for name, leaf in named_leaves(tree["kept"])}
        return cls(
            kept,
            *(_masks(tree.get(name, {})) for name in ("masks", "inputs", "outputs")),
        )

    def then(self, other: "Plan") -> "Plan":
        """This plan and afterwards another, made for the tree that this one leaves.

        Raises:
            MismatchError: the other plan is for another tree.
        """
        masks = _both(self.masks, other.masks)
        inputs = _both(self.inputs, other.inputs)
        outputs = _both(self.outputs, other.outputs)
        kept = {name: np.asarray(units) for name, units in self.kept.items()}
        for name, units in other.kept.items():
            kept[name] = kept[name][units] if name in kept else np.asarray(units)
        return Plan(kept, masks, inputs, outputs)


def _masks(tree: Any) -> Masks:
    masks: dict[str, dict[int, Any]] = {}
    for name, leaf in named_leaves(tree):
        path, _, axis = name.rpartition("/")
        masks.setdefault(path, {})[int(axis)] = np.asarray(leaf)
    return masks


def _both(first: Masks, second: Masks) -> Masks:
    """The masks of two plans, the second of which cuts what the first left."""
    masks = {path: dict(axes) for path, axes in first.items()}
    for path, axes in second.items():
        for axis, mask in axes.items():
            before = masks.setdefault(path, {}).get(axis)
            if before is None:
                masks[path][axis] = mask
                continue
            if int(np.sum(before)) != len(mask):
                raise MismatchError(
                    f"{axis_name(path, axis)}: the first plan leaves "
                    f"{int(np.sum(before))} positions, the second is for {len(mask)}"
                )
            both = np.array(before)
            both[np.flatnonzero(both)] = mask
            masks[path][axis] = both
    return masks


Recover = Callable[[Plan, Any, int], Any]
"""A short training after a cut, `recover(plan, variables, number)`.

It fine-tunes the tree that the plan of all cuts so far has left, and returns it: it
trains `shrunk(f, plan)`, where f is the function or its training mode, with
distillation from the whole model where that helps. The number is that of the round, or
of the step of a search, from 0, such as for a seed.
"""


def shrink(variables: Any, plan: Plan) -> Any:
    """Remove what a plan does not keep from the leaves of a tree.

    Args:
        variables: the tree that the plan was made for, of arrays or
            `jax.ShapeDtypeStruct`; also one of the same structure, such as gradients.
        plan: the plan.

    Returns:
        The tree with smaller leaves; what does not shrink is passed on as it is.

    Raises:
        MismatchError: a leaf of the plan is not there, has another shape or is
            compressed.
    """
    return changed(variables, plan.masks, "shrink", smaller)


def zero_units(variables: Any, plan: Plan) -> Any:
    """Set what a plan does not keep to zero, in every leaf: the masked model.

    The sizes stay, so this saves nothing; it says what `shrunk` computes. A removed
    unit has zero weights before and behind it, a zero bias and zero statistics, and
    wherever it feeds a product it contributes nothing. `fn(zero_units(v, plan), ...)`
    equals `shrunk(fn, plan)(shrink(v, plan), ...)` up to the order of summation if no
    operation reduces over the removed units and no function of two such units that is
    not zero at zero is summed (linear attention with exp; there `shrunk` leaves the
    term out). Where the plan cuts arguments, the zeros of the masked model suffice if
    products alone read them; `shrunk` leaves out what `cut_outputs` removes.

    Args:
        variables: the tree that the plan was made for.
        plan: the plan.

    Raises:
        MismatchError: as `shrink`.
    """
    return changed(variables, plan.masks, "zero_units", zeroed)


def shrunk(
    fn: Callable[..., Any], plan: Plan, *, rescale_attention: bool = False
) -> Callable[..., Any]:
    """Run a function on the smaller tree that `shrink` makes.

    Traces `fn` at its own sizes and evaluates it with every static size that depends on
    a removed position rewritten: shapes, slices, numbers of groups; constants are cut
    like leaves, and the number of terms by which a sum over removed positions is
    divided is corrected. It jits, differentiates, vmaps and exports like `fn`.

    Nothing else changes: dropout draws fewer, so other, random numbers, and attention
    is still divided by the square root of the head size that `fn` was written for,
    which is what masked weights compute. With `rescale_attention` it is divided by that
    of the size that is left, as in the small model that one would have written: each
    constant d**-0.5 (or two of d**-0.25) is replaced that multiplies, or whose inverse
    divides, the query, the key or their product over d positions, before a softmax.
    Products with a weight are no attention, also if a softmax follows.

    Args:
        fn: the function that the plan was made for, or another one of the same tree,
            such as the training mode of the same model. Where the plan cuts arguments,
            it has them, too.
        plan: the plan.
        rescale_attention: fit the scale of attention to the new query-key size.

    Returns:
        A function with the arguments of `fn`, whose first is the smaller tree and
        whose others are those that `cut_inputs` makes. Results that depend on removed
        positions (updated statistics, axes that `ShrinkableAxes` let shrink) are
        smaller, too. It raises MismatchError where `fn` fixes an axis that the plan
        shrinks, and where
        an argument has not the size that the plan leaves; with `rescale_attention` also
        where a query-key size shrinks and there is no such constant. Of a
        `ShrinkableAxes`, it is one again.
    """
    bare = fn.fn if isinstance(fn, ShrinkableAxes) else fn

    @functools.wraps(bare)
    def run(variables: Any, *args: Any, **kwargs: Any) -> Any:
        dense = changed(variables, plan.masks, "shrunk", whole)
        given = Named.of(args, kwargs)
        dense_args, dense_kwargs = _changed_inputs(given, plan, "shrunk", _WHOLE)
        traced = trace(bare, dense, dense_args, dense_kwargs)
        small = dict(named_leaves(variables))
        leaves = [small[name] for name in traced.names]
        data = [x for _, x in given.arrays]
        named = zip(traced.names, leaves, strict=True)
        keeps = [
            *(keeps_of(plan.masks, name, np.ndim(x)) for name, x in named),
            *(keeps_of(plan.inputs, name, np.ndim(x)) for name, x in given.arrays),
        ]
        try:
            results = evaluate(traced, leaves, data, keeps, rescale_attention)
        except Conflict as conflict:
            arguments = [array_name(name, "argument") for name, _ in given.arrays]
            names = [*traced.names, *arguments]
            name = axis_name(names[conflict.number], conflict.axis)
            raise MismatchError(
                f"shrunk: {name} cannot shrink: {conflict.why} fixes it in this "
                "function"
            ) from conflict
        return traced.rebuild(results)

    if isinstance(fn, ShrinkableAxes):
        return ShrinkableAxes(run, inputs=fn.inputs, outputs=fn.outputs)
    return run


def cut_inputs(
    plan: Plan, *args: Any, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Remove what a plan does not keep from the arguments of a function.

    Args:
        plan: the plan; `ShrinkableAxes` named the axes that it cuts.
        *args: the arguments behind the tree, arrays or `jax.ShapeDtypeStruct`.
        **kwargs: its keyword arguments.

    Returns:
        The arguments and the keyword arguments for `shrunk(fn, plan)`.

    Raises:
        MismatchError: an argument of the plan is not there or has another shape.
    """
    return _changed_inputs(Named.of(args, kwargs), plan, "cut_inputs", _CUT)


def cut_outputs(plan: Plan, results: Any) -> Any:
    """Remove what a plan does not keep from the results of the whole function.

    What `shrunk` gives, of the masked or the whole model: to compare them, and for the
    targets of distillation.

    Args:
        plan: the plan; `ShrinkableAxes` named the axes that it cuts.
        results: what the function that the plan was made for gives.

    Raises:
        MismatchError: a result of the plan is not there or has another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(results)
    names = [path_name(path) for path, _ in leaves]
    values = [x for _, x in leaves]
    cut = changed_leaves(names, values, plan.outputs, "cut_outputs", _CUT, "result")
    return jax.tree_util.tree_unflatten(structure, cut)


_CUT = functools.partial(smaller, of="function")
_WHOLE = functools.partial(whole, of="function", hint="; `cut_inputs` cuts it")


def _changed_inputs(
    given: Named, plan: Plan, transform: str, change: Callable[..., Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    made = changed_leaves(
        given.names, given.leaves, plan.inputs, transform, change, "argument"
    )
    return given.rebuild(made)
