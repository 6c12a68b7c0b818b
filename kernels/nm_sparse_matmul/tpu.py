"""`nm_sparse_matmul` on TPUs: the kept weights find their places in the core.

What is read from memory are the kept weights and the mask. A block of outputs is
turned, so that outputs lie along the lanes of a register; then the kept weights of a
group lie in halves of the same 32-bit words, pairs of outcoming weights too, and a row
of the mask's words, repeated, meets eight groups whose bits are shifted by their place.
No weight ever moves between lanes. A pair of places takes from a word of kept weights
the first, the second, both or none, by two bits of the mask. Which word that is follows
from the bits of the places before; in the upper half of a group, of those behind, which
is less to count. The activations come in the order of these pairs.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jcompress.kernels import _tiles
from jcompress.kernels._tpu import (
    LANE_BITS,
    LANES,
    SUBLANES,
    VMEM_BYTES,
    round_up,
    tuned,
)

_X_BYTES = 8 * 2**20
"""Of activations that stay in the core."""
_WEIGHT_BYTES = 4 * 2**20
"""Of kept weights in a block, of which the core holds two and one that is turned."""
_BLOCK = 512
"""Outputs in a block."""
_CHUNK = LANES // 2
"""Groups whose pairs fill the lanes of a register."""
_UNROLLED = 4096
"""Inputs in a step of the loop; registers are turned and filled side by side."""
_WORD = 32
"""Inputs whose bits are a word of the mask."""


class _Lanes(NamedTuple):
    """How places take weights from words of two.

    Attributes:
        places: of a group; of two groups if one weight of four is kept, one in each
            half of a word.
        words: of kept weights in a group.
        single: whether it is such.
    """

    places: int
    words: int
    single: bool = False


_PATTERNS = {
    (2, 4): _Lanes(4, 1),
    (1, 4): _Lanes(8, 1, single=True),
    (2, 8): _Lanes(8, 1),
    (4, 8): _Lanes(8, 2),
}


def tpu(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scales: jax.Array | None,
    *,
    n: int,
    m: int,
    block: int | None = None,
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`; `reference` says what the arguments are.

    Args:
        x, values, mask, scales, n, m: see `reference`.
        block: outputs in a block; None: by the tables (`block`), else by the shape.

    Raises:
        ValueError: `refuses` says why.
    """
    reason = refuses(x, values, mask, scales, n=n, m=m)
    if reason:
        raise ValueError(f"nm_sparse_matmul: the form for TPUs {reason}")
    if x.dtype == jnp.bfloat16:
        return _product(x, values, mask, scales, x.dtype, (n, m), block)
    # Three bfloat16 numbers hold the digits of a float32.
    parts = []
    rest = x
    for _ in range(3):
        parts.append(rest.astype(jnp.bfloat16))
        rest = rest - parts[-1].astype(jnp.float32)
    product = _product(
        jnp.concatenate(parts), values, mask, scales, x.dtype, (n, m), block
    )
    high, middle, low = product.reshape(3, x.shape[0], -1)
    total: jax.Array = high + (middle + low)
    return total


def refuses(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scales: jax.Array | None,
    *,
    n: int,
    m: int,
) -> str:
    """Why the kernel cannot compute this; "" if it can."""
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"needs float32 or bfloat16 activations, not {x.dtype}"
    if values.dtype not in (jnp.bfloat16, jnp.int8):
        return f"needs bfloat16 or int8 weights, not {values.dtype}"
    if not x.shape[0] or not values.shape[0]:
        return "has no rows or no outputs to compute"
    if (n, m) not in _PATTERNS:
        return f"has no kernel for {n}:{m}"
    span = _CHUNK * _PATTERNS[n, m].places
    if x.shape[1] % span:
        return f"needs inputs to be a multiple of {span}, not {x.shape[1]}"
    if x.shape[1] > 16384:
        return f"cannot hold blocks of {x.shape[1]} inputs in the core"
    return ""


def prefers(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scales: jax.Array | None,
    *,
    n: int,
    m: int,
) -> bool:
    """Whether the kernel is the better choice (benchmarks/README.md)."""
    return _tiles.suits("nm_sparse_matmul", "tpu", _key(values, n, m), x.shape[0])


def _key(values: jax.Array, n: int, m: int) -> str:
    return f"{n}:{m} {values.dtype}"


