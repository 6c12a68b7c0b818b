"""Groups of inputs that do not follow each other: the `g_idx` of act-order."""

import enum
import math
from typing import NamedTuple

import numpy as np

from jcompress.interchange.files import Host

_LEAST_RUN = 16
"""Inputs that must share a scale, where files do not have as many scales anyway."""


class ActOrder(enum.Enum):
    """What is done with weights whose groups are scattered over the inputs.

    Quantizers that go through the inputs by importance ("act-order", `desc_act`) leave
    groups like that, and a `QTensor` has none. Groups moved as wholes are no such case:
    they are read exactly, whatever is chosen here.

    Attributes:
        RAISE: refuse the file.
        DENSE: read such weights as dense arrays.
        PERMUTED: read them with their inputs sorted by group, and the order beside
            them: with `order = found["layer.order"]`, int32 [K], the layer is
            `x[..., order] @ found["layer.weight"]`.
    """

    RAISE = enum.auto()
    DENSE = enum.auto()
    PERMUTED = enum.auto()


class Grouping(NamedTuple):
    """Groups of one size, side by side.

    Attributes:
        chosen: int [G'], the stored group that each of them takes its scale from.
        order: int32 [K], the input that stands in each place; None: all in theirs.
    """

    chosen: Host
    order: Host | None


def contiguous(index: Host, groups: int) -> Host | None:
    """The stored group of each run of inputs; None if the runs are too short.

    Args:
        index: int [K], the group of each input.
        groups: how many there are in the file.
    """
    inputs = len(index)
    changes = np.flatnonzero(np.diff(index)) + 1
    run = math.gcd(inputs, *map(int, changes))
    if run < _LEAST_RUN and inputs > run * groups:
        return None
    return index[::run]


def sorted_groups(index: Host, groups: int) -> Grouping | None:
    """The grouping after the inputs are sorted by group; None if sizes differ."""
    order = np.argsort(index, kind="stable").astype(np.int32)
    chosen = contiguous(index[order], groups)
    return None if chosen is None else Grouping(chosen, order)
