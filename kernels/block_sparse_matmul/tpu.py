"""`block_sparse_matmul` on TPUs: only the stored blocks are read and multiplied.

The kernel walks a list of steps, sorted by block row: one for each stored block, and
one for each block row without any, which writes zeros. The list lies in scalar memory
before the kernel starts, so the copies of the next blocks run ahead. A tile of rows of
the activations stays in the core with all its inputs, of which each step takes the
block's; so the activations are read once, and a block once for each tile of rows.
Steps at the end of the list, which stand for padding, neither copy nor multiply.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jcompress.kernels import _tiles
from jcompress.kernels._tpu import CONTRACT_LAST, LANES, VMEM_BYTES, tuned

_X_BYTES = 16 * 2**20
"""Of activations that stay in the core."""


class _Steps(NamedTuple):
    """What each step does, int32 [steps].

    Attributes:
        rows: block row of the outputs.
        slots: the block read.
        columns: block column of the block's inputs.
        flags: 1 for the first step of a row, 2 for the last, 4 if the block counts.
    """

    rows: jax.Array
    slots: jax.Array
    columns: jax.Array
    flags: jax.Array


_FIRST, _LAST, _MULTIPLY = 1, 2, 4


def tpu(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`; `reference` says what the arguments are.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, blocks, columns, starts, scales, outputs=outputs)
    if reason:
        raise ValueError(f"block_sparse_matmul: the form for TPUs {reason}")
    rows, inputs = x.shape
    _, height, width = blocks.shape
    fits = max(256, _X_BYTES // (inputs * x.dtype.itemsize) // 256 * 256)
    tile = min(rows, fits, tuned("block_sparse_matmul", _key(blocks), "tile", fits))
    steps = _steps(columns, starts, blocks.shape[0])
    row = pl.BlockSpec((1, height), lambda m, t, rows, *_: (0, rows[t]))
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(steps),
        grid=(pl.cdiv(rows, tile), steps.rows.shape[0]),
        in_specs=[
            pl.BlockSpec((tile, inputs), lambda m, t, *_: (m, 0)),
            pl.BlockSpec(
                (None, height, width), lambda m, t, rows, slots, *_: (slots[t], 0, 0)
            ),
            *([] if scales is None else [row]),
        ],
        out_specs=pl.BlockSpec((tile, height), lambda m, t, rows, *_: (m, rows[t])),
        scratch_shapes=[pltpu.VMEM((tile, height), jnp.float32)],
    )
    product: jax.Array = pl.pallas_call(
        functools.partial(_kernel, scaled=scales is not None),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct(
            (rows, outputs),
            x.dtype,
            manual_axis_type=jax.typeof(x).manual_axis_type,
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        name="block_sparse_matmul",
    )(*steps, x, blocks, *([] if scales is None else [scales.T]))
    return product


def refuses(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> str:
    """Why the kernel cannot compute this; "" if it can."""
    count, height, width = blocks.shape
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"needs float32 or bfloat16 activations, not {x.dtype}"
    if not x.shape[0] or not outputs:
        return "has no rows or no outputs to compute"
    if not count:
        return "has no blocks to multiply"
    if height % LANES or width % LANES:
        return f"needs blocks of multiples of {LANES}, not {height} x {width}"
    if x.shape[1] * x.dtype.itemsize * 256 > _X_BYTES:
        return f"cannot hold 256 rows of {x.shape[1]} inputs in the core"
    return ""


def prefers(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    outputs: int,
) -> bool:
    """Whether the kernel is the better choice (benchmarks/README.md)."""
    return _tiles.suits("block_sparse_matmul", "tpu", _key(blocks), x.shape[0])


def _key(blocks: jax.Array) -> str:
    _, height, width = blocks.shape
    return f"{height} x {width} {blocks.dtype}"


def _steps(columns: jax.Array, starts: jax.Array, count: int) -> _Steps:
    block_rows = starts.shape[0] - 1
    stored = starts[1:] - starts[:-1]
    taken = jnp.maximum(stored, jnp.int32(1))
    ends = jnp.cumsum(taken, dtype=jnp.int32)
    step = jnp.arange(count + block_rows, dtype=jnp.int32)
    # The list may be shorter than its room; further steps repeat the last one's copies.
    used = step < ends[-1]
    step = jnp.minimum(step, ends[-1] - jnp.int32(1))
    rows = jnp.sum(step[:, None] >= ends[None], axis=1, dtype=jnp.int32)
    place = step - (ends - taken)[rows]
    slots = jnp.clip(starts[rows] + place, 0, count - 1).astype(jnp.int32)
    flags = (
        jnp.where(place == 0, jnp.int32(_FIRST), jnp.int32(0))
        | jnp.where(place == taken[rows] - 1, jnp.int32(_LAST), jnp.int32(0))
        | jnp.where(stored[rows] > 0, jnp.int32(_MULTIPLY), jnp.int32(0))
    )
    flags = jnp.where(used, flags, jnp.int32(0))
    return _Steps(rows, slots, columns[slots].astype(jnp.int32), flags)


def _kernel(
    rows_ref: Any,
    slots_ref: Any,
    columns_ref: Any,
    flags_ref: Any,
    x_ref: Any,
    block_ref: Any,
    *rest: Any,
    scaled: bool,
) -> None:
    *scales_ref, out_ref, total_ref = rest
    step = pl.program_id(1)
    flags = flags_ref[step]

    @pl.when(flags & (_FIRST | _MULTIPLY) == _FIRST)
    def _() -> None:
        total_ref[...] = jnp.zeros_like(total_ref)

    @pl.when(flags & (_FIRST | _MULTIPLY) == _FIRST | _MULTIPLY)
    def _() -> None:
        total_ref[...] = _product(x_ref, block_ref, columns_ref[step])

    @pl.when(flags & (_FIRST | _MULTIPLY) == _MULTIPLY)
    def _() -> None:
        total_ref[...] += _product(x_ref, block_ref, columns_ref[step])

    @pl.when((flags & _LAST) != 0)
    def _() -> None:
        total = total_ref[...]
        if scaled:
            total = total * scales_ref[0][...]
        out_ref[...] = total.astype(out_ref.dtype)


def _product(x_ref: Any, block_ref: Any, column: jax.Array) -> jax.Array:
    """The block's inputs of all rows, times the block."""
    width = block_ref.shape[1]
    part = x_ref[:, pl.ds(pl.multiple_of(column * width, LANES), width)]
    block = block_ref[...]
    if block.dtype == jnp.int8:
        block = block.astype(part.dtype)
    wide = jnp.promote_types(part.dtype, block.dtype)
    exact = wide == jnp.float32
    return jax.lax.dot_general(
        part.astype(wide),
        block.astype(wide),
        CONTRACT_LAST,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )
