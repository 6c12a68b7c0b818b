"""`UnstructuredSparse`: a weight of which the entries that are 0 are left out."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import from_matrix
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.nm_sparse import unpack_mask
from jcompress.tensors.rounding import round_to


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnstructuredSparse(MatrixTensor):
    """A weight stored as its entries that are not 0 and a bit for each place.

    Bit `k % 8` of byte `k // 8` of a row of `mask` says that input k is kept. With `t`
    the number of kept inputs before k:

        matrix[s, i, k] = values[s, starts[s, i] + t] * scales[s, i, 0]

    where k is kept, else 0, in float32, then cast to `dtype`. All matrices of a stack
    store the same number V of values; from `starts[s, -1]` on they are zeros that fill
    up. At least one value is stored. Invariants, the shapes of which are checked on
    construction:

        values: float32, bfloat16 or int8 [*S, V],  V >= 1
        mask: uint8 [*S, N, ceil(K / 8)]; 0 after bit K
        starts: int32 [*S, N + 1], starts[s, 0] = 0, none decreasing, at most V;
            starts[s, i + 1] - starts[s, i] is the number of bits of row i
        scales: float32 [*S, N, 1]; None for floats

    Attributes:
        values: the kept weights, output by output, in order.
        mask: which inputs they belong to.
        starts: where the values of each output begin, and where the last end.
        scales: the step of each output's integers; None if `values` holds floats.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("values", "mask", "starts", "scales")

    values: jax.Array
    mask: jax.Array
    starts: jax.Array
    scales: jax.Array | None = None

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        if self.values.ndim != len(stacks) + 1 or self.values.shape[-1] < 1:
            raise ValueError(
                f"UnstructuredSparse: values is {list(self.values.shape)}, not "
                f"[{', '.join([*map(str, stacks), 'V'])}] with V >= 1"
            )
        shape = (*stacks, self.values.shape[-1])
        self.check_array("values", shape, jnp.float32, jnp.bfloat16, jnp.int8)
        self.check_array("mask", (*stacks, outputs, -(-inputs // 8)), jnp.uint8)
        self.check_array("starts", (*stacks, outputs + 1), jnp.int32)
        if (self.scales is None) == (self.values.dtype == jnp.int8):
            raise ValueError(
                "UnstructuredSparse: int8 values need scales, floats have none"
            )
        if self.scales is not None:
            self.check_array("scales", (*stacks, outputs, 1), jnp.float32)

    def _dense(self) -> jax.Array:
        matrix = place_values(
            self.values, self.mask, self.starts, inputs=self.matrix_shape[-1]
        )
        if self.scales is None:
            matrix = matrix.astype(self.dtype)
        else:
            matrix = round_to(matrix.astype(jnp.float32) * self.scales, self.dtype)
        return from_matrix(matrix, self.axes, self.shape)


def place_values(
    values: jax.Array, mask: jax.Array, starts: jax.Array, *, inputs: int
) -> jax.Array:
    """The matrix [..., N, K] that holds the kept weights, of their dtype; not scaled.

    Args:
        values: [..., V].
        mask: uint8 [..., N, ceil(K / 8)].
        starts: int32 [..., N + 1].
        inputs: K.
    """
    kept = unpack_mask(mask, inputs)
    before = jnp.cumsum(kept, axis=-1, dtype=jnp.int32) - kept.astype(jnp.int32)
    places = before + starts[..., :-1, None]
    last = np.int32(values.shape[-1] - 1)
    flat = jnp.minimum(places, last).reshape(*values.shape[:-1], -1)
    picked = jnp.take_along_axis(values, flat, axis=-1).reshape(kept.shape)
    return jnp.where(kept == np.uint8(1), picked, jnp.zeros((), values.dtype))


def take_values(
    matrix: np.ndarray[Any, Any],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The storage of a matrix: its entries that are not 0.

    Args:
        matrix: [*S, N, K] of any dtype, on the host.

    Returns:
        `values`, `mask` and `starts` as in `UnstructuredSparse`.
    """
    *stacks, outputs, inputs = matrix.shape
    flat = matrix.reshape(-1, outputs, inputs)
    kept = flat != 0
    starts = np.zeros((len(flat), outputs + 1), np.int64)
    np.cumsum(kept.sum(-1), axis=1, out=starts[:, 1:])
    values = np.zeros((len(flat), max(1, starts[:, -1].max(initial=0))), matrix.dtype)
    for number, each in enumerate(kept):
        values[number, : starts[number, -1]] = flat[number][each]
    mask = np.packbits(kept, axis=-1, bitorder="little")
    return (
        values.reshape(*stacks, -1),
        mask.reshape(*stacks, outputs, mask.shape[-1]),
        starts.astype(np.int32).reshape(*stacks, outputs + 1),
    )
