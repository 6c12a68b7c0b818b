"""Products with the stored blocks of a matrix by `mma`, on NVIDIA GPUs from sm80 on.

As `_gpu_blocks`, with the instruction and the copies that an A100 has: one warpgroup
goes through the stored blocks of a row and keeps the sums in registers.
"""

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from jcompress.kernels._gpu_mma import multiply, narrow, to_floats, write
from jcompress.kernels._gpu_mosaic import COMPILER, load_vector, plgpu, swizzled

_ROOM = 96 << 10
"""Shared memory that every device from sm80 on gives a block."""


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
        x, blocks, columns, starts, scales, tall, outputs: see
            `_gpu_blocks.product_of_blocks`.
        interpret: parameters of Pallas' interpreter, which has no `mma`: the product
            of the same operands is then a plain one. None compiles.
    """
    number, high, wide = blocks.shape
    tile = (high, tall)
    moved = wide * (tall * 2 + high * blocks.dtype.itemsize)
    layout = plgpu.Layout.MMA_ACC(jnp.float32)

    def body(*refs: Any) -> None:
        names = iter(refs)
        x_all, blocks_all, columns_all, starts_all = (next(names) for _ in range(4))
        scales_all = None if scales is None else next(names)
        out = next(names)
        across = lax.axis_index("output")
        rows = pl.ds(lax.axis_index("row") * tall, tall)
        mine = pl.ds(across * high, high)
        start = starts_all[across]

        def step(index: Any, x_tile: Any, block: Any, total: Any) -> Any:
            left = to_floats(block[...], x.dtype)
            right = x_tile.transpose((1, 0))[...]
            return multiply(total, left, right, interpret)

        specs = [
            plgpu.BlockSpec(
                (height, wide),
                place,
                transforms=swizzled(dtype, width),
                memory_space=plgpu.SMEM,
                # Copies before sm90 do not look where the arrays end.
                oob_fill_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS,
            )
            for height, dtype, width, place in (
                (
                    tall, x.dtype, narrow(tall, wide),
                    lambda i: (0, columns_all[start + i]),
                ),
                (high, blocks.dtype, wide, lambda i: (start + i, 0)),
            )
        ]  # fmt: skip
        total = plgpu.emit_pipeline(
            step,
            grid=(starts_all[across + 1] - start,),
            in_specs=specs,
            max_concurrent_steps=max(1, min(4, _ROOM // moved)),
            init_carry=plgpu.layout_cast(jnp.zeros(tile, jnp.float32), layout),
        )(x_all.at[rows, :], blocks_all)
        if scales_all is not None:
            scale = load_vector(scales_all, (mine, 0), layout.reduce(1))
            total = total * lax.broadcast_in_dim(scale, tile, (0,))
        write(out.at[rows, mine], total.astype(x.dtype), interpret)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((x.shape[0], outputs), x.dtype),
        grid=(outputs // high, x.shape[0] // tall),
        grid_names=("output", "row"),
        compiler_params=COMPILER,
        **({} if interpret is None else {"interpret": interpret}),
    )
    given = (x, blocks.reshape(number * high, wide), columns, starts, scales)
    product: jax.Array = kernel(*(array for array in given if array is not None))
    return product
