"""Products with integer weights on NVIDIA GPUs that have `wgmma` (H100, H200).

The kernel computes the transpose, `weight @ x.T`: the weight fills the 64 rows that a
warpgroup's matrix instruction has, however few rows the activations have. Tiles of both
arrive in shared memory by the tensor memory accelerator, several steps ahead. A
warpgroup reads 64 rows of integers into registers, converts them there (exactly: a
16-bit float holds 8-bit integers), and multiplies them from registers. With several
groups of scales each group's sum is scaled in float32; with one the sums stay in the
accumulator until the end.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from jcompress.kernels._gpu import WARPGROUP_ROWS, Tiles
from jcompress.kernels._gpu_mosaic import (
    COLUMN,
    COMPILER,
    ROW,
    load_vector,
    plgpu,
    swizzled,
)


def parts(
    x: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    x_sums: jax.Array | None,
    x_scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    tiles: Tiles,
    written: Any,
    whole: bool,
    interpret: Any,
) -> jax.Array:
    """The kernel: [splits, M, N]; not `whole`, sums that some scales still wait for.

    Args:
        x, weight, scales, zeros, x_scale, bias: see `_gpu_product.product`.
        x_sums: int32 [G, M], the sums of int8 activations if there are zero points.
        tiles: how to cut the product.
        written: dtype of the result.
        whole: whether nothing is left to be done after the kernel.
        interpret: parameters of Pallas' interpreter, which has no `wgmma` from
            registers: the converted weight then passes through shared memory. None
            compiles.
    """
    inputs, outputs = x.shape[1], weight.shape[0]
    group = inputs // scales.shape[1]
    single = scales.shape[1] == 1
    piece = min(group, tiles.inputs)
    share = inputs // tiles.splits
    sums = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    tile = (WARPGROUP_ROWS, tiles.rows)
    # int8 by int8 needs no conversion: the weight is multiplied from shared memory.
    convert = weight.dtype != x.dtype
    staged = convert and interpret is not None

    def body(*refs: Any) -> None:
        names = iter(refs)
        x_all, weight_all, scales_all = next(names), next(names), next(names)
        zeros_all = None if zeros is None else next(names)
        x_sums_all = None if x_sums is None else next(names)
        x_scale_all = None if x_scale is None else next(names)
        bias_all = None if bias is None else next(names)
        out, out_tile = next(names), next(names)
        staging = next(names, None)
        me = lax.axis_index("warpgroup") if tiles.specialized else 0
        split = lax.axis_index("split")
        rows = pl.ds(lax.axis_index("row") * tiles.rows, tiles.rows)
        first_output = (
            lax.axis_index("output") * tiles.warpgroups + me
        ) * WARPGROUP_ROWS
        mine = pl.ds(first_output, WARPGROUP_ROWS)
        local = pl.ds(me * WARPGROUP_ROWS, WARPGROUP_ROWS)

        def operand(weight_tile: Any, part: int, number: Any) -> Any:
            """64 rows of the weight and one group's inputs, ready to be multiplied."""
            columns = pl.ds(part * piece, piece)
            if not convert:
                return weight_tile.at[local, columns]
            # Read by single bytes in the layout that wgmma takes. Wider reads, whose
            # parts threads would exchange, need a fifth more instructions in all.
            floats = weight_tile[local, :].astype(x.dtype)
            floats = floats[:, part * piece : (part + 1) * piece]
            if zeros_all is not None and x_sums_all is None:
                zero = load_vector(zeros_all, (mine, number), ROW)
                zero = zero.astype(jnp.float32).astype(x.dtype)
                floats = floats - lax.broadcast_in_dim(zero, floats.shape, (0,))
            if staging is None:
                return floats
            staging.at[me][...] = floats
            plgpu.commit_smem()
            return staging.at[me]

        def each_piece(step: Any) -> list[tuple[int, Any]]:
            start = split * share + step * tiles.inputs
            count = tiles.inputs // piece
            return [(part, (start + part * piece) // group) for part in range(count)]

        def moved(total: jax.Array, number: Any) -> jax.Array:
            """The sums of a group, moved by what its zero points add to each."""
            if x_sums_all is None:
                return total
            zero = load_vector(zeros_all, (mine, number), ROW).astype(jnp.int32)
            of_x = load_vector(x_sums_all, (number, rows), COLUMN)
            across = lax.broadcast_in_dim(zero, tile, (0,))
            return total - across * lax.broadcast_in_dim(of_x, tile, (1,))

        def scaled(total: jax.Array, scale: jax.Array) -> jax.Array:
            return total.astype(jnp.float32) * lax.broadcast_in_dim(scale, tile, (0,))

        def multiply(total: Any, left: Any, x_tile: Any, part: int) -> None:
            columns = pl.ds(part * piece, piece)
            plgpu.wgmma(total, left, x_tile.at[:, columns].transpose((1, 0)))

        def in_place(index: Any, x_tile: Any, weight_tile: Any, total: Any) -> Any:
            for part, number in each_piece(index[0]):
                multiply(total, operand(weight_tile, part, number), x_tile, part)
            plgpu.wgmma_wait(tiles.overlapped)
            return total

        def by_group(index: Any, x_tile: Any, weight_tile: Any, total: Any) -> Any:
            pieces = each_piece(index[0])
            # Asked for before the products, the scales arrive during them.
            factors = [load_vector(scales_all, (mine, n), ROW) for _, n in pieces]
            for (part, number), factor in zip(pieces, factors, strict=True):
                left = operand(weight_tile, part, number)

                def alone(sum_: Any, left: Any = left, part: int = part) -> Any:
                    multiply(sum_, left, x_tile, part)
                    return sum_[...]

                own = pl.run_scoped(alone, plgpu.WGMMAAccumulatorRef(tile, sums))
                total = total + scaled(moved(own, number), factor)
            return total

        def write(total: jax.Array) -> None:
            if single and whole:
                scale = load_vector(scales_all, (mine, 0), ROW)
                total = scaled(moved(total, 0), scale)
            if x_scale_all is not None:
                factor = load_vector(x_scale_all, (rows,), COLUMN)
                total = total * lax.broadcast_in_dim(factor, tile, (1,))
            if bias_all is not None:
                added = load_vector(bias_all, (mine,), ROW)
                total = total + lax.broadcast_in_dim(added, tile, (0,))
            turned = plgpu.layout_cast(
                total.astype(written), plgpu.Layout.WGMMA_TRANSPOSED
            )
            out_tile.at[me].transpose((1, 0))[...] = turned
            plgpu.commit_smem()
            place = out.at[split, rows, mine]
            plgpu.copy_smem_to_gmem(out_tile.at[me], place)
            plgpu.wait_smem_to_gmem(0)

        def around(run: Callable[[Any], Any]) -> None:
            if single:

                def scope(total: Any) -> None:
                    run(total)
                    write(total[...])

                pl.run_scoped(scope, plgpu.WGMMAAccumulatorRef(tile, sums))
            else:
                start = jnp.zeros(tile, jnp.float32)
                write(run(plgpu.layout_cast(start, plgpu.Layout.WGMMA)))

        share_columns = pl.ds(split * share, share)
        block_outputs = WARPGROUP_ROWS * tiles.warpgroups
        first = lax.axis_index("output") * block_outputs
        _pipeline(
            in_place if single else by_group,
            around,
            x_all.at[rows, share_columns],
            weight_all.at[pl.ds(first, block_outputs), share_columns],
            tiles=tiles,
            piece=piece,
        )

    options: dict[str, Any] = {}
    if tiles.specialized:
        options |= {"num_threads": tiles.warpgroups + 1, "thread_name": "warpgroup"}
    if interpret is not None:
        options["interpret"] = interpret
    scratch = [
        plgpu.SMEM(
            (tiles.warpgroups, tiles.rows, WARPGROUP_ROWS),
            written,
            transforms=swizzled(written, WARPGROUP_ROWS),
        )
    ]
    if staged:
        shape = (tiles.warpgroups, WARPGROUP_ROWS, piece)
        staging = plgpu.SMEM(shape, x.dtype, transforms=swizzled(x.dtype, piece))
        scratch.append(staging)
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((tiles.splits, x.shape[0], outputs), written),
        scratch_types=scratch,
        grid=(
            outputs // (WARPGROUP_ROWS * tiles.warpgroups),
            x.shape[0] // tiles.rows,
            tiles.splits,
        ),
        grid_names=("output", "row", "split"),
        compiler_params=COMPILER,
        **options,
    )
    given = (x, weight, scales, zeros, x_sums, x_scale, bias)
    found: jax.Array = kernel(*(array for array in given if array is not None))
    return found


def _pipeline(
    step: Callable[..., Any],
    around: Callable[[Callable[[Any], Any]], None],
    x: Any,
    weight: Any,
    *,
    tiles: Tiles,
    piece: int,
) -> None:
    """Run `step` over the inputs; `around` starts it and takes what it returns."""
    grid = (x.shape[1] // tiles.inputs,)
    specs = [
        plgpu.BlockSpec(
            (ref.shape[0], tiles.inputs),
            lambda i: (0, i),
            transforms=swizzled(ref.dtype, columns),
            memory_space=plgpu.SMEM,
            delay_release=tiles.overlapped,
        )
        for ref, columns in (
            (x, piece),
            (weight, piece if weight.dtype == x.dtype else tiles.inputs),
        )
    ]
    if tiles.specialized:
        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=grid,
            in_specs=specs,
            memory_registers=40,
            wg_axis="warpgroup",
            num_compute_wgs=tiles.warpgroups,
            max_concurrent_steps=tiles.stages,
            compute_context=around,
        )(x, weight)
        return

    def run(start: Any) -> Any:
        if not isinstance(start, jax.Array):

            def closed(*args: Any) -> None:
                step(*args, start)

            plgpu.emit_pipeline(
                closed, grid=grid, in_specs=specs, max_concurrent_steps=tiles.stages
            )(x, weight)
            return start
        return plgpu.emit_pipeline(
            step,
            grid=grid,
            in_specs=specs,
            max_concurrent_steps=tiles.stages,
            init_carry=start,
        )(x, weight)

    around(run)
