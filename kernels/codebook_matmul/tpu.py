"""`codebook_matmul` on TPUs: indices become values in the core.

What is read from memory are the indices. A register of eight rows of lanes is an index
into eight rows of a table of as many lanes, all of which are looked up at once, by the
unit that moves numbers between lanes: it takes some four cycles, and limits. Tables of
up to 128 values are repeated in each row; two make one of 256. Of two indices in a byte
the lower meet the even inputs and the upper the odd ones, which are brought together.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jcompress.kernels import _tiles
from jcompress.kernels._tpu import (
    CONTRACT_LAST,
    LANES,
    SUBLANES,
    VMEM_BYTES,
    gather_places,
    round_up,
    tuned,
)
from jcompress.tensors.codebook import MOST, SMALL

_BLOCK = 256
"""Outputs in a block."""
_X_BYTES = 8 * 2**20
"""Of activations that stay in the core."""
_CONVERTED = 512
"""Lanes of the indices that are looked up at a time."""


def tpu(
    x: jax.Array, indices: jax.Array, codebook: jax.Array, *, block: int | None = None
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`; `reference` says what the arguments are.

    Args:
        x, indices, codebook: see `reference`.
        block: outputs in a block; None: by the tables (`block`), else by the shape.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, indices, codebook)
    if reason:
        raise ValueError(f"codebook_matmul: the form for TPUs {reason}")
    rows, inputs = x.shape
    outputs, lanes = indices.shape
    count, size = codebook.shape
    each = outputs // count
    if block is None:
        block = tuned("codebook_matmul", _key(codebook), "block", _BLOCK)
    if count == 1:
        block = min(block, round_up(outputs, LANES))
    else:
        block = math.gcd(block, each)
    tile = min(rows, max(256, _X_BYTES // (inputs * 2) // 256 * 256))
    per = inputs // lanes
    tables = -(-size // LANES)
    # Indices beyond the table stand for its last value.
    wide = jnp.pad(codebook, ((0, 0), (0, tables * LANES - size)), mode="edge")
    wide = jnp.broadcast_to(
        wide.reshape(count, tables, 1, LANES), (count, tables, SUBLANES, LANES)
    )
    product: jax.Array = pl.pallas_call(
        functools.partial(_kernel, per=per),
        grid=(pl.cdiv(rows, tile), pl.cdiv(outputs, block)),
        in_specs=[
            pl.BlockSpec((tile, inputs), lambda i, j: (i, 0)),
            pl.BlockSpec((block, lanes), lambda i, j: (j, 0)),
            pl.BlockSpec(
                (None, tables, SUBLANES, LANES),
                lambda i, j: (0 if count == 1 else j * block // each, 0, 0, 0),
            ),
        ],
        out_specs=pl.BlockSpec((tile, block), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct(
            (rows, outputs), x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type
        ),
        scratch_shapes=[
            pltpu.VMEM((per, tile, lanes), jnp.bfloat16),
            pltpu.VMEM((tile, block), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        name="codebook_matmul",
    )(x, indices, wide)
    return product


def refuses(x: jax.Array, indices: jax.Array, codebook: jax.Array) -> str:
    """Why the kernel cannot compute this; "" if it can."""
    if x.dtype != jnp.bfloat16:
        return f"needs bfloat16 activations, not {x.dtype}"
    if not x.shape[0] or not indices.shape[0]:
        return "has no rows or no outputs to compute"
    tables, size = codebook.shape
    span = LANES * (2 if size <= SMALL else 1)
    if x.shape[1] % span:
        return f"needs inputs to be a multiple of {span}, not {x.shape[1]}"
    if x.shape[1] > 16384:
        return f"cannot hold blocks of {x.shape[1]} inputs in the core"
    if tables > 1 and indices.shape[0] // tables % LANES:
        return f"needs {LANES} rows, or a multiple, to share a table"
    return ""


def prefers(x: jax.Array, indices: jax.Array, codebook: jax.Array) -> bool:
    """Whether the kernel is the better choice (benchmarks/README.md)."""
    return _tiles.suits("codebook_matmul", "tpu", _key(codebook), x.shape[0])


def _key(codebook: jax.Array) -> str:
    return f"up to {SMALL if codebook.shape[1] <= SMALL else MOST} values"


def _kernel(
    x_ref: Any,
    indices_ref: Any,
    tables_ref: Any,
    out_ref: Any,
    ordered_ref: Any,
    total_ref: Any,
    *,
    per: int,
) -> None:
    lanes = indices_ref.shape[1]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        _order(x_ref, ordered_ref)

    for start in range(0, lanes, _CONVERTED):
        width = min(_CONVERTED, lanes - start)
        total = None
        parts = [
            _values(indices_ref[:, lane : lane + LANES], tables_ref, per)
            for lane in range(start, start + width, LANES)
        ]
        for place in range(per):
            product = jax.lax.dot_general(
                ordered_ref[place, :, start : start + width],
                jnp.concatenate([part[place] for part in parts], axis=1),
                CONTRACT_LAST,
                preferred_element_type=jnp.float32,
            )
            total = product if total is None else total + product
        total_ref[...] = total if start == 0 else total_ref[...] + total
    out_ref[...] = total_ref[...].astype(out_ref.dtype)


def _order(x_ref: Any, ordered_ref: Any) -> None:
    """Write the activations of each place in the bytes together."""
    per, _, lanes = ordered_ref.shape
    if per == 1:
        ordered_ref[0] = x_ref[...]
        return
    order = gather_places(LANES * per, per)
    for start in range(0, lanes, LANES):
        part = x_ref[:, start * per : (start + LANES) * per]
        ordered = jnp.dot(part, order, preferred_element_type=jnp.float32)
        for place in range(per):
            plane = ordered[:, place * LANES : (place + 1) * LANES]
            ordered_ref[place, :, start : start + LANES] = plane.astype(jnp.bfloat16)


def _values(stored: jax.Array, tables_ref: Any, per: int) -> list[jax.Array]:
    """uint8 [block, 128] -> bfloat16 [block, 128] for each place in the byte."""
    numbers = stored.astype(jnp.int32)
    places = [numbers] if per == 1 else [numbers & 15, numbers >> 4]
    return [_looked_up(place, tables_ref).astype(jnp.bfloat16) for place in places]


def _looked_up(places: jax.Array, tables_ref: Any) -> jax.Array:
    tables = tables_ref.shape[0]
    within = places & (LANES - 1) if tables > 1 else places
    values = [
        jnp.take_along_axis(
            jnp.concatenate([tables_ref[number]] * (places.shape[0] // SUBLANES)),
            within,
            axis=1,
            mode="promise_in_bounds",
        )
        for number in range(tables)
    ]
    if tables == 1:
        return values[0]
    return jnp.where(places < LANES, values[0], values[1])
