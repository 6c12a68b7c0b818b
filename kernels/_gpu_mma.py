"""Products with integer weights by `mma`, on NVIDIA GPUs from sm80 (A100) on.

As `_gpu_wgmma`, the transpose, `weight @ x.T`: each of four warps reads 16 of every 64
rows of the weight, converts them in registers (exactly: a 16-bit float holds 8-bit
integers), and multiplies them by all rows of the activations that the block has.
Activations of int8 need no conversion but int4's to int8, and their sums are exact in
int32. Tiles of both operands arrive in shared memory several steps ahead.

Not every supported JAX has `mma`: see `HAS_MMA`.
"""

import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcompress.kernels._gpu import Tiles
from jcompress.kernels._gpu_mosaic import COMPILER, load_vector, plgpu, swizzled

_HIGH = 1.5 * 2**23
"""A float32 whose last bit counts ones, with room for small integers either way."""
_HIGH_BITS = 0x4B400000
"""Its bits."""


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
        interpret: parameters of Pallas' interpreter, which has no `mma`: the product
            of the same operands is then a plain one. None compiles.
    """
    inputs, outputs = x.shape[1], weight.shape[0]
    group = inputs // scales.shape[1]
    single = scales.shape[1] == 1
    piece = min(group, tiles.inputs)
    share = inputs // tiles.splits
    sums = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    tile = (tiles.outputs, tiles.rows)
    layout = plgpu.Layout.MMA_ACC(jnp.int32)
    row, column = layout.reduce(1), layout.reduce(0)
    left_row = plgpu.Layout.MMA_LHS(x.dtype).reduce(1)

    def nothing(dtype: Any) -> jax.Array:
        zeros_there: jax.Array = plgpu.layout_cast(jnp.zeros(tile, dtype), layout)
        return zeros_there

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
        out = next(names)
        split = lax.axis_index("split")
        rows = pl.ds(lax.axis_index("row") * tiles.rows, tiles.rows)
        mine = pl.ds(lax.axis_index("output") * tiles.outputs, tiles.outputs)

        def moved(total: jax.Array, number: Any) -> jax.Array:
            """The sums of a group, moved by what its zero points add to each."""
            if x_sums_all is None:
                return total
            zero = load_vector(zeros_all, (mine, number), row).astype(jnp.int32)
            of_x = load_vector(x_sums_all, (number, rows), column)
            return total - down(zero) * across(of_x)

        def step(index: Any, x_tile: Any, weight_tile: Any, total: Any) -> Any:
            start = split * share + index[0] * tiles.inputs
            columns = [slice(at, at + piece) for at in range(0, tiles.inputs, piece)]
            numbers = [(start + each.start) // group for each in columns]
            # Asked for before the products, the scales arrive during them.
            factors = []
            if not single:
                factors = [load_vector(scales_all, (mine, n), row) for n in numbers]
            left = to_floats(weight_tile[...], x.dtype)
            right = x_tile.transpose((1, 0))[...]
            for place, (each, number) in enumerate(zip(columns, numbers, strict=True)):
                part = left[:, each]
                if zeros_all is not None and x_sums_all is None:
                    zero = load_vector(zeros_all, (mine, number), left_row)
                    zero = zero.astype(jnp.float32).astype(x.dtype)
                    part = part - lax.broadcast_in_dim(zero, part.shape, (0,))
                if single:
                    total = multiply(total, part, right[each], interpret)
                    continue
                own = multiply(nothing(sums), part, right[each], interpret)
                own = moved(own, number).astype(jnp.float32)
                total = total + own * down(factors[place])
            return total

        columns = pl.ds(split * share, share)
        total = plgpu.emit_pipeline(
            step,
            grid=(share // tiles.inputs,),
            in_specs=[
                plgpu.BlockSpec(
                    (high, tiles.inputs),
                    lambda i: (0, i),
                    transforms=swizzled(dtype, width),
                    memory_space=plgpu.SMEM,
                )
                for high, dtype, width in (
                    (tiles.rows, x.dtype, narrow(tiles.rows, tiles.inputs)),
                    (tiles.outputs, weight.dtype, tiles.inputs),
                )
            ],
            max_concurrent_steps=tiles.stages,
            init_carry=nothing(sums if single else jnp.float32),
        )(x_all.at[rows, columns], weight_all.at[mine, columns])
        if single and whole:
            scale = load_vector(scales_all, (mine, 0), row)
            total = moved(total, 0).astype(jnp.float32) * down(scale)
        if x_scale_all is not None:
            total = total * across(load_vector(x_scale_all, (rows,), column))
        if bias_all is not None:
            total = total + down(load_vector(bias_all, (mine,), row))
        write(out.at[split, rows, mine], total.astype(written), interpret)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((tiles.splits, x.shape[0], outputs), written),
        grid=(outputs // tiles.outputs, x.shape[0] // tiles.rows, tiles.splits),
        grid_names=("output", "row", "split"),
        compiler_params=COMPILER,
        **({} if interpret is None else {"interpret": interpret}),
    )
    given = (x, weight, scales, zeros, x_sums, x_scale, bias)
    found: jax.Array = kernel(*(array for array in given if array is not None))
    return found


def to_floats(integers: jax.Array, dtype: Any) -> jax.Array:
    """Exactly: a float's lowest bits take the integer, and its own value goes.

    The compiler's conversion of few bits to bfloat16 has instructions of sm90.
    """
    if dtype != jnp.bfloat16 or integers.dtype == dtype:
        return integers.astype(dtype)
    bits = integers.astype(jnp.int32) + np.int32(_HIGH_BITS)
    floats = lax.bitcast_convert_type(bits, jnp.float32) - np.float32(_HIGH)
    return floats.astype(dtype)


def multiply(
    total: jax.Array, left: jax.Array, right: jax.Array, interpret: Any
) -> jax.Array:
    """`total + left @ right` by `mma`; interpreted, as a plain product."""
    if interpret is None:
        total = plgpu.mma(total, left, right)
        return total
    both = (left.astype(total.dtype), right.astype(total.dtype))
    return total + jnp.matmul(*both, preferred_element_type=total.dtype)


def write(place: Any, total: jax.Array, interpret: Any) -> None:
    """Write a transposed tile to memory."""
    if interpret is None:
        turned = plgpu.layout_cast(total, plgpu.Layout.WGMMA_TRANSPOSED)
        plgpu.store(place.transpose((1, 0)), turned, optimized=False)
    else:
        place[...] = total.T


def narrow(rows: int, inputs: int) -> int:
    """Columns of a part of the activations' tile: four warps copy as many each."""
    return inputs // (4 // math.gcd(4, rows // 8))
