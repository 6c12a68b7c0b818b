"""Trace a function of a parameter tree, once, into a program and its table of sites."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jcompress.leaves import named_leaves
from jcompress.tensors import CompressedTensor, is_compressed
from jcompress.tracing.flow import Flow
from jcompress.tracing.inlining import inlined
from jcompress.tracing.jaxprs import Body
from jcompress.tracing.site import Sites
from jcompress.tracing.values import DATA, Use, Value
from jcompress.tracing.views import View
from jcompress.tracing.walk import walk


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced function.

    Attributes:
        body: the program.
        sites: its table of sites.
        uses: the equations at which leaves meet data, by location.
        names: the names of the leaves that are inputs of the program, in order.
        leaves: these leaves; the inputs of the program begin with them.
        data: the program's other inputs.
        rebuild: makes the function's result from the program's results.
    """

    body: Body
    sites: Sites
    uses: Mapping[tuple[int, ...], Use]
    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    data: tuple[Any, ...]
    rebuild: Callable[[list[Any]], Any]


def is_array(x: Any) -> bool:
    """Whether a leaf is traced; everything else reaches the function as it is."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def abstract(leaf: Any) -> Any:
    """The dense array that a leaf is or stands for, as a tracer sees it."""
    if isinstance(leaf, CompressedTensor):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)


def _check_function(fn: Any) -> None:
    """Raise TypeError if a model or a tree stands where a function should."""
    form = "the first argument must be a function of the parameter tree, not"
    kind = type(fn).__name__
    if callable(getattr(fn, "apply", None)) and not inspect.isroutine(fn):
        raise TypeError(
            f"{form} the model {kind}; give its method: f(model.apply, variables, x)"
        )
    if isinstance(fn, jax.tree_util.Partial):
        return
    if callable(fn):
        # What a model holds would be constants, and no leaf of it would be found.
        if inspect.isroutine(fn) or not any(map(is_array, jax.tree.leaves(fn))):
            return
        raise TypeError(
            f"{form} the model {kind}, whose parameters could not be followed; give a "
            "function and the model: f(lambda model, x: model(x), model, x)"
        )
    raise TypeError(
        f"{form} {kind}; the order is: function, parameters, further arguments: "
        "f(model.apply, variables, x)"
    )


def trace(
    fn: Callable[..., Any],
    variables: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    write_out_calls: bool = False,
) -> Traced:
    """Trace `fn(variables, *args, **kwargs)` and find its sites.

    Args:
        fn: the function.
        variables: the tree of parameters.
        args: its further arguments.
        kwargs: its keyword arguments.
        write_out_calls: whether calls of compiled functions within it are written out,
            so that patterns of equations are seen across them.

    Raises:
        TypeError: `fn` is no function of a tree, but a model or a tree itself.
        ValueError: `variables` has no array leaf.
    """
    _check_function(fn)
    flat, variables_tree = jax.tree.flatten(variables, is_leaf=is_compressed)
    rest, rest_tree = jax.tree.flatten((args, dict(kwargs)))
    where = [i for i, x in enumerate(flat) if is_array(x) or is_compressed(x)]
    rest_where = [i for i, x in enumerate(rest) if is_array(x)]
    if not where:
        kinds = sorted({type(x).__name__ for x in flat}) or ["nothing"]
        raise ValueError(
            f"the parameter tree has no array among its leaves, only {kinds}; "
            "the first argument must be the tree of parameters"
        )
    leaves = [flat[i] for i in where]
    data = [rest[i] for i in rest_where]
    result: list[Any] = []

    def program(arrays: list[Any], others: list[Any]) -> list[Any]:
        full, full_rest = list(flat), list(rest)
        for i, array in zip(where, arrays, strict=True):
            full[i] = array
        for i, other in zip(rest_where, others, strict=True):
            full_rest[i] = other
        call_args, call_kwargs = jax.tree.unflatten(rest_tree, full_rest)
        out = fn(jax.tree.unflatten(variables_tree, full), *call_args, **call_kwargs)
        outs, out_tree = jax.tree.flatten(out)
        traced = [i for i, x in enumerate(outs) if is_array(x)]
        static = [None if i in set(traced) else x for i, x in enumerate(outs)]
        result[:] = [out_tree, static, traced]
        return [outs[i] for i in traced]

    closed = jax.make_jaxpr(program)([abstract(leaf) for leaf in leaves], data)
    out_tree, static, traced_outs = result

    def rebuild(outs: list[Any]) -> Any:
        full = list(static)
        for i, out in zip(traced_outs, outs, strict=True):
            full[i] = out
        return jax.tree.unflatten(out_tree, full)

    named = named_leaves(variables)
    described = tuple(
        (named[i][0], _struct(abstract(leaf)))
        for i, leaf in zip(where, leaves, strict=True)
    )
    flow = Flow(described)
    inputs = [
        Value(False, (View.whole(i, struct.shape),), frozenset({i}))
        for i, (_, struct) in enumerate(described)
    ]
    body = Body.of(inlined(closed) if write_out_calls else closed)
    walk(body, [*inputs, *([DATA] * len(data))], flow)
    return Traced(
        body=body,
        sites=Sites(flow.table, described),
        uses=flow.uses,
        names=tuple(name for name, _ in described),
        leaves=tuple(leaves),
        data=tuple(data),
        rebuild=rebuild,
    )
