"""How the products of the GPU kernels are cut up, by rule or by a tuned table.

The rules know how many multiprocessors an H100 and an A100 have and what a block's
registers hold, as compiled (`benchmarks/gpu_compiled.py`); none was measured. A table
of `_tiles` goes before them with `block_m` (rows of activations of a block), `block_n`
(rows of the weight), `block_k` (inputs of a step), `splits` and `stages`, under the key
of `table_key`, where what it says suits the shape.
"""

import dataclasses
import math
from typing import Any

from jcompress.kernels import _tiles
from jcompress.kernels._gpu import (
    DECODE_ROWS,
    TALLEST,
    TENSOR_ROWS,
    WARPGROUP_ROWS,
    Tiles,
    round_up,
    step_inputs,
)

MULTIPROCESSORS = {"mma": 108, "wgmma": 132, "tcgen05": 148}
"""Of an A100, an H100 and a B200."""
SHARED_BYTES = {"mma": 99 << 10, "wgmma": 227 << 10, "tcgen05": 227 << 10}
"""Shared memory that a block may have; for `mma` on every device from sm80 on."""
TENSOR_COLUMNS = 512
"""Of tensor memory, of 4 bytes in each of 128 rows."""
HEIGHTS = {"mma": (64, 128), "wgmma": (64, 128), "tcgen05": (TENSOR_ROWS,)}
"""Rows of the weight that a block may have."""
_FIELDS = {
    "block_m": "rows",
    "block_n": "outputs",
    "block_k": "inputs",
    "splits": "splits",
    "stages": "stages",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductSize:
    """A product `[rows, inputs] x [outputs, inputs]`.

    Attributes:
        rows, outputs, inputs: M, N, K.
        groups: scales of one output.
        x_bits, bits: of an activation and of a weight in memory.
    """

    rows: int
    outputs: int
    inputs: int
    groups: int
    x_bits: int
    bits: int


def choose_tiles(
    shape: ProductSize, how: str, operation: str = "", key: str = ""
) -> Tiles:
    """Tiles for a product that `refuses` allows.

    Args:
        shape: the product.
        how: "mma", "wgmma" or "tcgen05".
        operation: under which the tables are asked; "" asks none.
        key: from `table_key`.
    """
    rules = {"mma": _for_mma, "wgmma": _for_wgmma, "tcgen05": _for_tcgen05}
    chosen = rules[how](shape)
    if not operation:
        return chosen
    found = _tiles.tiles(operation, _tiles.device_kind("cuda"), key)
    said: dict[str, Any] = {
        _FIELDS[k]: v for k, v in found.items() if k in _FIELDS and v is not None
    }
    tuned = dataclasses.replace(chosen, **said)
    return tuned if fits(tuned, shape, how) else chosen


def table_key(bits: int, x: str, shape: ProductSize) -> str:
    """The key of a product in the tables: that of `weight_key`, and how many rows."""
    phase = "decode" if shape.rows <= DECODE_ROWS else "prefill"
    return f"{_tiles.weight_key(bits, x, shape.groups)} {phase}"


def fits(tiles: Tiles, shape: ProductSize, how: str) -> bool:
    """Whether a product can be cut up so."""
    if min(tiles.rows, tiles.outputs, tiles.inputs, tiles.splits) < 1:
        return False
    group = shape.inputs // shape.groups
    whole = tiles.inputs % group == 0 or group % tiles.inputs == 0
    divided = (
        shape.outputs % tiles.outputs == 0
        and tiles.outputs in HEIGHTS[how]
        and shape.inputs % (tiles.inputs * tiles.splits) == 0
        and tiles.inputs in (64, 128)
    )
    tall = tiles.rows % _unit(tiles.inputs, shape.x_bits, how) == 0
    alone = tiles.specialized or tiles.outputs == WARPGROUP_ROWS or how != "wgmma"
    stages = tiles.stages > max(1, tiles.overlapped)
    if how == "tcgen05" and _columns(tiles, shape) > TENSOR_COLUMNS:
        return False
    return (
        whole and divided and tall and alone and stages and tiles.rows <= 2 * TALLEST
        and _moved(tiles, shape) * tiles.stages + _written(tiles, shape, how)
        <= SHARED_BYTES[how]
    )  # fmt: skip


def _for_wgmma(shape: ProductSize) -> Tiles:
    decode = shape.rows <= DECODE_ROWS
    pieces = -(-shape.rows // TALLEST)
    step = step_inputs(shape.inputs, shape.groups)
    pair = not decode and shape.outputs % (2 * WARPGROUP_ROWS) == 0
    # Four small blocks a multiprocessor, or one large: as many as fit side by side.
    side_by_side = 4 if decode else 1
    tiles = Tiles(
        rows=round_up(-(-shape.rows // pieces), 8),
        outputs=WARPGROUP_ROWS * (2 if pair else 1),
        inputs=step,
        splits=1,
        stages=2,
        specialized=not decode,
        overlapped=int(not decode and shape.groups == 1 and shape.x_bits == shape.bits),
    )
    return _filled(tiles, shape, "wgmma", side_by_side)


def _for_mma(shape: ProductSize) -> Tiles:
    """One warpgroup a block, whose registers hold the sums: twice with groups."""
    decode = shape.rows <= DECODE_ROWS
    single = shape.groups == 1
    step = step_inputs(shape.inputs, shape.groups) if decode else 64
    pieces = -(-shape.rows // (TALLEST if single else TALLEST // 2))
    pair = not decode and single and shape.outputs % (2 * WARPGROUP_ROWS) == 0
    tiles = Tiles(
        rows=round_up(-(-shape.rows // pieces), _unit(step, shape.x_bits, "mma")),
        outputs=WARPGROUP_ROWS * (2 if pair else 1),
        inputs=step,
        splits=1,
        stages=2,
    )
    return _filled(tiles, shape, "mma", 4 if decode else 2)


def _for_tcgen05(shape: ProductSize) -> Tiles:
    """Tensor memory holds the sums; by group, registers too, so of fewer rows."""
    step = step_inputs(shape.inputs, shape.groups)
    few = shape.rows <= TALLEST // 2
    by_group = shape.groups > 1 and (few or shape.x_bits == 8)
    pieces = -(-shape.rows // (TALLEST // 2 if by_group else TALLEST))
    tiles = Tiles(
        rows=round_up(-(-shape.rows // pieces), 16),
        outputs=TENSOR_ROWS,
        inputs=step if few else 64,
        splits=1,
        stages=2,
        scaled=shape.groups > 1 and not by_group,
    )
    side_by_side = 2 if shape.rows <= DECODE_ROWS else 1
    return _filled(tiles, shape, "tcgen05", side_by_side)


def _filled(tiles: Tiles, shape: ProductSize, how: str, side_by_side: int) -> Tiles:
    """With the blocks that fill a device, and the stages that their memory holds."""
    blocks = -(-shape.rows // tiles.rows) * (shape.outputs // tiles.outputs)
    wanted = MULTIPROCESSORS[how] * side_by_side
    steps = shape.inputs // tiles.inputs
    splits = max(
        (s for s in range(1, steps + 1) if steps % s == 0 and blocks * s <= wanted),
        default=1,
    )
    tiles = dataclasses.replace(tiles, splits=splits)
    device = 163 << 10 if how == "mma" else 227 << 10
    room = device // side_by_side - _written(tiles, shape, how) - 1024
    room = min(room, SHARED_BYTES[how])
    stages = max(2, min(4, room // _moved(tiles, shape)))
    return dataclasses.replace(tiles, stages=stages)


def _moved(tiles: Tiles, shape: ProductSize) -> int:
    """Bytes of the tiles of a step."""
    bits = tiles.rows * shape.x_bits + tiles.outputs * shape.bits
    return tiles.inputs * bits // 8


def _written(tiles: Tiles, shape: ProductSize, how: str) -> int:
    """Bytes of shared memory that a block has besides."""
    if how == "mma":
        return 0
    size = 4 if tiles.splits > 1 or shape.x_bits == 8 else shape.x_bits // 8
    return tiles.outputs * tiles.rows * size


def _columns(tiles: Tiles, shape: ProductSize) -> int:
    """Columns of tensor memory: sums, and the converted weight, twice if they stay."""
    stays = shape.groups == 1 or tiles.scaled
    each = 1 if stays else max(1, tiles.inputs * shape.groups // shape.inputs)
    copies = 2 if stays else 1
    return tiles.rows * each + tiles.inputs * shape.x_bits // 32 * copies


def _unit(step: int, x_bits: int, how: str) -> int:
    """What rows of a block are a multiple of.

    Before sm90 four warps copy a tile, each parts of 8 rows by at least 32 bytes.
    """
    parts = step * x_bits // 256
    return {"wgmma": 8, "tcgen05": 16, "mma": 8 * 4 // math.gcd(4, parts)}[how]
