"""Part of a compressed leaf along one axis, cut out of what is stored."""

import dataclasses
from typing import Any

import jax

from jcompress.tensors.base import CompressedTensor
from jcompress.tensors.qtensor import QTensor


def part_of(
    tensor: CompressedTensor, axis: int, where: slice
) -> CompressedTensor | None:
    """The leaf that stands for `dense()[..., where, ...]`, without making it dense.

    Ranges of inputs that a `QTensor` remembers are left out: they belong to the whole.

    Args:
        tensor: the leaf.
        axis: the axis of its dense array that is cut.
        where: which positions stay, with start and step given; a step of -1 with the
            stop None turns the axis round.

    Returns:
        The part; None if it does not stand by itself in the stored arrays: of leaf
        types other than `QTensor`, and where the cut falls inside of a byte or of a
        group or block that shares a scale.
    """
    if type(tensor) is not QTensor:
        return None
    size = len(range(*where.indices(tensor.shape[axis])))
    shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
    names = ("values", "scales", "scale_factor", "zeros")
    given = {name: getattr(tensor, name) for name in names}
    arrays: dict[str, Any] = {n: one for n, one in given.items() if one is not None}
    if axis in tensor.stack_axes:
        lead = (slice(None),) * tensor.stack_axes.index(axis)
        cut = {name: array[(*lead, where)] for name, array in arrays.items()}
    elif axis in tensor.output_axes:
        if tensor.scales.shape[-2] not in (1, tensor.matrix_shape[-2]):
            return None
        cut = {name: _rows(tensor, axis, where, a) for name, a in arrays.items()}
    else:
        values = _columns(tensor, axis, where)
        if values is None:
            return None
        cut = {"values": values}
    return dataclasses.replace(tensor, shape=shape, input_scales=(), **cut)


def without_stack(tensor: CompressedTensor, axis: int) -> CompressedTensor | None:
    """The leaf less a stack axis of size 1; None if the axis is not one."""
    if type(tensor) is not QTensor or axis not in tensor.stack_axes:
        return None
    at = tensor.stack_axes.index(axis)

    def fewer(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a - (a > axis) for a in axes if a != axis)

    def fewer_of(array: jax.Array | None) -> jax.Array | None:
        return None if array is None else array.squeeze(at)

    return dataclasses.replace(
        tensor,
        shape=tensor.shape[:axis] + tensor.shape[axis + 1 :],
        stack_axes=fewer(tensor.stack_axes),
        output_axes=fewer(tensor.output_axes),
        input_axes=fewer(tensor.input_axes),
        values=tensor.values.squeeze(at),
        scales=tensor.scales.squeeze(at),
        scale_factor=fewer_of(tensor.scale_factor),
        zeros=fewer_of(tensor.zeros),
    )


def _rows(tensor: QTensor, axis: int, where: slice, array: jax.Array) -> jax.Array:
    stacks = len(tensor.stack_axes)
    if array.shape[stacks] != tensor.matrix_shape[-2]:
        return array
    sizes = tuple(tensor.shape[a] for a in tensor.output_axes)
    lead, last = array.shape[:stacks], array.shape[-1]
    apart = array.reshape(*lead, *sizes, last)
    before = (slice(None),) * (stacks + tensor.output_axes.index(axis))
    return apart[(*before, where)].reshape(*lead, -1, last)


def _columns(tensor: QTensor, axis: int, where: slice) -> jax.Array | None:
    """The values of a part of an input axis, if one scale serves each row."""
    size, values = tensor.matrix_shape[-1], tensor.values
    if tensor.scales.shape[-1] > 1:
        return None
    if values.shape[-1] == size:
        sizes = tuple(tensor.shape[a] for a in tensor.input_axes)
        before = (slice(None),) * tensor.input_axes.index(axis)
        apart = values.reshape(*values.shape[:-1], *sizes)
        after = (slice(None),) * (len(sizes) - len(before) - 1)
        part = apart[(..., *before, where, *after)]
        return part.reshape(*values.shape[:-1], -1)
    kept = range(*where.indices(tensor.shape[axis]))
    whole = where.step == 1 and tensor.shape[axis] == size
    if not whole or not tensor.format.is_stream:
        return None
    first, last = kept.start * tensor.format.bits, kept.stop * tensor.format.bits
    if first % 8 or (last % 8 and kept.stop != size):
        return None
    stored = tensor.format.stored_size(len(kept))
    return values[..., first // 8 : first // 8 + stored]
