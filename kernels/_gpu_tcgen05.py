"""Products with integer weights by `tcgen05`, on NVIDIA's sm100 (B200, GB200).

As `_gpu_wgmma`, the transpose, `weight @ x.T`: a block has 128 rows of the weight,
which is as many as the instruction has from tensor memory. Registers convert them,
exactly (a 16-bit float holds 8-bit integers), and write them to tensor memory; the
activations stay in shared memory, and the sums appear in tensor memory.

With one group of scales the sums stay there until the end. With several they are read
after each step and scaled in float32, if the activations have few rows; if many, the
converted weight is scaled before, in float32, and rounded to the dtype of the
activations, as in XLA's form. Integers are not converted: int4 by int8 is left to
`mma`, since the copy of int8 from registers has no layout that the compiler finds.
"""

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from jcompress.kernels._gpu import TENSOR_ROWS, Tiles
from jcompress.kernels._gpu_mosaic import COMPILER, load_vector, plgpu, swizzled


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
        interpret: parameters of Pallas' interpreter; None compiles.
    """
    inputs, outputs = x.shape[1], weight.shape[0]
    group = inputs // scales.shape[1]
    single = scales.shape[1] == 1
    stays = single or tiles.scaled
    piece = min(group, tiles.inputs)
    pieces = tiles.inputs // piece
    share = inputs // tiles.splits
    steps = share // tiles.inputs
    sums = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    # int8 by int8 needs no conversion: the weight is multiplied from shared memory.
    convert = weight.dtype != x.dtype
    tile = (TENSOR_ROWS, tiles.rows)
    layout = plgpu.Layout.TCGEN05
    row, column = layout.reduce(1), layout.reduce(0)

    def down(vector: jax.Array) -> jax.Array:
        return lax.broadcast_in_dim(vector, tile, (0,))

    def across(vector: jax.Array) -> jax.Array:
        return lax.broadcast_in_dim(vector, tile, (1,))

    def body(*refs: Any) -> None:
        names = iter(refs)
        x_all, weight_all, scales_all = next(names), next(names), next(names)
        zeros_all = None if zeros is None else next(names)
        x_sums_all = None if x_sums is None else next(names)
        x_scale_all = None if x_scale is None else next(names)
        bias_all = None if bias is None else next(names)
        out, out_tile, done, sums_there = (next(names) for _ in range(4))
        left_there = next(names) if convert else None
        split = lax.axis_index("split")
        rows = pl.ds(lax.axis_index("row") * tiles.rows, tiles.rows)
        mine = pl.ds(lax.axis_index("output") * TENSOR_ROWS, TENSOR_ROWS)

        def group_of(step: Any, part: int) -> Any:
            return (split * share + step * tiles.inputs + part * piece) // group

        def moved(total: jax.Array, number: Any) -> jax.Array:
            """The sums of a group, moved by what its zero points add to each."""
            if x_sums_all is None:
                return total
            zero = load_vector(zeros_all, (mine, number), row).astype(jnp.int32)
            of_x = load_vector(x_sums_all, (number, rows), column)
            return total - down(zero) * across(of_x)

        def converted(integers: jax.Array, number: Any) -> jax.Array:
            """One group's part of the weight, as `tcgen05` takes it."""
            floats = integers.astype(x.dtype)
            if zeros_all is not None and x_sums_all is None:
                zero = load_vector(zeros_all, (mine, number), row)
                zero = zero.astype(jnp.float32).astype(x.dtype)
                floats = floats - lax.broadcast_in_dim(zero, floats.shape, (0,))
            if single or not tiles.scaled:
                return floats
            scale = load_vector(scales_all, (mine, number), row)
            wide = floats.astype(jnp.float32)
            scaled = wide * lax.broadcast_in_dim(scale, floats.shape, (0,))
            return scaled.astype(x.dtype)

        def left(weight_tile: Any, step: Any, slot: Any) -> list[Any]:
            """The weight's parts, group by group, where `tcgen05` reads them."""
            if left_there is None:
                columns = [pl.ds(part * piece, piece) for part in range(pieces)]
                return [weight_tile.at[:, each] for each in columns]
            integers = weight_tile[...]
            for part in range(pieces):
                of_part = integers[:, part * piece : (part + 1) * piece]
                of_part = converted(of_part, group_of(step, part))
                place = pl.ds(slot * tiles.inputs + part * piece, piece)
                plgpu.async_store_tmem(left_there.at[:, place], of_part)
            plgpu.commit_tmem()
            return [
                left_there.at[:, pl.ds(slot * tiles.inputs + part * piece, piece)]
                for part in range(pieces)
            ]

        def in_place(index: Any, x_tile: Any, weight_tile: Any) -> None:
            # While products run, the next step's weight is converted.
            (step,) = index
            slot = lax.rem(step, 2)
            operands = left(weight_tile, step, slot)
            for part, operand in enumerate(operands):
                right = x_tile.at[:, pl.ds(part * piece, piece)].transpose((1, 0))
                more = True if part else step > 0
                plgpu.tcgen05_mma(sums_there, operand, right, accumulate=more)
            plgpu.tcgen05_commit_arrive(done.at[slot])

            @pl.when(step > 0)
            def _() -> None:
                plgpu.barrier_wait(done.at[1 - slot])

        def by_group(index: Any, x_tile: Any, weight_tile: Any, total: Any) -> Any:
            (step,) = index
            numbers = [group_of(step, part) for part in range(pieces)]
            # Asked for before the products, the scales arrive during them.
            factors = [load_vector(scales_all, (mine, n), row) for n in numbers]
            for part, operand in enumerate(left(weight_tile, step, 0)):
                right = x_tile.at[:, pl.ds(part * piece, piece)].transpose((1, 0))
                own = sums_there.at[:, pl.ds(part * tiles.rows, tiles.rows)]
                plgpu.tcgen05_mma(own, operand, right, accumulate=False)
            plgpu.tcgen05_commit_arrive(done.at[0])
            plgpu.barrier_wait(done.at[0])
            for part, number in enumerate(numbers):
                place = pl.ds(part * tiles.rows, tiles.rows)
                own = plgpu.async_load_tmem(sums_there.at[:, place], layout=layout)
                own = moved(own, number).astype(jnp.float32)
                total = total + own * down(factors[part])
            plgpu.wait_load_tmem()
            return total

        share_columns = pl.ds(split * share, share)
        given = (x_all.at[rows, share_columns], weight_all.at[mine, share_columns])
        specs = [
            plgpu.BlockSpec(
                (ref.shape[0], tiles.inputs),
                lambda i: (0, i),
                transforms=swizzled(ref.dtype, columns),
                memory_space=plgpu.SMEM,
                delay_release=int(stays),
            )
            for ref, columns in zip(
                given, (piece, tiles.inputs if convert else piece), strict=True
            )
        ]
        options = {
            "grid": (steps,),
            "in_specs": specs,
            "max_concurrent_steps": tiles.stages,
        }
        if stays:
            plgpu.emit_pipeline(in_place, **options)(*given)
            plgpu.barrier_wait(done.at[(steps - 1) % 2])
            total = plgpu.async_load_tmem(sums_there, layout=layout)
        else:
            start = plgpu.layout_cast(jnp.zeros(tile, jnp.float32), layout)
            total = plgpu.emit_pipeline(by_group, init_carry=start, **options)(*given)
        if single and whole:
            scale = load_vector(scales_all, (mine, 0), row)
            total = moved(total, 0).astype(jnp.float32) * down(scale)
        if x_scale_all is not None:
            total = total * across(load_vector(x_scale_all, (rows,), column))
        if bias_all is not None:
            total = total + down(load_vector(bias_all, (mine,), row))
        turned = plgpu.layout_cast(
            total.astype(written), plgpu.Layout.TCGEN05_TRANSPOSED
        )
        out_tile.transpose((1, 0))[...] = turned
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_tile, out.at[split, rows, mine])
        plgpu.wait_smem_to_gmem(0)

    scratch = [
        plgpu.SMEM(
            (tiles.rows, TENSOR_ROWS), written, transforms=swizzled(written, 128)
        ),
        plgpu.Barrier(num_barriers=2, orders_tensor_core=True),
        plgpu.TMEM((TENSOR_ROWS, tiles.rows * (1 if stays else pieces)), sums),
    ]
    if convert:
        width = tiles.inputs * (2 if stays else 1)
        scratch.append(plgpu.TMEM((TENSOR_ROWS, width), x.dtype, packed=True))
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((tiles.splits, x.shape[0], outputs), written),
        scratch_types=scratch,
        grid=(outputs // TENSOR_ROWS, x.shape[0] // tiles.rows, tiles.splits),
        grid_names=("output", "row", "split"),
        compiler_params=COMPILER,
        **({} if interpret is None else {"interpret": interpret}),
    )
    arrays = (x, weight, scales, zeros, x_sums, x_scale, bias)
    found: jax.Array = kernel(*(array for array in arrays if array is not None))
    return found
