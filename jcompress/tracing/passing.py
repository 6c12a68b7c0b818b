"""Operations that a compressed leaf passes on its way to a site without being opened.

Changes of shape and of dtype are put off until the leaf meets data. What places arrays
on devices or orders them is done to the stored arrays, and a slice takes the part of
them that it needs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jcompress.tensors.parts import part_of, without_stack
from jcompress.tracing.deferred import Deferred, opened
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.views import LAZY


def passed(eqn: Any, ins: list[Any]) -> list[Any] | None:
    """The results of an equation with compressed leaves among its inputs.

    Args:
        eqn: the equation; it holds no program.
        ins: its inputs: arrays and `Deferred` leaves.

    Returns:
        Its results, leaves still compressed; None if the leaves must be made dense.
    """
    name = eqn.primitive.name
    if name == "device_put":
        return [_put(eqn, index, value) for index, value in enumerate(ins)]
    if name == "optimization_barrier":
        arrays, rebuild = opened(ins)
        return rebuild(eqn.primitive.bind(*arrays, **eqn.params))
    if len(ins) != 1:
        return None
    (value,) = ins
    if name in LAZY:
        return [_put_off(eqn, value)]
    if name in ("split", "slice", "rev"):
        return _parts(eqn, value)
    return None


def _put_off(eqn: Any, value: Deferred) -> Deferred:
    pending = value.pending
    if eqn.primitive.name == "squeeze" and pending:
        first, params = pending[0]
        rest = pending[1:]
        casts = all(p.name == "convert_element_type" for p, _ in rest)
        if first.name == "broadcast_in_dim" and casts:
            kept = params["broadcast_dimensions"]
            added = set(range(len(params["shape"]))) - set(kept)
            if added == set(eqn.params["dimensions"]):
                # One layer of a stack, w[i]: its axis of size 1 goes again.
                return dataclasses.replace(value, pending=rest)
    return dataclasses.replace(
        value, pending=(*pending, (eqn.primitive, dict(eqn.params)))
    )


def _put(eqn: Any, index: int, value: Any) -> Any:
    """One of the arrays, or compressed leaves, that `device_put` places."""
    several = len(eqn.invars)

    def params(copies: int) -> dict[str, Any]:
        return {
            key: tuple(given[index : index + 1]) * copies
            if isinstance(given, Sequence) and len(given) == several
            else given
            for key, given in eqn.params.items()
        }

    if not isinstance(value, Deferred):
        return eqn.primitive.bind(value, **params(1))[0]
    target = eqn.params["devices"][index]
    if isinstance(target, jax.sharding.Sharding) and not isinstance(
        target, jax.sharding.SingleDeviceSharding
    ):
        # Its parameters count the axes of the dense array, which the stored ones lack.
        return dataclasses.replace(
            value, pending=(*value.pending, (eqn.primitive, params(1)))
        )
    arrays, rebuild = opened([value])
    return rebuild(eqn.primitive.bind(*arrays, **params(len(arrays))))[0]


def _parts(eqn: Any, value: Deferred) -> list[Any] | None:
    axes = _leaf_axes(value)
    if axes is None:
        return None
    shape = aval_shape(eqn.invars[0])
    params = eqn.params
    cuts: list[list[tuple[int, slice]]]
    match eqn.primitive.name:
        case "split":
            ends = [sum(params["sizes"][: i + 1]) for i in range(len(params["sizes"]))]
            pairs = zip([0, *ends], ends, strict=False)
            cuts = [[(params["axis"], slice(a, b, 1))] for a, b in pairs]
        case "slice":
            strides = params["strides"] or (1,) * len(shape)
            bounds = zip(
                params["start_indices"], params["limit_indices"], strides, strict=True
            )
            found = [(dim, slice(*bound)) for dim, bound in enumerate(bounds)]
            cuts = [
                [(d, s) for d, s in found if s != slice(0, shape[d], 1)],
            ]
        case _:
            cuts = [[(dim, slice(None, None, -1)) for dim in params["dimensions"]]]
    results = [_cut(value, [(axes[d], s) for d, s in cut]) for cut in cuts]
    return None if None in results else results


def _cut(value: Deferred, cuts: list[tuple[int, slice]]) -> Deferred | None:
    tensor, pending = value.tensor, value.pending
    # From the last axis on, since a layer that is taken out of a stack loses its axis.
    for axis, where in sorted(cuts, key=lambda cut: -cut[0]):
        before = tensor.shape[axis]
        part = part_of(tensor, axis, where)
        if part is None:
            return None
        tensor = part
        if part.shape[axis] == 1 and before != 1:
            less = without_stack(part, axis)
            if less is None or (len(cuts) > 1 and pending is not value.pending):
                return None
            kept = tuple(d for d in range(part.ndim) if d != axis)
            params = {
                "shape": part.shape,
                "broadcast_dimensions": kept,
                "sharding": None,
            }
            tensor = less
            pending = ((jax.lax.broadcast_in_dim_p, params), *pending)
    return dataclasses.replace(value, tensor=tensor, pending=pending, cut=True)


def _leaf_axes(value: Deferred) -> tuple[int, ...] | None:
    """The leaf's axes as the value has them; None if it was reshaped."""
    axes = tuple(range(value.tensor.ndim))
    for primitive, params in value.pending:
        if primitive.name == "transpose":
            axes = tuple(axes[d] for d in params["permutation"])
        elif primitive.name != "convert_element_type":
            return None
    return axes
