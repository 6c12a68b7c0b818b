"""Few rows of floats times small integers on a TPU: digits times stored integers.

What limits is reading the weight, and next the vector units, which have some four
operations for eight weights; to convert them to floats takes more. So, as on the CPU,
the activations are written as int8 digits (`split_digits`; one digit if they are to
be quantized anyway), and the integers of the weight are multiplied as they are: a
shift and a mask for four bytes of nibbles at once. The sums of each group of inputs
are scaled; those of two digits become one integer first, where int32 holds it. Where a
group is smaller than what a register holds of a row, the digits come in several copies,
each zero outside of one group.

Generation 7 has no integer products, but converts eight-bit integers to bfloat16 in one
operation. There the activations are one bfloat16 number, or three for a float32, and
what limits is to load the weights into the matrix units. Float8 activations, which load
twice as fast, need three digits where bfloat16 needs one, and were slower. Stored
float8 becomes bfloat16 in the same way, on every generation.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jcompress.kernels._integers import DIGIT
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

_BLOCK = 1024
"""Outputs in a block."""
_PART = 256
"""Lanes that one product contracts."""
_UNROLLED = 2048
"""Lanes whose products are added to the sum at a time."""
_BLOCK_BYTES = 8 * 2**20
"""Of a block of the weight, of which the core holds two."""
_PAIR_BITS = 8
"""Bits of the lower of two digits."""
_PAIRED = 256
"""Inputs of a group, at most, of which int32 holds the sum of both digits' products."""
_TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """How inputs lie in the stored bytes.

    Attributes:
        per: integers a byte.
        groups: of inputs, G.
        size: inputs of a group.
        padded: rows of activations, a multiple of 8.
        rows: of digits.
        span: inputs whose bytes fill the lanes of a register.
        copies: groups in a span.
        units: of inputs, each a span or a group, whichever is larger.
        lanes: bytes of a unit in a row.
        unrolled: units that are added one after the other.
    """

    per: int
    groups: int
    size: int
    padded: int
    rows: int

    @property
    def span(self) -> int:
        return LANES * self.per

    @property
    def copies(self) -> int:
        return max(1, self.span // self.size)

    @property
    def units(self) -> int:
        return self.groups // self.copies

    @property
    def lanes(self) -> int:
        return max(self.span, self.size) // self.per

    @property
    def unrolled(self) -> int:
        return max(1, _UNROLLED // self.lanes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Number:
    """How the activations are written as digits.

    `x ~ step * sum_j digits[j] * base^-j`, with `step * limit` the largest of the row,
    or, if there is no limit, `step = 1`.

    Attributes:
        integers: whether digits are int8; else bfloat16.
        rounded: whether the activations are quantized, to integers up to `limit`.
        base, count, limit: see the equation.
    """

    integers: bool
    rounded: bool
    base: int
    count: int
    limit: int

    @property
    def pair(self) -> bool:
        """Whether it has two digits, of which the lower takes all values of int8."""
        return self.base == 1 << _PAIR_BITS


def few_rows(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    integers: bool,
    block: int,
    out_dtype: Any = None,
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`; the arguments are those of `tpu`.

    A block of 0 outputs is one by the shape. `out_dtype` is another dtype to return.
    """
    rows, inputs = x.shape
    outputs, groups = scales.shape
    number = _number(x.dtype, x_bits, integers=integers)
    padded = round_up(rows, SUBLANES)
    layout = _Layout(
        per=per_byte(bits),
        groups=groups,
        size=inputs // groups,
        padded=padded,
        rows=number.count * padded,
    )
    fits = max(LANES, _BLOCK_BYTES * layout.per // inputs // LANES * LANES)
    block = block or min(_BLOCK, fits)
    block = min(block, round_up(outputs, LANES))
    weights = [values, scales.T]
    if zeros is not None:
        weights.append(zeros.astype(jnp.float32).T * scales.T)
    grouped = pl.BlockSpec((groups, block), lambda i: (0, i))
    places = layout.per, layout.copies * layout.rows, inputs // layout.per
    kind = jnp.int8 if number.integers else jnp.bfloat16
    product: jax.Array = pl.pallas_call(
        functools.partial(_few_kernel, layout=layout, number=number, bits=bits),
        grid=(pl.cdiv(outputs, block),),
        in_specs=[
            pl.BlockSpec((rows, inputs), lambda i: (0, 0)),
            pl.BlockSpec((block, inputs // layout.per), lambda i: (i, 0)),
            *[grouped] * (len(weights) - 1),
        ],
        out_specs=pl.BlockSpec((rows, block), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct(
            (rows, outputs),
            out_dtype or x.dtype,
            manual_axis_type=jax.typeof(x).manual_axis_type,
        ),
        scratch_shapes=[
            pltpu.VMEM((padded, inputs), jnp.float32),
            pltpu.VMEM((padded, 1), jnp.float32),
            pltpu.VMEM(places, kind),
            pltpu.VMEM((layout.rows, groups), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        name="weight_only_matmul_few",
    )(x, *weights)
    return product


def _number(dtype: Any, x_bits: int | None, *, integers: bool) -> _Number:
    short = jnp.dtype(dtype).itemsize < 4
    if x_bits is not None:
        limit = 2 ** (x_bits - 1) - 1
        return _Number(integers=integers, rounded=True, base=1, count=1, limit=limit)
    if integers:
        count, base = (2, 1 << _PAIR_BITS) if short else (3, DIGIT)
        return _Number(integers=True, rounded=False, base=base, count=count, limit=127)
    count = 1 if short else 3
    return _Number(integers=False, rounded=False, base=1, count=count, limit=0)


def _few_kernel(
    x_ref: Any,
    values_ref: Any,
    scales_ref: Any,
    *rest: Any,
    layout: _Layout,
    number: _Number,
    bits: int,
) -> None:
    *moved_ref, out_ref, wide_ref, step_ref, digits_ref, sums_ref = rest
    corrected = bool(moved_ref)

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        _write_digits(
            x_ref, wide_ref, step_ref, digits_ref, sums_ref, layout, number, corrected
        )

    paired = number.pair and layout.size <= _PAIRED
    height = layout.padded if paired else layout.rows
    total = jnp.zeros((height, values_ref.shape[0]), jnp.float32)
    for start in range(0, layout.units, layout.unrolled):
        total = _add_units(
            total, start, values_ref, scales_ref, digits_ref, layout, number, bits
        )
    total = total * np.float32(2.0 ** (bits - 8))
    if paired:
        total = total * np.float32(1 / number.base)
    else:
        total = _joined(total, layout, number)
    if corrected:
        moved = jnp.dot(
            sums_ref[...],
            moved_ref[0][...],
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        total = total - _joined(moved, layout, number)
    out_ref[...] = (total * step_ref[...])[: out_ref.shape[0]].astype(out_ref.dtype)


def _joined(places: jax.Array, layout: _Layout, number: _Number) -> jax.Array:
    """The numbers of which there are rows for each digit."""
    padded = layout.padded
    product = places[(number.count - 1) * padded :]
    for place in range(number.count - 2, -1, -1):
        upper = places[place * padded : (place + 1) * padded]
        product = upper + product * np.float32(1 / number.base)
    return product


def _add_units(
    total: jax.Array,
    start: int,
    values_ref: Any,
    scales_ref: Any,
    digits_ref: Any,
    layout: _Layout,
    number: _Number,
    bits: int,
) -> jax.Array:
    """Add the scaled sums of some units of inputs that follow each other."""
    for unit in range(start, min(start + layout.unrolled, layout.units)):
        sums = None
        for lane in range(unit * layout.lanes, (unit + 1) * layout.lanes, _PART):
            end = min(lane + _PART, (unit + 1) * layout.lanes)
            part = _dot(values_ref, digits_ref, slice(lane, end), number, bits)
            sums = part if sums is None else sums + part
        assert sums is not None
        for copy in range(layout.copies):
            group = unit * layout.copies + copy
            part = sums[copy * layout.rows : (copy + 1) * layout.rows]
            if total.shape[0] < layout.rows:
                upper, lower = part[: layout.padded], part[layout.padded :]
                part = (upper << _PAIR_BITS) + lower
            scaled = part.astype(jnp.float32) * scales_ref[group : group + 1, :]
            total = total + scaled
    return total


def _dot(
    values_ref: Any, digits_ref: Any, lanes: slice, number: _Number, bits: int
) -> jax.Array:
    """Digits times the integers in some lanes: [copies * rows, block]."""
    stored = values_ref[:, lanes]
    kind = jnp.int32 if number.integers else jnp.float32
    dot = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=CONTRACT_LAST,
        preferred_element_type=kind,
    )
    parts = planes(stored, bits)
    if not number.integers:
        parts = [part.astype(jnp.bfloat16) for part in parts]
    # The places of the bytes side by side, since a product of more inputs costs no
    # more sums.
    digits = [digits_ref[place, :, lanes] for place in range(len(parts))]
    return dot(jnp.concatenate(digits, axis=1), jnp.concatenate(parts, axis=1))


def _write_digits(
    x_ref: Any,
    wide_ref: Any,
    step_ref: Any,
    digits_ref: Any,
    sums_ref: Any,
    layout: _Layout,
    number: _Number,
    corrected: bool,
) -> None:
    """Write the activations as digits, in the order of the stored integers."""
    wide_ref[...] = jnp.zeros_like(wide_ref)
    wide_ref[: x_ref.shape[0], :] = x_ref[...].astype(jnp.float32)
    if number.limit:
        top = jnp.max(jnp.abs(wide_ref[...]), axis=1, keepdims=True)
        step = top * np.float32(1 / number.limit)
        step = jnp.where(step < _TINY, np.float32(1), step)
    else:
        step = jnp.ones((layout.padded, 1), jnp.float32)
    inverse = np.float32(1) / step
    step_ref[...] = step
    if corrected:
        sums_ref[...] = jnp.zeros_like(sums_ref)
    span, size = layout.span, layout.size
    order = gather_places(span, layout.per)

    def chunk(c: jax.Array, carry: None) -> None:
        start = pl.multiple_of(c * span, span)
        steps = wide_ref[:, pl.ds(start, span)]
        if number.limit:
            steps = steps * inverse
        digits = jnp.concatenate(_split(steps, number)).astype(jnp.bfloat16)
        if corrected:
            inputs = start + jax.lax.broadcasted_iota(
                jnp.int32, (span, layout.groups), 0
            )
            first = size * jax.lax.broadcasted_iota(jnp.int32, (span, layout.groups), 1)
            member = (inputs >= first) & (inputs < first + size)
            sums_ref[...] += jnp.dot(
                digits,
                member.astype(jnp.float32).astype(jnp.bfloat16),
                preferred_element_type=jnp.float32,
            )
        if layout.per > 1:
            ordered = jnp.dot(digits, order, preferred_element_type=jnp.float32)
        else:
            ordered = digits.astype(jnp.float32)
        lane = jax.lax.broadcasted_iota(jnp.int32, (layout.rows, LANES), 1)
        wide = LANES // layout.copies
        for place in range(layout.per):
            plane = ordered[:, place * LANES : (place + 1) * LANES]
            parts = [
                jnp.where((lane >= h * wide) & (lane < (h + 1) * wide), plane, 0.0)
                for h in range(layout.copies)
            ]
            copies = jnp.concatenate(parts) if len(parts) > 1 else plane
            if number.integers:
                copies = copies.astype(jnp.int32)
            lanes = pl.ds(pl.multiple_of(c * LANES, LANES), LANES)
            digits_ref[place, :, lanes] = copies.astype(digits_ref.dtype)

    chunks = layout.per * digits_ref.shape[2] // span
    jax.lax.fori_loop(0, chunks, chunk, None, unroll=math.gcd(chunks, 4))


def _split(steps: jax.Array, number: _Number) -> list[jax.Array]:
    """Numbers up to `limit` in magnitude as digits, the largest place first."""
    top = np.float32(number.limit)
    if number.pair:
        whole = jnp.round(jnp.clip(steps, -top, top) * np.float32(number.base))
        upper = jnp.floor(whole * np.float32(1 / number.base) + np.float32(0.5))
        return [upper, whole - upper * np.float32(number.base)]
    digits: list[jax.Array] = []
    for _ in range(number.count):
        if number.limit:
            digits.append(jnp.clip(jnp.round(steps), -top, top))
        else:
            digits.append(steps.astype(jnp.bfloat16).astype(jnp.float32))
        steps = (steps - digits[-1]) * np.float32(number.base)
    return digits
