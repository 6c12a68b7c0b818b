"""A lookup in a compressed table: only the rows that were picked are made dense."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors import LowRank, QTensor, is_compressed
from jcompress.tensors.low_rank import Factor, dense_factor
from jcompress.tensors.weight_matrix import dequantize_matrix
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.values import Use


def rows_of(tensor: Factor, picked: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Rows of a stored matrix [N, K], float32 [M, K].

    Args:
        tensor: the matrix: an array, a `QTensor` or a `LowRank`.
        picked: picks the rows of an array.
    """
    match tensor:
        case QTensor():
            # An index out of bounds fills the scales with NaN, and so the result.
            zeros = None if tensor.zeros is None else picked(tensor.zeros)
            values = tensor.format.unpack(
                picked(tensor.values), tensor.matrix_shape[-1]
            )
            scales = picked(tensor.float_scales)
            return dequantize_matrix(values, scales, zeros, tensor.dtype).astype(
                jnp.float32
            )
        case LowRank():
            rows = rows_of(tensor.factors[-1], picked)
            for factor in tensor.factors[-2::-1]:
                part = dense_factor(factor).astype(jnp.float32)
                rows = jnp.matmul(rows, part, precision=jax.lax.Precision.HIGHEST)
            return rows
    assert isinstance(tensor, jax.Array)
    return picked(tensor).astype(jnp.float32)


def why_not_by_rows(use: Use, leaf: Deferred) -> str:
    """Why a lookup cannot be made on the stored rows; empty if it can."""
    tensor = leaf.tensor
    params = use.eqn.params
    if not isinstance(tensor, QTensor | LowRank):
        return f"the rows of a {type(tensor).__name__} are not looked up as stored"
    if use.eqn.primitive.name != "gather" or not leaf.only_cast:
        return "the index is not that of a plain lookup of rows"
    numbers = params["dimension_numbers"]
    rank = len(use.eqn.outvars[0].aval.shape)
    plain = (
        numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and not numbers.operand_batching_dims
        and numbers.offset_dims == (rank - 1,)
    )
    stored_by_row = (tensor.output_axes, tensor.input_axes) == ((0,), (1,))
    if not plain or not stored_by_row or params["slice_sizes"][0] != 1:
        return "the index is not that of a plain lookup of rows"
    if isinstance(tensor, LowRank) and tensor.windows:
        return "its factors are those of a convolution"
    table = tensor.factors[-1] if isinstance(tensor, LowRank) else tensor
    if is_compressed(table) and not isinstance(table, QTensor):
        return f"the rows of a {type(table).__name__} are not looked up as stored"
    if isinstance(table, QTensor) and table.scales.shape[0] != table.shape[0]:
        return "one scale serves several rows"
    fill = params["fill_value"]
    if fill is not None and not np.isnan(fill):
        return f"an index out of bounds gives {fill}"
    return ""
