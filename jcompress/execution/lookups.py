"""A lookup in a compressed table: only the rows that were picked are made dense."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors import CompressedTensor, LowRank, QTensor, is_compressed
from jcompress.tensors.low_rank import Factor, dense_factor
from jcompress.tensors.rounding import round_to
from jcompress.tensors.weight_matrix import dequantize_matrix
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.values import Use

_ELSEWHERE = "the index is not that of a plain lookup of rows"


def rows_of(tensor: Factor, rows: jax.Array) -> jax.Array:
    """Rows of a stored matrix [*S, N, K], float32 [M, K].

    Args:
        tensor: the matrix: an array, a `QTensor` or a `LowRank`.
        rows: their numbers among all of the stacks, int32 [M], each in bounds.
    """
    match tensor:
        case QTensor():
            return _quantized_rows(tensor, rows)
        case LowRank():
            found = rows_of(tensor.factors[-1], rows)
            for factor in tensor.factors[-2::-1]:
                part = dense_factor(factor).astype(jnp.float32)
                found = jnp.matmul(found, part, precision=jax.lax.Precision.HIGHEST)
            return found
    assert isinstance(tensor, jax.Array)
    return _taken(tensor, rows).astype(jnp.float32)


def _taken(array: jax.Array, rows: jax.Array) -> jax.Array:
    flat = array.reshape(-1, array.shape[-1])
    return flat.at[rows].get(mode="promise_in_bounds")


def _quantized_rows(tensor: QTensor, rows: jax.Array) -> jax.Array:
    *stacks, outputs, inputs = tensor.matrix_shape
    high = outputs // tensor.scales.shape[-2]
    values = tensor.format.unpack(_taken(tensor.values, rows), inputs)
    # Blocks of rows divide each stack, so that they can be counted through all.
    blocks = rows if high == 1 else rows // np.int32(high)
    one = tensor.scales.shape[-2] == 1 and not stacks
    scales = tensor.scales if one else _taken(tensor.scales, blocks)
    factor = tensor.scale_factor
    if factor is not None and stacks:
        factor = _taken(factor, rows // np.int32(outputs))
    scales = tensor.scale_format.read(scales, factor) * np.float32(tensor.format.unit)
    zeros = tensor.zeros
    if zeros is not None and not one:
        zeros = _taken(zeros, blocks)
    dense = dequantize_matrix(values, scales, zeros, tensor.dtype)
    return dense.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookup:
    """Which rows of a table a `gather` or a `dynamic_slice` picks.

    Attributes:
        shape: shape of the table.
        order: its axes as its matrix has them: those that number rows, then those of
            the columns.
        columns: how many of these are columns.
        sizes: how many neighbours are taken along each axis of the table.
        starts: the part of the index that says where they start along an axis.
        batched: the axis of the index that goes along with an axis of the table.
        dropped: the axes that the result lacks.
        places: where the axes of the table that stay stand in the result; None for
            the end.
        fill: what stands for rows out of bounds; None if the nearest are taken.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    columns: int
    sizes: tuple[int, ...]
    starts: dict[int, int]
    batched: dict[int, int]
    dropped: tuple[int, ...]
    places: tuple[int, ...] | None = None
    fill: float | None = None

    @classmethod
    def of(cls, use: Use, leaf: Deferred) -> "Lookup | str":
        """The lookup of an equation, or why it cannot be made on the stored rows."""
        tensor: Any = leaf.tensor
        if why := _why_not_stored_by_rows(tensor):
            return why
        if not leaf.only_cast:
            return "it is turned or reshaped before the lookup"
        order = (*tensor.stack_axes, *tensor.output_axes, *tensor.input_axes)
        params = use.eqn.params
        sizes = tuple(params["slice_sizes"])
        if any(sizes[axis] != tensor.shape[axis] for axis in tensor.input_axes):
            return "the lookup picks among what a product with it sums over"
        plain: dict[str, Any] = {
            "shape": tensor.shape,
            "order": order,
            "columns": len(tensor.input_axes),
            "sizes": sizes,
        }
        if use.eqn.primitive.name == "dynamic_slice":
            starts = {axis: axis for axis in range(len(sizes))}
            return cls(**plain, starts=starts, batched={}, dropped=())
        if use.eqn.primitive.name != "gather":
            return _ELSEWHERE
        numbers = params["dimension_numbers"]
        dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        if set(dropped) & set(tensor.input_axes):
            return _ELSEWHERE
        fill = None
        if params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
            fill = np.nan if params["fill_value"] is None else params["fill_value"]
        batching = numbers.operand_batching_dims, numbers.start_indices_batching_dims
        return cls(
            **plain,
            starts={axis: n for n, axis in enumerate(numbers.start_index_map)},
            batched=dict(zip(*batching, strict=True)),
            dropped=dropped,
            places=tuple(numbers.offset_dims),
            fill=fill,
        )

    def run(self, leaf: Deferred, indices: list[jax.Array], out: Any) -> jax.Array:
        """The rows that an index picks, as the equation gives them.

        Args:
            leaf: the table.
            indices: the inputs of the equation after the table.
            out: shape and dtype of the result.
        """
        if self.places is None:
            index = jnp.stack([_narrow(each) for each in indices])
        else:
            index = _narrow(indices[0])
        rows, inside = self._rows(index)
        found = rows_of(leaf.tensor, rows.reshape(-1))
        found = leaf.viewed(round_to(found, leaf.tensor.dtype))
        last = self.order[len(self.order) - self.columns :]
        found = found.reshape(*rows.shape, *(self.shape[axis] for axis in last))
        lead = index.ndim - 1
        kept = [axis for axis in self.order if axis not in self.dropped]
        turned = [lead + kept.index(axis) for axis in sorted(kept)]
        found = found.transpose(*range(lead), *turned)
        if self.places is None:
            return found
        found = jnp.moveaxis(found, range(lead, found.ndim), self.places)
        if inside is None:
            return found
        rest = [place for place in range(found.ndim) if place not in self.places]
        whole = jax.lax.broadcast_in_dim(inside, found.shape, rest)
        return jnp.where(whole, found, jnp.asarray(self.fill, out.dtype))

    def _rows(self, index: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The numbers of the rows in the matrix, and which starts are in bounds."""
        lead = index.shape[:-1]
        axes = self.order[: len(self.order) - self.columns]
        windows = [axis for axis in axes if axis not in self.dropped]
        rank = len(lead) + len(windows)
        rows = jnp.zeros((1,) * rank, jnp.int32)
        inside = None if self.fill is None else jnp.ones(lead, bool)
        for axis, part in self.starts.items():
            if inside is not None:
                at, last = index[..., part], self.shape[axis] - self.sizes[axis]
                inside = inside & (at >= np.int32(0)) & (at <= np.int32(last))
        for place, axis in enumerate(axes):
            number = jnp.zeros((1,) * rank, jnp.int32)
            if axis in self.starts:
                last = self.shape[axis] - self.sizes[axis]
                at = jnp.clip(index[..., self.starts[axis]], 0, last)
                number = jax.lax.expand_dims(at, range(len(lead), rank))
            elif axis in self.batched:
                at = jax.lax.broadcasted_iota(jnp.int32, lead, self.batched[axis])
                number = jax.lax.expand_dims(at, range(len(lead), rank))
            if axis in windows:
                where = len(lead) + windows.index(axis)
                sizes = [1] * rank
                sizes[where] = self.sizes[axis]
                number = number + jax.lax.broadcasted_iota(jnp.int32, sizes, where)
            step = math.prod(self.shape[later] for later in axes[place + 1 :])
            rows = rows + number * np.int32(step)
        whole = (*lead, *(self.sizes[axis] for axis in windows))
        return jnp.broadcast_to(rows, whole), inside


def _narrow(index: jax.Array) -> jax.Array:
    """An index of any integer dtype as int32; what is out of bounds stays so."""
    kind = jnp.iinfo(index.dtype)
    top = jnp.iinfo(jnp.int32).max
    low, high = max(kind.min, -1), min(kind.max, top)
    return jnp.clip(index, low, high).astype(jnp.int32)


def _why_not_stored_by_rows(tensor: CompressedTensor) -> str:
    """Why rows of a leaf cannot be read from what is stored; empty if they can."""
    if not isinstance(tensor, QTensor | LowRank):
        return f"the rows of a {type(tensor).__name__} are not looked up as stored"
    if 0 in tensor.shape:
        return "the table is empty"
    if isinstance(tensor, LowRank):
        if tensor.windows:
            return "its factors are those of a convolution"
        if tensor.stack_axes:
            return "each copy in the stack has its own factors"
        table = tensor.factors[-1]
        if is_compressed(table) and not isinstance(table, QTensor):
            return f"the rows of a {type(table).__name__} are not looked up as stored"
    return ""
