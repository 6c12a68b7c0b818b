"""The bars of products on the CPU fall where a cell misses them, and name it."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
from _product_bars import Cell, Limits, judged

pytestmark = pytest.mark.once

LIMITS = Limits(bandwidth=40e9, dots=1e12)


def cell(
    name: str, ratio: float, *, bits: int = 8, x_bits: int = 8, rows: int = 1,
    shape: str = "4096x4096", kind: str = "ours", seconds: float = 4.5e-4,
) -> Cell:  # fmt: skip
    inputs, outputs = map(int, shape.split("x"))
    stored = inputs * outputs * bits // 8
    return Cell(shape, rows, name, kind, bits, x_bits, stored, ratio, seconds)


PEER = cell("onnxruntime int8", 4.0, kind="peer", seconds=2e-5)


def missed(*cells: Cell, limits: Limits = LIMITS) -> list[str]:
    return [miss for bar in judged(cells, limits) for miss in bar.misses]


@pytest.mark.parametrize(
    ("cells", "misses"),
    [
        ([PEER, cell("ours W8A8", 4.4)], []),
        ([PEER, cell("ours W8A8", 3.8)], ["0.950"]),
        ([PEER, cell("ours W8A8", 3.2)], ["1 x 4096x4096 0.80", "0.800"]),
        ([cell("ours W8", 1.1, x_bits=32)], []),
        ([cell("ours W8", 0.9, x_bits=32)], ["W8, 1 x 4096x4096 0.90"]),
        (
            [cell("ours W8A8", 4.0), cell("ours W4A8 g32", 3.0, bits=4)],
            ["W4A8 g32, 1 x 4096x4096 0.75"],
        ),
        ([cell("ours W8A8", 4.0, seconds=6e-4)], ["1 x 4096x4096 0.70"]),
        # Memory allows 8 rows of these 0.42 ms.
        ([cell("ours W8A8", 4.0, rows=8, seconds=6e-4)], []),
        ([cell("ours W8A8", 4.0, rows=8, seconds=8e-4)], ["8 x 4096x4096 0.52"]),
        ([cell("ours W8A8", 4.0, rows=32, seconds=1.0)], []),
    ],
)
def test_bars(cells: list[Cell], misses: list[str]) -> None:
    assert missed(*cells) == misses


def test_a_small_call_is_compared_with_onnxruntime() -> None:
    small = "384x1536"
    peer = PEER._replace(shape=small)
    assert missed(cell("ours W8A8", 4.4, shape=small, seconds=2.1e-5), peer) == []
    slow = cell("ours W8A8", 4.4, shape=small, seconds=2.4e-5)
    assert missed(slow, peer) == ["1 x 384x1536 1.20"]


def test_what_the_machine_allows_may_be_unknown() -> None:
    slow = cell("ours W8A8", 4.0, seconds=1.0)
    assert missed(slow, limits=Limits(0, 0)) == []
    assert missed(slow) != []


def test_a_bar_says_what_it_asks_for_and_what_was_found() -> None:
    texts = [str(bar) for bar in judged([PEER, cell("ours W8A8", 3.2)], LIMITS)]
    assert texts[0] == (
        "- MISSED: 8 bits at 0.9 of the best peer in each cell: median 0.80, "
        "least 0.80 (1 x 4096x4096), 1 cells; below: 1 x 4096x4096 0.80"
    )
