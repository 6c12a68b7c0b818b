"""`NMSparse`: a weight of which at most n of every m inputs are stored."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import from_matrix
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.rounding import round_to


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NMSparse(MatrixTensor):
    """A weight with n of every m inputs of each output stored.

    A group is m inputs in a row; if m does not divide K, the last one is shorter. Bit
    `k % 8` of byte `k // 8` of `mask` says that input k is kept. In every group of m
    exactly n are kept, be they zero; in a shorter last one of r, min(n, r). With `t`
    the number of kept inputs before k:

        matrix[s, i, k] = values[s, i, t] * scales[s, i, 0]   where k is kept, else 0

    in float32, then cast to `dtype`. Invariants, the shapes of which are checked on
    construction:

        1 <= n < m
        values: float32, bfloat16 or int8 [*S, N, ceil(K / m) n]; 0 after the last kept
        mask: uint8 [*S, N, ceil(K / 8)]; 0 after bit K
        scales: float32 [*S, N, 1]; None for floats

    Attributes:
        values: the kept weights, in order.
        mask: which inputs they belong to.
        scales: the step of each output's integers; None if `values` holds floats.
        n: weights kept of each group.
        m: inputs of a group.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("values", "mask", "scales")

    values: jax.Array
    mask: jax.Array
    scales: jax.Array | None = None
    n: int
    m: int

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        if not 1 <= self.n < self.m:
            raise ValueError(f"NMSparse: 1 <= n < m, not n = {self.n}, m = {self.m}")
        *stacks, outputs, inputs = self.matrix_shape
        shape = (*stacks, outputs, stored_inputs(inputs, self.n, self.m))
        self.check_array("values", shape, jnp.float32, jnp.bfloat16, jnp.int8)
        self.check_array("mask", (*stacks, outputs, -(-inputs // 8)), jnp.uint8)
        if (self.scales is None) == (self.values.dtype == jnp.int8):
            raise ValueError("NMSparse: int8 values need scales, floats have none")
        if self.scales is not None:
            self.check_array("scales", (*stacks, outputs, 1), jnp.float32)

    def _dense(self) -> jax.Array:
        matrix = place_kept(self.values, self.mask, inputs=self.matrix_shape[-1])
        if self.scales is None:
            matrix = matrix.astype(self.dtype)
        else:
            matrix = round_to(matrix.astype(jnp.float32) * self.scales, self.dtype)
        return from_matrix(matrix, self.axes, self.shape)


def stored_inputs(inputs: int, n: int, m: int) -> int:
    """How many weights of an output are stored."""
    return -(-inputs // m) * n


def unpack_mask(mask: jax.Array, inputs: int) -> jax.Array:
    """The bits of a mask: uint8 [..., ceil(K / 8)] -> uint8 [..., K] of 0 and 1."""
    places = jnp.arange(8, dtype=jnp.uint8)
    bits = (mask[..., None] >> places.reshape((1,) * mask.ndim + (8,))) & np.uint8(1)
    return bits.reshape(*mask.shape[:-1], -1)[..., :inputs]


def place_kept(values: jax.Array, mask: jax.Array, *, inputs: int) -> jax.Array:
    """The matrix [..., N, K] that holds the kept weights, of their dtype; not scaled.

    Args:
        values: [..., N, ceil(K / m) n].
        mask: uint8 [..., N, ceil(K / 8)].
        inputs: K.
    """
    kept = unpack_mask(mask, inputs)
    before = jnp.cumsum(kept, axis=-1, dtype=jnp.int32) - kept.astype(jnp.int32)
    # Past the last kept input the count may be that of all the stored weights.
    places = jnp.minimum(before, np.int32(max(values.shape[-1] - 1, 0)))
    picked = jnp.take_along_axis(values, places, axis=-1)
    return jnp.where(kept == np.uint8(1), picked, jnp.zeros((), values.dtype))


def take_kept(
    matrix: np.ndarray[Any, Any], n: int, m: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The storage of a matrix with at most n weights other than zero in every m.

    Args:
        matrix: [*S, N, K] of any dtype, on the host.
        n: weights kept of each group; zeros, the first of them, where fewer are not 0.
        m: inputs of a group.

    Returns:
        `values` and `mask` as in `NMSparse`.
    """
    inputs = matrix.shape[-1]
    groups = -(-inputs // m)
    pad = [(0, 0)] * (matrix.ndim - 1) + [(0, groups * m - inputs)]
    parts = np.pad(matrix, pad) if inputs % m else matrix
    parts = parts.reshape(*matrix.shape[:-1], groups, m)
    # Of the zeros the first fill up what is missing to n; the padding comes last.
    zero = parts == 0
    counts = np.min_scalar_type(-m - 1)
    missing = n - m + zero.sum(-1, dtype=counts)
    place = np.cumsum(zero, axis=-1, dtype=counts)
    kept = ~zero | (place <= missing[..., None])
    values = parts[kept].reshape(*matrix.shape[:-1], groups * n)
    bits = kept.reshape(*matrix.shape[:-1], groups * m)[..., :inputs]
    return values, np.packbits(bits, axis=-1, bitorder="little")
