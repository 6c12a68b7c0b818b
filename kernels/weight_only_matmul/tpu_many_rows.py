"""Many rows of floats times small integers on a TPU: the products limit.

Each block of the weight becomes 16-bit floats in the core's memory, some lanes at a
time so that the conversion of the next runs beside the products, once for each tile of
rows. The activations of a tile are put in the order of the stored integers once.
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
    VMEM_BYTES,
    gather_places,
    per_byte,
    planes,
    round_up,
)

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
    tile = min(rows, max(256, _X_BYTES // (inputs * 2) // 256 * 256))
    block = min(block or 512, round_up(outputs, LANES))
    scaled = [scales.T]
    if zeros is not None:
        scaled.append(zeros.astype(jnp.float32).T * scales.T)
    lanes = inputs // per
    product: jax.Array = pl.pallas_call(
        functools.partial(_many_kernel, bits=bits, size=inputs // groups),
        grid=(pl.cdiv(rows, tile), pl.cdiv(outputs, block)),
        in_specs=[
            pl.BlockSpec((tile, inputs), lambda m, n: (m, 0)),
            pl.BlockSpec((block, lanes), lambda m, n: (n, 0)),
            *[pl.BlockSpec((groups, block), lambda m, n: (0, n)) for _ in scaled],
        ],
        out_specs=pl.BlockSpec((tile, block), lambda m, n: (m, n)),
        out_shape=jax.ShapeDtypeStruct(
            (rows, outputs),
            out_dtype or x.dtype,
            manual_axis_type=jax.typeof(x).manual_axis_type,
        ),
        scratch_shapes=[
            pltpu.VMEM((per, tile, lanes), jnp.bfloat16),
            pltpu.VMEM((tile, block), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        name="weight_only_matmul_many",
    )(x, values, *scaled)
    return product


def _many_kernel(
    x_ref: Any,
    values_ref: Any,
    scales_ref: Any,
    *rest: Any,
    bits: int,
    size: int,
) -> None:
    *moved_ref, out_ref, ordered_ref, total_ref = rest
    per, lanes = ordered_ref.shape[0], ordered_ref.shape[2]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        _gather(x_ref, ordered_ref)

    for start in range(0, lanes, _CONVERTED):
        width = min(_CONVERTED, lanes - start)
        parts = [
            _converted(values_ref, scales_ref, moved_ref, lane, bits, size)
            for lane in range(start, start + width, LANES)
        ]
        products = [
            jax.lax.dot_general(
                ordered_ref[place, :, start : start + width],
                jnp.concatenate([part[place] for part in parts], axis=1),
                CONTRACT_LAST,
                preferred_element_type=jnp.float32,
            )
            for place in range(per)
        ]
        product = functools.reduce(jnp.add, products)
        total_ref[...] = product if start == 0 else total_ref[...] + product
    out_ref[...] = total_ref[...].astype(out_ref.dtype)


def _gather(x_ref: Any, ordered_ref: Any) -> None:
    """Write the activations of each place in the bytes together."""
    per, lanes = ordered_ref.shape[0], ordered_ref.shape[2]
    if per == 1:
        ordered_ref[0] = x_ref[...]
        return
    order = gather_places(LANES * per, per)
    for start in range(0, lanes, LANES):
        part = x_ref[:, start * per : (start + LANES) * per]
        ordered = jnp.dot(part, order, preferred_element_type=jnp.float32)
        for place in range(per):
            plane = ordered[:, place * LANES : (place + 1) * LANES]
            lane = slice(start, start + LANES)
            ordered_ref[place, :, lane] = plane.astype(jnp.bfloat16)


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
    unit = np.float32(2.0 ** (bits - 8))
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
        number = plane.astype(jnp.float32) * (wide[0] * unit)
        if moved_ref:
            number = number - wide[1]
        weights.append(number.astype(jnp.bfloat16))
    return weights
