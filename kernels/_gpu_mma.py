"""Products with integer weights for few rows, on NVIDIA GPUs from sm80 on.

With few rows the time goes into reading the weight and converting it. So, as on CPUs
and TPUs, the activations are written as small integers instead (`split_digits`; one
digit if they are quantized anyway), and the weight stays the integers that it is:
int4 becomes int8 by half the instructions that a 16-bit float takes. `mma`, which
every GPU from compute capability 8.0 on has, multiplies 64 rows of the weight by all
the digits, exactly in int32. Tiles arrive in shared memory several steps ahead.

Not every supported JAX has `mma`: see `HAS_MMA`.
"""

import dataclasses
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcompress.kernels._gpu import WARPGROUP_ROWS, round_up, step_inputs
from jcompress.kernels._gpu_mosaic import (
    COMPILER,
    group_sums,
    load_vector,
    plgpu,
    swizzled,
)
from jcompress.kernels._integers import DIGIT

BLOCKS = 432
"""Blocks that fill an A100: four on each of 108 multiprocessors."""
_PART = 32
STAGES = 4
"""Steps whose tiles are in shared memory or on their way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cut:
    """How a product is cut up: inputs of a step and of a group, blocks a sum."""

    step: int
    group: int
    splits: int
    single: bool


def product_of_digits(
    digits: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    interpret: Any = None,
) -> jax.Array:
    """`sum_j 254^-j sum_k digits[j, m, k] (weight[n, k] - zeros[n, g]) scales[n, g]`.

    Args:
        digits: int8 [D, M, K] with D M up to `FEW_DIGITS`.
        weight: int4 or int8 [N, K].
        scales: float32 [N, G].
        zeros: int8 [N, G], or None.
        interpret: parameters of Pallas' interpreter, which has no `mma`: the product
            of the same operands is then a plain one. None compiles.

    Returns:
        float32 [M, N].
    """
    count, rows, inputs = digits.shape
    outputs, groups = scales.shape
    step = step_inputs(inputs, groups)
    # Four warps copy a tile, each a part of 8 rows.
    tall = round_up(count * rows, 8 * 4 * _PART // step)
    flat = digits.reshape(count * rows, inputs)
    flat = jnp.pad(flat, ((0, tall - count * rows), (0, 0)))
    steps = inputs // step
    most = max(1, BLOCKS * WARPGROUP_ROWS // outputs)
    cut = _Cut(
        step=step,
        group=inputs // groups,
        splits=max(s for s in range(1, steps + 1) if steps % s == 0 and s <= most),
        single=groups == 1,
    )
    # Zero points move the sums, by themselves times the sums of the digits.
    sums = None if zeros is None else group_sums(flat, groups)
    inside = (None, None) if cut.single else (zeros, sums)
    parts = _kernel(flat, weight, scales, *inside, cut, interpret)
    whole = jnp.sum(parts, axis=0, dtype=parts.dtype)
    if cut.single and zeros is not None and sums is not None:
        whole = whole - zeros.astype(jnp.int32) * sums
    total = whole.astype(jnp.float32)
    if cut.single:
        total = total * scales
    places = total[:, : count * rows].reshape(outputs, count, rows)
    number = places[:, -1]
    for place in range(count - 2, -1, -1):
        number = places[:, place] + number * np.float32(1 / DIGIT)
    return number.T


def _kernel(
    digits: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    sums: jax.Array | None,
    cut: _Cut,
    interpret: Any,
) -> jax.Array:
    """The kernel: [splits, N, rows], int32 and not scaled if there is one group."""
    tall, inputs = digits.shape
    outputs = weight.shape[0]
    piece = min(cut.group, cut.step)
    share = inputs // cut.splits
    tile = (WARPGROUP_ROWS, tall)
    written = jnp.dtype(jnp.int32 if cut.single else jnp.float32)
    layout = plgpu.Layout.MMA_ACC(jnp.int32)
    row = layout.reduce(1)
    column = layout.reduce(0)

    def multiply(total: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
        if interpret is None:
            total = plgpu.mma(total, left, right)
            return total
        return total + jnp.matmul(left.astype(jnp.int32), right.astype(jnp.int32))

    def body(*refs: Any) -> None:
        *given, out = refs
        digits_all, weight_all, scales_all = given[:3]
        zeros_all, sums_all = (None, None) if zeros is None else given[3:]
        split = lax.axis_index("split")
        mine = pl.ds(lax.axis_index("output") * WARPGROUP_ROWS, WARPGROUP_ROWS)

        def nothing(dtype: Any) -> jax.Array:
            zeros_there: jax.Array = plgpu.layout_cast(jnp.zeros(tile, dtype), layout)
            return zeros_there

        def step(index: Any, digits_tile: Any, weight_tile: Any, total: Any) -> Any:
            start = split * share + index[0] * cut.step
            columns = [slice(at, at + piece) for at in range(0, cut.step, piece)]
            numbers = [(start + each.start) // cut.group for each in columns]
            # Asked for before the products, the scales arrive during them.
            factors = []
            if not cut.single:
                factors = [load_vector(scales_all, (mine, n), row) for n in numbers]
            left = weight_tile[...].astype(jnp.int8)
            right = digits_tile.transpose((1, 0))[...]
            for place, (each, number) in enumerate(zip(columns, numbers, strict=True)):
                part = left[:, each]
                if cut.single:
                    total = multiply(total, part, right[each])
                    continue
                own = multiply(nothing(jnp.int32), part, right[each])
                if sums_all is not None:
                    zero = load_vector(zeros_all, (mine, number), row)
                    across = lax.broadcast_in_dim(zero.astype(jnp.int32), tile, (0,))
                    of_digits = load_vector(sums_all, (number, slice(None)), column)
                    own = own - across * lax.broadcast_in_dim(of_digits, tile, (1,))
                factor = lax.broadcast_in_dim(factors[place], tile, (0,))
                total = total + own.astype(jnp.float32) * factor
            return total

        columns = pl.ds(split * share, share)
        total = plgpu.emit_pipeline(
            step,
            grid=(share // cut.step,),
            in_specs=[
                plgpu.BlockSpec(
                    (high, cut.step),
                    lambda i: (0, i),
                    transforms=swizzled(dtype, width),
                    memory_space=plgpu.SMEM,
                )
                for high, dtype, width in (
                    (tall, digits.dtype, _PART),
                    (WARPGROUP_ROWS, weight.dtype, cut.step),
                )
            ],
            max_concurrent_steps=STAGES,
            init_carry=nothing(written),
        )(digits_all.at[:, columns], weight_all.at[mine, columns])
        if interpret is None:
            plgpu.store(out.at[split, mine, :], total, optimized=False)
        else:
            out[split, mine, :] = total

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((cut.splits, outputs, tall), written),
        grid=(outputs // WARPGROUP_ROWS, cut.splits),
        grid_names=("output", "split"),
        compiler_params=COMPILER,
        **({} if interpret is None else {"interpret": interpret}),
    )
    given = [digits, weight, scales]
    if zeros is not None and sums is not None:
        given += [zeros, sums]
    parts: jax.Array = kernel(*given)
    return parts
