"""A leaf with an adapter: a product with its base, and a thin one beside it."""

import dataclasses
from typing import Any

import jax

from jcompress.execution.how import Execution, How
from jcompress.tensors import CompressedTensor
from jcompress.tensors.ranges import input_scale
from jcompress.tracing.handlers import Bind
from jcompress.tracing.products import contracted
from jcompress.tracing.values import Use


def run_adapted(
    site: Any, use: Use, operand: int, inputs: list[Any], bind: Bind, read: Any
) -> list[jax.Array]:
    """What the base gives, and what the correction adds to it.

    Args:
        site: the handler.
        use: the equation and its sites.
        operand: which of its inputs is the leaf.
        inputs: of the equation.
        bind: evaluates the equation.
        read: how the data becomes integers, if that is stored.
    """
    leaf = inputs[operand]
    tensor = leaf.tensor
    base = tensor.base
    record: dict[Any, Execution] = {}
    activation = getattr(base, "activation", None)
    alone = dataclasses.replace(site, record=record, after=None)
    apart = dataclasses.replace(alone, activation=None)

    def given(part: Any) -> list[Any]:
        return [*inputs[:operand], part, *inputs[operand + 1 :]]

    thin = dataclasses.replace(leaf, tensor=tensor.correction)
    (added,), _ = apart(use, given(thin), bind, None)
    (entry,) = record.values()
    if read is None and activation is not None and base.input_scales:
        read = base.input_scales[0]
    if entry.how is How.DENSE:
        if activation is not None and use.data is not None:
            x = inputs[use.data]
            scaling = read or input_scale(x, contracted(use), activation, None)
            rounds = dataclasses.replace(site, activation=activation)
            inputs = rounds.faked(use, inputs, scaling)
        made: list[jax.Array] = site.dense(use, inputs, bind, entry.why)
        return made
    if not isinstance(base, CompressedTensor):
        (out,) = bind(given(leaf.viewed(base)))
        site.note(use, inputs, How.ADAPTED)
        return [out + added]
    kept = dataclasses.replace(leaf, tensor=base)
    within = dataclasses.replace(alone, activation=activation)
    (out,), _ = within(use, given(kept), bind, read)
    (entry,) = record.values()
    why = f"{entry.how.value}: {entry.why}" if entry.why else entry.how.value
    site.note(use, inputs, How.ADAPTED, f"base: {why}")
    return [out + added]
