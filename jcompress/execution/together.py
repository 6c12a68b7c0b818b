"""Small weights are made dense together, in one step, before the function begins.

A product of few numbers takes less time than it takes to start a kernel for it; and
what XLA sees as plain arrays it fuses, up to whole networks.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.execution.convolutions import Windowed
from jcompress.execution.how import Execution, How
from jcompress.formats import Int
from jcompress.kernels._native import Stored
from jcompress.kernels.quantized_conv.xla import dense_kernels
from jcompress.sites import Operation
from jcompress.tensors import CompressedTensor, QTensor
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location

LARGEST = {Operation.DOT: 1 << 12, Operation.CONV: 1 << 17}
"""Numbers of the largest weight for which this is done."""
WHY = "small: made dense with others in one step, in floats"
"""Why they are made dense."""


def make_dense(
    traced: Traced,
    tensors: Mapping[str, CompressedTensor],
    record: dict[Any, Execution],
    *,
    portable: bool,
) -> dict[str, jax.Array]:
    """Make those leaves dense that are too small for kernels of their own.

    These are the convolutions that a CPU computes in floats, and tiny products.

    Args:
        traced: the function.
        tensors: its compressed leaves.
        record: gets an entry for each.
        portable: whether only what XLA compiles may be used.

    Returns:
        The dense arrays by name.
    """
    chosen: dict[str, QTensor] = {}
    for name, tensor in tensors.items():
        place = _place(traced, name, tensor)
        if place is None:
            continue
        assert isinstance(tensor, QTensor)
        chosen[name] = tensor
        primitive = traced.uses[place].eqn.primitive.name
        record[name, place] = Execution(name, primitive, How.DENSE, WHY)
    if not chosen:
        return {}
    stored = [_stored(tensor) for tensor in chosen.values()]
    made = dense_kernels(stored, portable=portable)
    pairs = zip(chosen.items(), made, strict=True)
    return {name: _turned(tensor, dense) for (name, tensor), dense in pairs}


def _place(traced: Traced, name: str, tensor: CompressedTensor) -> Location | None:
    """Where the one use of a small leaf is; None for any other leaf."""
    sites = traced.sites.of(name)
    if (
        not isinstance(tensor, QTensor)
        or len(sites) != 1
        or sites[0].operation not in LARGEST
        or sites[0].derived
        or tensor.size > LARGEST[sites[0].operation]
        or tensor.activation is not None
        or not isinstance(tensor.format, Int)
        or tensor.for_kernels() is not tensor
        or tensor.stack_axes
        or tensor.dtype != jnp.float32
        or 0 in tensor.shape
    ):
        return None
    (site,) = sites
    if site.operation is Operation.DOT:
        return site.location
    use = traced.uses[site.location]
    plan = Windowed.of(use, site.operand, tensor)
    if isinstance(plan, str) or use.data is None:
        return None
    data = use.eqn.invars[use.data].aval
    x: Any = jax.ShapeDtypeStruct(data.shape, data.dtype)
    return site.location if plan.why_in_floats(x, tensor, None) else None


def _order(tensor: QTensor) -> tuple[int, ...]:
    return (*tensor.input_axes, *tensor.output_axes)


def _stored(tensor: QTensor) -> Stored:
    outputs, _ = tensor.matrix_shape
    groups = (outputs, tensor.scales.shape[-1])
    zeros = tensor.zeros

    def stacked(x: jax.Array) -> jax.Array:
        whole = x if x.shape == groups else jnp.broadcast_to(x, groups)
        return jax.lax.expand_dims(whole, (0,))

    return Stored(
        jax.lax.expand_dims(tensor.values, (0,)),
        stacked(tensor.scales),
        None if zeros is None else stacked(zeros),
        tensor.format.bits,
        # The shape of the leaf itself, mostly: XLA fuses no reshaped weights.
        tuple(tensor.shape[axis] for axis in _order(tensor)),
    )


def _turned(tensor: QTensor, dense: jax.Array) -> jax.Array:
    order = _order(tensor)
    back = tuple(sorted(range(len(order)), key=lambda place: order[place]))
    return dense if back == tuple(range(len(order))) else jnp.transpose(dense, back)
