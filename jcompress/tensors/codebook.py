"""`Codebook`: a weight stored as small indices into a table of its values."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.rounding import round_to

SMALL = 16
"""The most values that an index of 4 bits can name."""
MOST = 256
"""The most values of a table; an index takes 8 bits."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Codebook(MatrixTensor):
    """A weight that takes few values: a table of them, and an index for each weight.

    The N rows of a matrix of `MatrixTensor` share R tables, N / R rows in a row each:

        matrix[s, n, k] = codebook[s, n // (N / R), index[s, n, k]]

    cast to `dtype`. Invariants, the shapes of which are checked on construction:

        1 <= C <= 256,  N % R == 0,  each index below C
        indices: uint8; C > 16: [*S, N, K]; else [*S, N, ceil(K / 2)], two a byte, even
            k in the low half, an odd K padded with 0
        codebook: float32 [*S, R, C]

    Attributes:
        indices: the places of the weights in the table.
        codebook: the tables.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("indices", "codebook")

    indices: jax.Array
    codebook: jax.Array

    @classmethod
    def of(cls, dense: jax.Array, axes: Axes) -> "Codebook":
        """Store an array that takes at most 256 different values, as it is.

        Each stacked copy gets one table for all its rows, as long as the longest; up
        to 16 values an index takes 4 bits.

        Args:
            dense: floats; not traced.
            axes: the role of each axis.

        Raises:
            ValueError: there are more values, or one is not finite.
        """
        matrix = np.asarray(to_matrix(dense, axes))
        *stacks, outputs, inputs = matrix.shape
        found = [
            np.unique(part.astype(np.float32), return_inverse=True)
            for part in matrix.reshape(math.prod(stacks), outputs * inputs)
        ]
        most = max([1, *(len(values) for values, _ in found)])
        if most > MOST:
            raise ValueError(
                f"Codebook: the array takes {most} different values, and a table has "
                f"at most {MOST}; cluster the values first"
            )
        if not all(np.isfinite(values).all() for values, _ in found):
            raise ValueError("Codebook: the array holds numbers that are not finite")
        # The last value fills up the shorter tables, where nothing points.
        tables = [np.pad(v, (0, most - len(v)), mode="edge") for v, _ in found]
        indices = np.stack([index for _, index in found]).astype(np.uint8)
        indices = indices.reshape(*stacks, outputs, inputs)
        return cls(
            indices=pack_indices(jnp.asarray(indices), most),
            codebook=jnp.asarray(np.stack(tables).reshape(*stacks, 1, most)),
            shape=dense.shape,
            dtype=dense.dtype,
            stack_axes=axes.stack,
            output_axes=axes.output,
            input_axes=axes.input,
        )

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        rows, size = self.codebook.shape[-2:] if self.codebook.ndim > 1 else (0, 0)
        if rows < 1 or outputs % rows or not 1 <= size <= MOST:
            raise ValueError(
                f"Codebook: codebook is {list(self.codebook.shape)}, not "
                f"[{', '.join([*map(str, stacks), 'R', 'C'])}] with R a divisor of "
                f"{outputs} and C from 1 to {MOST}"
            )
        self.check_array("codebook", (*stacks, rows, size), jnp.float32)
        stored = index_bytes(inputs, size)
        self.check_array("indices", (*stacks, outputs, stored), jnp.uint8)

    def _dense(self) -> jax.Array:
        matrix = look_up(self.indices, self.codebook, inputs=self.matrix_shape[-1])
        return from_matrix(round_to(matrix, self.dtype), self.axes, self.shape)


def index_bytes(inputs: int, size: int) -> int:
    """Bytes of the indices of one output into a table of `size` values."""
    return -(-inputs // 2) if size <= SMALL else inputs


def pack_indices(indices: jax.Array, size: int) -> jax.Array:
    """Store the indices uint8 [..., K] into tables of `size` values; see `Codebook`."""
    if size > SMALL:
        return indices
    pad = [(0, 0)] * (indices.ndim - 1) + [(0, indices.shape[-1] % 2)]
    even = jnp.pad(indices, pad)
    return even[..., ::2] | (even[..., 1::2] << np.uint8(4))


def unpack_indices(indices: jax.Array, size: int, inputs: int) -> jax.Array:
    """The indices uint8 [..., K] into tables of `size` values, as `Codebook` packs."""
    if size > SMALL:
        return indices
    pairs = jnp.stack([indices & np.uint8(15), indices >> np.uint8(4)], axis=-1)
    return pairs.reshape(*indices.shape[:-1], -1)[..., :inputs]


def look_up(indices: jax.Array, codebook: jax.Array, *, inputs: int) -> jax.Array:
    """The float32 matrix [*S, N, K] that indices stand for.

    Args:
        indices: uint8, as `Codebook` stores them.
        codebook: float32 [*S, R, C].
        inputs: K.
    """
    *stacks, rows, size = codebook.shape
    places = unpack_indices(indices, size, inputs).astype(jnp.int32)
    outputs = places.shape[-2]
    grouped = places.reshape(*stacks, rows, outputs // rows * inputs)
    picked = jnp.take_along_axis(codebook, grouped, axis=-1)
    return picked.reshape(*stacks, outputs, inputs)
