"""Leaves that stand for the same matrix in another layout."""

import dataclasses

from jcompress.tensors import QTensor


def as_rows(leaf: QTensor) -> QTensor:
    """A leaf [*S, N, K] of one that is [*S, K, N]; what is stored is the same."""
    stacks = len(leaf.stack_axes)
    *lead, inputs, outputs = leaf.shape
    return dataclasses.replace(
        leaf,
        shape=(*lead, outputs, inputs),
        output_axes=(stacks,),
        input_axes=(stacks + 1,),
    )
