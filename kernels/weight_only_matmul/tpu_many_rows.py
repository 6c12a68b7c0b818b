"""Many rows of floats times small integers on a TPU: the products limit.

Each block of the weight becomes 16-bit floats in the core's memory, some lanes at a
time, once for each tile of rows. The conversion of the next lanes, the first of the
next block after the last of one, runs beside the products of those before. The
activations of a tile are put in the order of the stored integers once. Both are kept as
words of two 16-bit floats: Pallas lays these out in halves of registers otherwise,
which have to be put together again before each product.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jcompress.kernels._tpu import (
    CONTRACT_LAST,
    LANES,
    SUBLANES,
    VMEM_BYTES,
    gather_places,
    per_byte,
    planes,
    round_up,
)

_BLOCK = 512
"""Outputs in a block."""
_CONVERTED = 512
"""Lanes of the weight that are converted at a time."""
_X_BYTES = 8 * 2**20
"""Of activations that stay in the core."""


def many_rows(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    block: int,
    out_dtype: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`; the arguments are those of `tpu`.

    A block of 0 outputs is one by the shape. `out_dtype` is another dtype to return.
    """
    rows, inputs = x.shape
    outputs, groups = scales.shape
    per = per_byte(bits)
    most = max(256, _X_BYTES // (inputs * 2) // 256 * 256)
    tile = min(round_up(rows, 2 * SUBLANES), most)
    block = min(block or _BLOCK, round_up(outputs, LANES))
    blocks = pl.cdiv(outputs, block)
    # The integers come times a power of 2: see `planes`.
    scaled = [scales.T * np.float32(2.0 ** (bits - 8))]
    if zeros is not None:
        scaled.append(zeros.astype(jnp.float32).T * scales.T)
    lanes = inputs // per
    first = min(_CONVERTED, lanes)

    def following(n: jax.Array) -> jax.Array:
        return jnp.minimum(n + 1, blocks - 1)

    product: jax.Array = pl.pallas_call(
        functools.partial(_many_kernel, bits=bits, size=inputs // groups),
        grid=(pl.cdiv(rows, tile), blocks),
        in_specs=[
            pl.BlockSpec((tile, inputs), lambda m, n: (m, 0)),
            pl.BlockSpec((block, lanes), lambda m, n: (n, 0)),
            *[pl.BlockSpec((groups, block), lambda m, n: (0, n)) for _ in scaled],
            pl.BlockSpec((block, first), lambda m, n: (following(n), 0)),
            *[
                pl.BlockSpec((groups, block), lambda m, n: (0, following(n)))
                for _ in scaled
            ],
        ],
        out_specs=pl.BlockSpec((tile, block), lambda m, n: (m, n)),
        out_shape=jax.ShapeDtypeStruct(
            (rows, outputs),
            out_dtype or x.dtype,
            manual_axis_type=jax.typeof(x).manual_axis_type,
        ),
        scratch_shapes=[
            pltpu.VMEM((per, tile // 2, lanes), jnp.int32),
            pltpu.VMEM((per, block // 2, lanes), jnp.int32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        name="weight_only_matmul_many",
    )(x, *[values, *scaled] * 2)
    return product


def _many_kernel(x_ref: Any, *refs: Any, bits: int, size: int) -> None:
    *weights, out_ref, ordered_ref, converted_ref = refs
    current, following = weights[: len(weights) // 2], weights[len(weights) // 2 :]
    lanes = ordered_ref.shape[2]
    parts = [
        slice(start, min(start + _CONVERTED, lanes))
        for start in range(0, lanes, _CONVERTED)
    ]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        _gather(x_ref, ordered_ref)
        _convert(current, converted_ref, parts[0], bits, size)

    total = None
    for part, ahead in zip(parts, [*parts[1:], None], strict=True):
        for place in range(ordered_ref.shape[0]):
            product = jax.lax.dot_general(
                pltpu.bitcast(ordered_ref[place, :, part], jnp.bfloat16),
                pltpu.bitcast(converted_ref[place, :, part], jnp.bfloat16),
                CONTRACT_LAST,
                preferred_element_type=jnp.float32,
            )
            total = product if total is None else total + product
        if ahead is None:
            _convert(following, converted_ref, parts[0], bits, size)
        else:
            _convert(current, converted_ref, ahead, bits, size)
    assert total is not None
    out_ref[...] = total.astype(out_ref.dtype)


def _convert(
    weight: list[Any], converted_ref: Any, lanes: slice, bits: int, size: int
) -> None:
    values_ref, scales_ref, *moved_ref = weight
    for start in range(lanes.start, lanes.stop, LANES):
        parts = _converted(values_ref, scales_ref, moved_ref, start, bits, size)
        for place, part in enumerate(parts):
            words = pltpu.bitcast(part, jnp.int32)
            converted_ref[place, :, start : start + LANES] = words


def _gather(x_ref: Any, ordered_ref: Any) -> None:
    """Write the activations of each place in the bytes together."""
    per, lanes = ordered_ref.shape[0], ordered_ref.shape[2]
    if per == 1:
        ordered_ref[0] = pltpu.bitcast(x_ref[...], jnp.int32)
        return
    order = gather_places(LANES * per, per)
    for start in range(0, lanes, LANES):
        part = x_ref[:, start * per : (start + LANES) * per]
        ordered = jnp.dot(part, order, preferred_element_type=jnp.float32)
        for place in range(per):
            plane = ordered[:, place * LANES : (place + 1) * LANES]
            lane = slice(start, start + LANES)
            ordered_ref[place, :, lane] = pltpu.bitcast(
                plane.astype(jnp.bfloat16), jnp.int32
            )


def _converted(
    values_ref: Any,
    scales_ref: Any,
    moved_ref: list[Any],
    start: int,
    bits: int,
    size: int,
) -> list[jax.Array]:
    """The weights in some lanes as bfloat16 [block, lanes], by place in the byte."""
    block = values_ref.shape[0]
    per = per_byte(bits)
    first = start * per // size
    last = ((start + LANES) * per - 1) // size
    # To repeat a row costs nothing, and to turn it less than to repeat a column.
    height = LANES // (last + 1 - first)
    wide = []
    for ref in (scales_ref, *moved_ref):
        repeated = [
            jnp.broadcast_to(ref[group : group + 1, :], (height, block))
            for group in range(first, last + 1)
        ]
        wide.append(jnp.concatenate(repeated).T)
    weights = []
    for plane in planes(values_ref[:, start : start + LANES], bits):
        number = plane.astype(jnp.float32) * wide[0]
        if moved_ref:
            number = number - wide[1]
        weights.append(number.astype(jnp.bfloat16))
    return weights
