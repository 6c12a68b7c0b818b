"""Operations of JAX that we write as nodes of ONNX ourselves, better than jax2onnx."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.interchange.onnx_broadcasts import Broadcast, done, elementwise
from jcompress.interchange.onnx_pieces import Graph, Made, one
from jcompress.interchange.onnx_products import convolution, product
from jcompress.tracing.interpreter import bind
from jcompress.tracing.jaxprs import (
    Body,
    Kind,
    bodies,
    is_literal,
    kind_of,
    scan_counts,
    split,
)

_WRITTEN_OUT = (Kind.CALL, Kind.INLINE, Kind.CUSTOM_GRADIENT, Kind.REMAT)
"""Programs that are written as if they stood around their equation."""
_POOLS = {"reduce_window_max": "MaxPool", "reduce_window_sum": "AveragePool"}


def rewritten(program: Any) -> Callable[..., list[jax.Array]]:
    """The function that a program computes, with our pieces where we have some.

    Args:
        program: a jaxpr, open or closed. What stands in branches and in `while` loops
            is left to jax2onnx.
    """
    body = Body.of(program)

    def run(*inputs: jax.Array) -> list[jax.Array]:
        env: dict[Any, Any] = dict(zip(body.jaxpr.constvars, body.consts, strict=True))
        env.update(zip(body.jaxpr.invars, inputs, strict=True))

        def value(atom: Any) -> Any:
            return atom.val if is_literal(atom) else env[atom]

        for eqn in body.jaxpr.eqns:
            outs = _evaluated(eqn, [value(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [done(value(atom)) for atom in body.jaxpr.outvars]

    return run


def _evaluated(eqn: Any, ins: list[Any]) -> Sequence[Any]:
    made = elementwise(eqn, ins)
    if made is not None:
        return [made]
    ins = [done(x) for x in ins]
    kind = kind_of(eqn)
    if kind in _WRITTEN_OUT:
        (body,) = bodies(eqn)
        outs: list[Any] = rewritten(body)(*ins)
        return outs
    if kind is Kind.SCAN:
        return _scan(eqn, ins)
    rewrite = _REWRITES.get(eqn.primitive.name)
    made = None if rewrite is None else rewrite(eqn, ins)
    return bind(eqn, ins) if made is None else [made]


def _scan(eqn: Any, ins: list[Any]) -> Sequence[Any]:
    (body,) = bodies(eqn)
    n_consts, n_carry = scan_counts(eqn)
    consts, carry, xs = split(ins, n_consts, n_carry)
    run = rewritten(body)

    def step(carried: Any, given: Any) -> Any:
        outs = run(*consts, *carried, *given)
        return outs[:n_carry], outs[n_carry:]

    length, reverse = eqn.params["length"], eqn.params["reverse"]
    carried, ys = jax.lax.scan(step, carry, xs, length=length, reverse=reverse)
    return [*carried, *ys]


def _pool(eqn: Any, ins: Sequence[Any]) -> jax.Array | None:
    """Pooling; jax2onnx slides over examples and channels, too, which runtimes lack."""
    axes = _pooled(eqn)
    if axes is None:
        return None
    kept, slid = axes
    order = (*kept, *slid)
    params = eqn.params
    operator = _POOLS[eqn.primitive.name]
    window = [params["window_dimensions"][axis] for axis in slid]
    pads = zip(*(params["padding"][axis] for axis in slid), strict=True)
    attributes: dict[str, Any] = {
        "kernel_shape": window,
        "strides": [params["window_strides"][axis] for axis in slid],
        "pads": [end for ends in pads for end in ends],
    }
    mean = operator == "AveragePool"
    if mean:
        attributes["count_include_pad"] = 1
    shape = eqn.outvars[0].aval.shape
    kind = (tuple(shape[axis] for axis in order), np.float32)

    def write(graph: Graph, x: Made) -> Made:
        return graph.node(operator, x, gives=kind, **attributes)

    made = one(*kind, write, jnp.transpose(ins[0], order))
    made = made * np.float32(math.prod(window)) if mean else made
    return jnp.transpose(made, [order.index(axis) for axis in range(len(order))])


def _pooled(eqn: Any) -> tuple[list[int], list[int]] | None:
    """The axes that stay and those that are pooled; None if ONNX has no such pool."""
    params, aval = eqn.params, eqn.invars[0].aval
    dilated = (*params["base_dilation"], *params["window_dilation"])
    if aval.dtype != np.float32 or any(n != 1 for n in dilated):
        return None
    slid, wide = [], True
    for axis, size in enumerate(params["window_dimensions"]):
        ends = params["padding"][axis]
        if (size, params["window_strides"][axis], *ends) != (1, 1, 0, 0):
            slid.append(axis)
            # A window of nothing but padding has no result in ONNX.
            wide = wide and max(ends) < size and min(ends) >= 0
    kept = [axis for axis in range(aval.ndim) if axis not in slid]
    known = wide and len(kept) == 2 and 1 <= len(slid) <= 3
    return (kept, slid) if known else None


def _pad(eqn: Any, ins: Sequence[Any]) -> jax.Array | None:
    """Padding; jax2onnx does not know that a size may be open."""
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or inner for low, high, inner in config):
        return None
    aval = eqn.outvars[0].aval
    kind = (aval.shape, aval.dtype)
    ends = np.array([[low, high] for low, high, _ in config], np.int64).T.reshape(-1)

    def write(graph: Graph, x: Made, fill: Made) -> Made:
        return graph.node("Pad", x, graph.constant(ends), fill, gives=kind)

    return one(*kind, write, *ins)


def _reshape(eqn: Any, ins: Sequence[Any]) -> jax.Array | None:
    """A reshape in another order of axes, which jax2onnx does not look at."""
    order = eqn.params["dimensions"]
    if order is None or len(ins) > 1:
        return None
    made: list[jax.Array] = bind(eqn, [jnp.transpose(ins[0], order)], dimensions=None)
    return made[0]


def _clamp(eqn: Any, ins: Sequence[Any]) -> jax.Array:
    """Bounds; as with padding."""
    low, x, high = ins
    aval = eqn.outvars[0].aval
    kind = (aval.shape, aval.dtype)

    def write(graph: Graph, x: Made, low: Made, high: Made) -> Made:
        return graph.node(
            "Min", graph.node("Max", x, low, gives=kind), high, gives=kind
        )

    return one(*kind, write, x, low, high)


def _rem(eqn: Any, ins: Sequence[Any]) -> jax.Array:
    """What a division leaves, with the sign of the dividend; as with padding."""
    aval = eqn.outvars[0].aval
    kind = (aval.shape, aval.dtype)

    def write(graph: Graph, x: Made, y: Made) -> Made:
        return graph.node("Mod", x, y, gives=kind, fmod=1)

    return one(*kind, write, *ins)


_REWRITES: Mapping[str, Callable[[Any, Sequence[Any]], Any]] = {
    "reduce_window_max": _pool,
    "reduce_window_sum": _pool,
    "broadcast_in_dim": Broadcast.of,
    "conv_general_dilated": convolution,
    "dot_general": product,
    "pad": _pad,
    "reshape": _reshape,
    "clamp": _clamp,
    "rem": _rem,
}
