"""Layers whose inputs say which group they are in, made leaves or dense arrays."""

from typing import Any

import jax
import numpy as np

from jcompress.interchange.act_order import ActOrder, contiguous, sorted_groups
from jcompress.interchange.files import Host
from jcompress.interchange.layers import WEIGHT
from jcompress.interchange.numbers import Numbers, dense_kernel, to_qtensor
from jcompress.interchange.shards import Shards


def read_groups(
    file: Shards, name: str, inputs: int, groups: int, act_order: ActOrder
) -> Host:
    """The group of each input, int [K].

    Raises:
        FileFormatError: an index is of no group, there is none and the groups do not
            divide the inputs, or they are scattered and may not be.
    """
    if name not in file:
        if inputs % groups:
            raise file.error(
                name, f"is missing, and {groups} groups do not divide {inputs} inputs"
            )
        return np.arange(inputs) // (inputs // groups)
    index = file.need(name, (np.int32, np.int64), (inputs,))
    if index.min() < 0 or index.max() >= groups:
        raise file.error(name, f"has groups that are not among the {groups} stored")
    scattered = contiguous(index, groups) is None
    if scattered and act_order is ActOrder.RAISE:
        raise file.error(
            name,
            "scatters groups over the inputs (act-order, desc_act); a QTensor has its "
            "groups side by side: read with act_order=ActOrder.PERMUTED for sorted "
            "inputs and their order, or ActOrder.DENSE for dense arrays",
        )
    sort = scattered and act_order is ActOrder.PERMUTED
    if sort and sorted_groups(index, groups) is None:
        raise file.error(
            name,
            "has groups of different sizes, which no order of the inputs makes equal: "
            "read with act_order=ActOrder.DENSE",
        )
    return index


def grouped_kernel(
    layer: str, numbers: Numbers, index: Host, act_order: ActOrder, dtype: Any
) -> dict[str, Any]:
    """The entries of one layer whose input k is in group `index[k]`."""
    groups = numbers.scales.shape[-1]
    chosen, order = contiguous(index, groups), None
    if chosen is None:
        grouping = sorted_groups(index, groups)
        if act_order is ActOrder.DENSE or grouping is None:
            return {layer + WEIGHT: dense_kernel(numbers, index, dtype)}
        chosen, order = grouping
    values, scales, zeros, bits = numbers
    found: dict[str, Any] = {
        layer + WEIGHT: to_qtensor(
            Numbers(
                values if order is None else values[:, order],
                scales[:, chosen],
                None if zeros is None else zeros[:, chosen],
                bits,
            ),
            dtype,
        )
    }
    if order is not None:
        found[f"{layer}.order"] = jax.device_put(order)
    return found