def _product(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    scales: jax.Array | None,
    dtype: Any,
    pattern: tuple[int, int],
    block: int | None,
) -> jax.Array:
    rows, inputs = x.shape
    outputs, stored = values.shape
    how = _PATTERNS[pattern]
    fits = _WEIGHT_BYTES // (stored * values.dtype.itemsize) // LANES * LANES
    key = _key(values, *pattern)
    if block is None:
        size = tuned("nm_sparse_matmul", key, "block", _BLOCK)
        block = max(LANES, min(size, fits))
    block = min(block, round_up(outputs, LANES))
    most = max(256, _X_BYTES // (inputs * 2) // 256 * 256)
    tile = min(rows, most, tuned("nm_sparse_matmul", key, "tile", most))
    weights = [values, mask] + ([] if scales is None else [scales.T])
    scaled = pl.BlockSpec((1, block), lambda i, j: (0, j))
    product: jax.Array = pl.pallas_call(
        functools.partial(_kernel, how=how, scaled=scales is not None),
        grid=(pl.cdiv(rows, tile), pl.cdiv(outputs, block)),
        in_specs=[
            pl.BlockSpec((tile, inputs), lambda i, j: (i, 0)),
            pl.BlockSpec((block, stored), lambda i, j: (j, 0)),
            pl.BlockSpec((block, inputs // 8), lambda i, j: (j, 0)),
            *([] if scales is None else [scaled]),
        ],
        out_specs=pl.BlockSpec((tile, block), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct(
            (rows, outputs), dtype, manual_axis_type=jax.typeof(x).manual_axis_type
        ),
        scratch_shapes=[
            pltpu.VMEM((tile, inputs), jnp.bfloat16),
            pltpu.VMEM((block // LANES, stored // 2, LANES), jnp.int32),
            pltpu.VMEM((inputs // _WORD, block), jnp.int32),
            pltpu.VMEM((tile, block), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        name="nm_sparse_matmul",
    )(x, *weights)
    return product


def _kernel(
    x_ref: Any,
    values_ref: Any,
    mask_ref: Any,
    *rest: Any,
    how: _Lanes,
    scaled: bool,
) -> None:
    *scales_ref, out_ref, ordered_ref, words_ref, bits_ref, total_ref = rest

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        _order(x_ref, ordered_ref, how)

    turned = values_ref[...].T
    if turned.dtype == jnp.int8:
        turned = turned.astype(jnp.float32).astype(jnp.bfloat16)
    words = pltpu.bitcast(turned, jnp.int32)
    for slab in range(words_ref.shape[0]):
        words_ref[slab] = words[:, slab * LANES : (slab + 1) * LANES]
    bits = pltpu.bitcast(mask_ref[...].T, jnp.int32)
    bits_ref[...] = bits ^ _LAST_OF_FOUR if how.places == 4 else bits
    total_ref[...] = jnp.zeros_like(total_ref)
    span = _CHUNK * how.places
    step = math.gcd(_UNROLLED, x_ref.shape[1]) // span

    def chunks(number: jax.Array, carry: None) -> None:
        total = None
        for chunk in range(step):
            index = number * step + chunk
            start = pl.multiple_of(index * span, span)
            weight = _placed_chunk(words_ref, bits_ref, index, how)
            product = jnp.dot(
                ordered_ref[:, pl.ds(start, span)],
                pltpu.bitcast(weight, jnp.bfloat16),
                preferred_element_type=jnp.float32,
            )
            total = product if total is None else total + product
        total_ref[...] += total

    jax.lax.fori_loop(0, x_ref.shape[1] // (span * step), chunks, None)
    total = total_ref[...]
    if scaled:
        total = total * scales_ref[0][...]
    out_ref[...] = total.astype(out_ref.dtype)


def _order(x_ref: Any, ordered_ref: Any, how: _Lanes) -> None:
    """Write the activations of each pair of places together, chunk by chunk."""
    span = _CHUNK * how.places
    source = jax.lax.broadcasted_iota(jnp.int32, (span, span), 0)
    target = jax.lax.broadcasted_iota(jnp.int32, (span, span), 1)
    pair, lane = target >> LANE_BITS, target & (LANES - 1)
    moved = source == (lane >> 1) * how.places + 2 * pair + (lane & 1)
    order = moved.astype(jnp.float32).astype(jnp.bfloat16)
    for start in range(0, x_ref.shape[1], span):
        chunk = jnp.dot(
            x_ref[:, start : start + span], order, preferred_element_type=jnp.float32
        )
        ordered_ref[:, start : start + span] = chunk.astype(jnp.bfloat16)


def _placed_chunk(
    words_ref: Any, bits_ref: Any, index: jax.Array, how: _Lanes
) -> jax.Array:
    """The weights of a product's inputs as words of two, pair by pair of places."""
    tiles = []
    high, deep = _CHUNK * how.places // _WORD, _CHUNK * how.words
    first_row = pl.multiple_of(index * high, high)
    first_word = pl.multiple_of(index * deep, deep)
    for group in range(0, _CHUNK, SUBLANES):
        row = first_row + group * how.places // _WORD
        rows = [
            bits_ref[pl.ds(row + more, 1), :]
            for more in range(SUBLANES * how.places // _WORD)
        ]
        words = [
            jnp.concatenate(
                [words_ref[slab, at, :] for slab in range(words_ref.shape[0])], axis=1
            )
            for at in (
                pl.ds(first_word + how.words * group + word, SUBLANES, how.words)
                for word in range(how.words)
            )
        ]
        tiles.append(_placed(words, rows, how))
    pairs = range(how.places // 2)
    return jnp.concatenate([tile[pair] for pair in pairs for tile in tiles])


def _placed(
    words: list[jax.Array], rows: list[jax.Array], how: _Lanes
) -> list[jax.Array]:
    """The weights of eight groups as words of two, int32 [8, block], by pair.

    Args:
        words: int32 [8, block], the kept weights of the groups.
        rows: int32 [1, block], the bits of the groups.
        how: the pattern.
    """
    shape = words[0].shape
    sublane = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    across = _WORD // how.places
    bits = jnp.broadcast_to(rows[0], shape)
    for number, row in enumerate(rows[1:], 1):
        bits = jnp.where(sublane < number * across, bits, jnp.broadcast_to(row, shape))
    if how.places == 4:
        return _two_of_four(words[0], bits << (28 - 4 * sublane))
    bits = bits >> ((sublane & (across - 1)) * how.places)

    def kept(place: int) -> jax.Array:
        return (bits & np.int32(1 << place)) != 0

    pairs = [(kept(place), kept(place + 1)) for place in range(0, how.places, 2)]
    half = len(pairs) // 2
    low = [_from_front(words, pairs[:pair], pairs[pair], how) for pair in range(half)]
    high = [
        _from_back(words, pairs[pair + 1 :], pairs[pair], how)
        for pair in range(half, len(pairs))
    ]
    return low + high


_UPPER = np.int32(-(2**16))
_LOWER = np.int32(2**16 - 1)
_LAST_OF_FOUR = np.int32(0x88888888 - 2**32)
Pair = tuple[jax.Array, jax.Array]


def _right(word: jax.Array) -> jax.Array:
    return jax.lax.shift_right_logical(word, jnp.full_like(word, 16))


def _two_of_four(word: jax.Array, bits: jax.Array) -> list[jax.Array]:
    """Both pairs of places; their bits are the highest four, the last turned over.

    Two of four bits make six numbers, so that three comparisons say nearly all.
    """
    below_4, below_8, below_12 = (
        bits < np.int32(number * 2**28) for number in (4 - 8, 8 - 8, 12 - 8)
    )
    one = jnp.where((bits << 3) < 0, word & _LOWER, word << 16)
    low = jnp.where(below_4, word, jnp.where(below_12, one, 0))
    right = jnp.where(below_4, 0, _right(word))
    high = jnp.where(below_8, right, jnp.where(below_12, word & _UPPER, word))
    return [low, high]


def _from_front(
    words: list[jax.Array], before: list[Pair], pair: Pair, how: _Lanes
) -> jax.Array:
    """A pair of places, whose weights follow those of `before`."""
    word = words[0]
    if before and not how.single:
        ((first, second),) = before
        follows = words[1] << 16 if how.words == 2 else jnp.zeros_like(word)
        one = _right(word) | follows
        word = jnp.where(first | second, one, word)
        if how.words == 2:
            word = jnp.where(first & second, words[1], word)
    first, second = pair
    both = words[0] & _LOWER if how.single else word
    alone = jnp.where(second, both, word & _LOWER)
    return jnp.where(first, alone, jnp.where(second, word << 16, 0))


def _from_back(
    words: list[jax.Array], behind: list[Pair], pair: Pair, how: _Lanes
) -> jax.Array:
    """A pair of places, whose weights precede those of `behind`."""
    word = words[-1]
    if behind and not how.single:
        ((first, second),) = behind
        precedes = _right(words[0]) if how.words == 2 else jnp.zeros_like(word)
        one = (word << 16) | precedes
        word = jnp.where(first | second, one, word)
        if how.words == 2:
            word = jnp.where(first & second, words[0], word)
    first, second = pair
    alone = jnp.where(first, word, word & _UPPER)
    return jnp.where(second, alone, jnp.where(first, _right(word), 0))
