"""`BlockSparse`: a weight of which only the blocks that are not zero are stored."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import from_matrix
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.rounding import round_to


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BlockSparse(MatrixTensor):
    """A weight stored as the blocks of its matrix that are not zero.

    Blocks of bn outputs and bk inputs tile each matrix of `MatrixTensor`. Those of one
    row of blocks follow each other, in increasing order of their columns; with
    `b` between `starts[s, r]` and `starts[s, r + 1]`:

        matrix[s, r bn + i, c bk + j] = blocks[s, b, i, j] * scales[s, r bn + i, 0]
        c = columns[s, b]

    and 0 elsewhere, in float32, then cast to `dtype`. All matrices of a stack store the
    same number B of blocks; from `starts[s, -1]` on they are padding, zero blocks with
    column 0. At least one block is stored. Invariants, the shapes of which are checked
    on construction:

        N % bn == K % bk == 0,  B >= 1
        blocks: float32, bfloat16 or int8 [*S, B, bn, bk]
        columns: int32 [*S, B], each in [0, K / bk), increasing within a row of blocks
        starts: int32 [*S, N / bn + 1], starts[s, 0] = 0, none decreasing, at most B
        scales: float32 [*S, N, 1]; None for floats

    Attributes:
        blocks: the blocks.
        columns: the column of blocks in which each stands.
        starts: where the blocks of each row of blocks begin, and where the last end.
        scales: the step of each output's integers; None if `blocks` holds floats.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("blocks", "columns", "starts", "scales")

    blocks: jax.Array
    columns: jax.Array
    starts: jax.Array
    scales: jax.Array | None = None

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        if self.blocks.ndim != len(stacks) + 3 or 0 in self.blocks.shape:
            raise ValueError(
                f"BlockSparse: blocks is {list(self.blocks.shape)}, not "
                f"[{', '.join([*map(str, stacks), 'B', 'bn', 'bk'])}] with B >= 1"
            )
        count, high, wide = self.blocks.shape[-3:]
        if outputs % high or inputs % wide:
            raise ValueError(
                f"BlockSparse: blocks of {high} x {wide} do not tile a matrix of "
                f"{outputs} outputs and {inputs} inputs"
            )
        shape = (*stacks, count, high, wide)
        self.check_array("blocks", shape, jnp.float32, jnp.bfloat16, jnp.int8)
        self.check_array("columns", (*stacks, count), jnp.int32)
        self.check_array("starts", (*stacks, outputs // high + 1), jnp.int32)
        if (self.scales is None) == (self.blocks.dtype == jnp.int8):
            raise ValueError("BlockSparse: int8 blocks need scales, floats have none")
        if self.scales is not None:
            self.check_array("scales", (*stacks, outputs, 1), jnp.float32)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Outputs and inputs of a block."""
        high, wide = self.blocks.shape[-2:]
        return high, wide

    def _dense(self) -> jax.Array:
        *stacks, outputs, inputs = self.matrix_shape
        count = math.prod(stacks)

        def flat(array: jax.Array) -> jax.Array:
            return array.reshape(count, *array.shape[len(stacks) :])

        def placed(*matrix: jax.Array) -> jax.Array:
            return place_blocks(*matrix, inputs=inputs)

        stored = (flat(self.blocks), flat(self.columns), flat(self.starts))
        matrix = jax.vmap(placed)(*stored)
        if self.scales is None:
            matrix = matrix.astype(self.dtype)
        else:
            wide = matrix.astype(jnp.float32) * flat(self.scales)
            matrix = round_to(wide, self.dtype)
        matrix = matrix.reshape(*stacks, outputs, inputs)
        return from_matrix(matrix, self.axes, self.shape)


def place_blocks(
    blocks: jax.Array, columns: jax.Array, starts: jax.Array, *, inputs: int
) -> jax.Array:
    """The matrix [N, K] that holds stored blocks, of their dtype; not scaled.

    Args:
        blocks: [B, bn, bk].
        columns: int32 [B].
        starts: int32 [N / bn + 1].
        inputs: K.
    """
    count, high, wide = blocks.shape
    rows = starts.shape[0] - 1
    tiles = jnp.zeros((rows, inputs // wide, high, wide), blocks.dtype)
    # The row of padding is beyond the last, where nothing is written.
    tiles = tiles.at[block_rows(starts, count), columns].set(blocks, mode="drop")
    return jnp.transpose(tiles, (0, 2, 1, 3)).reshape(rows * high, inputs)


def block_rows(starts: jax.Array, count: int) -> jax.Array:
    """The row of blocks of each stored block, int32 [B]; of padding N / bn."""
    numbers = jnp.arange(count, dtype=jnp.int32)
    found = jnp.searchsorted(starts, numbers, side="right").astype(jnp.int32)
    return found - np.int32(1)


def take_blocks(
    matrix: np.ndarray[Any, Any], block: tuple[int, int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The storage of a matrix: its blocks that are not zero.

    Args:
        matrix: [*S, N, K] of any dtype, on the host.
        block: bn and bk, which divide N and K.

    Returns:
        `blocks`, `columns` and `starts` as in `BlockSparse`.
    """
    *stacks, outputs, inputs = matrix.shape
    high, wide = block
    rows, across = outputs // high, inputs // wide
    tiles = matrix.reshape(-1, rows, high, across, wide).swapaxes(2, 3)
    kept = (tiles != 0).any(axis=(3, 4))
    each = kept.reshape(len(tiles), -1).sum(1)
    most = max(1, int(each.max(initial=0)))
    blocks = np.zeros((len(tiles), most, high, wide), matrix.dtype)
    columns = np.zeros((len(tiles), most), np.int32)
    for number, count in enumerate(each):
        blocks[number, :count] = tiles[number][kept[number]]
        columns[number, :count] = np.nonzero(kept[number])[1]
    starts = np.zeros((len(tiles), rows + 1), np.int32)
    starts[:, 1:] = np.cumsum(kept.sum(2), axis=1)
    return (
        blocks.reshape(*stacks, *blocks.shape[1:]),
        columns.reshape(*stacks, most),
        starts.reshape(*stacks, rows + 1),
    )
