"""Products with the stored blocks of a matrix, on NVIDIA GPUs that have `wgmma`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from jcompress.kernels._gpu import WARPGROUP_ROWS
from jcompress.kernels._gpu_mosaic import COMPILER, ROW, load_vector, plgpu, swizzled
from jcompress.kernels._gpu_tiles import SHARED_BYTES


def product_of_blocks(
    x: jax.Array,
    blocks: jax.Array,
    columns: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
    *,
    tall: int,
    outputs: int,
    interpret: Any = None,
) -> jax.Array:
    """The sum over the stored blocks of each row: [M, K] -> [M, outputs].

    Args:
        x: bfloat16 or float16 [M, K], M a multiple of `tall`.
        blocks: [B, bn, bk] of the dtype of `x` or int8.
        columns: int32 [B].
        starts: int32 [outputs / bn + 1].
        scales: float32 [outputs, 1], or None.
        tall: rows of a tile.
        outputs: N.
        interpret: parameters of Pallas' interpreter; int8 blocks, once converted, then
            pass through shared memory. None compiles.
    """
    number, high, wide = blocks.shape
    warpgroups = high // WARPGROUP_ROWS
    convert = blocks.dtype != x.dtype
    staged = convert and interpret is not None
    tile = (WARPGROUP_ROWS, tall)
    moved = wide * (tall * 2 + high * blocks.dtype.itemsize)
    room = SHARED_BYTES["wgmma"] - high * tall * 2 - 1024

    def body(*refs: Any) -> None:
        names = iter(refs)
        x_all, blocks_all, columns_all, starts_all = (next(names) for _ in range(4))
        scales_all = None if scales is None else next(names)
        out, out_tile = next(names), next(names)
        staging = next(names, None)
        me = lax.axis_index("warpgroup")
        across = lax.axis_index("output")
        first_row = lax.axis_index("row") * tall
        mine = pl.ds(across * high + me * WARPGROUP_ROWS, WARPGROUP_ROWS)
        local = pl.ds(me * WARPGROUP_ROWS, WARPGROUP_ROWS)
        start = starts_all[across]

        def step(index: Any, x_tile: Any, block: Any, total: Any) -> Any:
            left = block.at[local, :]
            if convert:
                left = block[local, :].astype(x.dtype)
            if staging is not None:
                staging.at[me][...] = left
                plgpu.commit_smem()
                left = staging.at[me]
            plgpu.wgmma(total, left, x_tile.transpose((1, 0)))
            plgpu.wgmma_wait(0)
            return total

        def around(run: Callable[[Any], Any]) -> None:
            def scope(sums: Any) -> None:
                run(sums)
                total = sums[...]
                if scales_all is not None:
                    scale = load_vector(scales_all, (mine, 0), ROW)
                    total = total * lax.broadcast_in_dim(scale, tile, (0,))
                turned = plgpu.layout_cast(
                    total.astype(x.dtype), plgpu.Layout.WGMMA_TRANSPOSED
                )
                out_tile.at[me].transpose((1, 0))[...] = turned
                plgpu.commit_smem()
                place = out.at[pl.ds(first_row, tall), mine]
                plgpu.copy_smem_to_gmem(out_tile.at[me], place)
                plgpu.wait_smem_to_gmem(0)

            pl.run_scoped(scope, plgpu.WGMMAAccumulatorRef(tile, jnp.float32))

        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(starts_all[across + 1] - start,),
            in_specs=[
                plgpu.BlockSpec(
                    (tall, wide),
                    lambda i: (0, columns_all[start + i]),
                    transforms=swizzled(x.dtype, wide),
                    memory_space=plgpu.SMEM,
                ),
                plgpu.BlockSpec(
                    (high, wide),
                    lambda i: (start + i, 0),
                    transforms=swizzled(blocks.dtype, wide),
                    memory_space=plgpu.SMEM,
                ),
            ],
            memory_registers=40,
            wg_axis="warpgroup",
            num_compute_wgs=warpgroups,
            max_concurrent_steps=max(2, min(4, room // moved)),
            compute_context=around,
        )(x_all.at[pl.ds(first_row, tall), :], blocks_all)

    shared = [((warpgroups, tall, WARPGROUP_ROWS), WARPGROUP_ROWS)]
    if staged:
        shared.append(((warpgroups, WARPGROUP_ROWS, wide), wide))
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((x.shape[0], outputs), x.dtype),
        scratch_types=[
            plgpu.SMEM(shape, x.dtype, transforms=swizzled(x.dtype, width))
            for shape, width in shared
        ],
        grid=(outputs // high, x.shape[0] // tall),
        grid_names=("output", "row"),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=COMPILER,
        **({} if interpret is None else {"interpret": interpret}),
    )
    given = (x, blocks.reshape(number * high, wide), columns, starts, scales)
    product: jax.Array = kernel(*(array for array in given if array is not None))
    return product
