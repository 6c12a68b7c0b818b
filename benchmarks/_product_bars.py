"""What products on the CPU have to reach, and whether they do."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

MEDIAN, LEAST = 1.0, 0.9
"""Of the best peer's speed: 8 bits, in the median of all cells and in each."""
SMALL, CALL = ("384x1536", 1), 1.1
"""The cell that calling limits, and the most times of onnxruntime's there."""
OF_BANDWIDTH, LARGE = 0.85, 8 << 20
"""Share of the read bandwidth at one row, of weights with so many numbers."""
OF_LIMIT, FEW = 0.6, (2, 16)
"""Share of what arithmetic and memory allow, from so many rows to so many."""


class Limits(NamedTuple):
    """Of the machine: bytes read and products of bytes a second; 0 if unknown."""

    bandwidth: float
    dots: float


class Cell(NamedTuple):
    """A contender at one shape and number of rows, as `Figures` in cpu_products.py."""

    shape: str
    rows: int
    name: str
    kind: str
    bits: int
    activations: int
    bytes: int
    ratio: float
    seconds: float

    @property
    def place(self) -> str:
        """For a list of misses."""
        return f"{self.rows} x {self.shape}"


class Bar(NamedTuple):
    """A bar: what it asks for, what was found, and the cells that miss it."""

    asks: str
    found: str
    misses: Sequence[str]

    @property
    def met(self) -> bool:
        """Whether nothing misses it."""
        return not self.misses

    def __str__(self) -> str:
        mark = "met" if self.met else "MISSED"
        cells = f"; below: {', '.join(self.misses)}" if self.misses else ""
        return f"- {mark}: {self.asks}: {self.found}{cells}"


def weights_of(shape: str) -> int:
    """Weights of a shape, to order by."""
    inputs, outputs = map(int, shape.split("x"))
    return inputs * outputs


def judged(cells: Sequence[Cell], limits: Limits) -> Iterator[Bar]:
    """All bars of which there are cells."""
    places = sorted({(weights_of(c.shape), c.shape, c.rows) for c in cells})
    by_place = [[c for c in cells if (c.shape, c.rows) == p[1:]] for p in places]
    yield from _against_peers(by_place)
    yield from _call(cells)
    yield from _floats(cells)
    yield from _four(by_place)
    yield from _limits(cells, limits)


def _best(cells: Iterable[Cell], kind: str, bits: int) -> Cell | None:
    found = [c for c in cells if c.kind == kind and c.bits == bits]
    return max(found, key=lambda c: c.ratio, default=None)


def _bar(asks: str, shares: Sequence[tuple[float, str]], least: float) -> Bar:
    low, where = min(shares)
    found = f"median {np.median([s for s, _ in shares]):.2f}, least {low:.2f} ({where})"
    misses = [f"{place} {share:.2f}" for share, place in shares if share < least]
    return Bar(asks, f"{found}, {len(shares)} cells", misses)


def _against_peers(by_place: Sequence[Sequence[Cell]]) -> Iterator[Bar]:
    shares = []
    for here in by_place:
        ours, peer = _best(here, "ours", 8), _best(here, "peer", 8)
        if ours and peer:
            shares.append((ours.ratio / peer.ratio, ours.place))
    if shares:
        yield _bar(f"8 bits at {LEAST} of the best peer in each cell", shares, LEAST)
        median = float(np.median([share for share, _ in shares]))
        missed = [f"{median:.3f}"] if median < MEDIAN else []
        yield Bar("and level with it in the median", f"{median:.2f}", missed)


def _call(cells: Sequence[Cell]) -> Iterator[Bar]:
    here = [c for c in cells if (c.shape, c.rows) == SMALL and c.bits == 8]
    ours = [c for c in here if c.kind == "ours" and c.activations == 8]
    peers = [c for c in here if c.name.startswith("onnxruntime")]
    if ours and peers:
        times = ours[0].seconds / min(c.seconds for c in peers)
        place = ours[0].place
        missed = [f"{place} {times:.2f}"] if times > CALL else []
        asks = f"W8A8 within {CALL} times of onnxruntime's at {place}"
        yield Bar(asks, f"{times:.2f}", missed)


def _floats(cells: Sequence[Cell]) -> Iterator[Bar]:
    found = [
        (c.ratio, f"{c.name[5:]}, {c.place}")
        for c in cells
        if c.kind == "ours" and c.activations == 32 and c.bits in (4, 8)
    ]
    if found:
        yield _bar("weights alone, 8 and 4 bits, no slower than float32", found, 1.0)


def _four(by_place: Sequence[Sequence[Cell]]) -> Iterator[Bar]:
    for activations, label in ((8, "W8A8"), (32, "W8")):
        shares = []
        for here in by_place:
            own = [c for c in here if c.kind == "ours" and c.activations == activations]
            eight = _best(own, "ours", 8)
            for four in own if eight else ():
                if four.bits == 4 and eight:
                    name = f"{four.name[5:]}, {four.place}"
                    shares.append((four.ratio / eight.ratio, name))
        if shares:
            yield _bar(f"4 bits no slower than {label}", shares, 1.0)


def _limits(cells: Sequence[Cell], limits: Limits) -> Iterator[Bar]:
    ours = [c for c in cells if c.name == "ours W8A8"]
    one = [
        (c.bytes / c.seconds / limits.bandwidth, c.place)
        for c in ours
        if c.rows == 1 and weights_of(c.shape) >= LARGE and limits.bandwidth
    ]
    if one:
        asks = f"W8A8 at {OF_BANDWIDTH} of {limits.bandwidth / 1e9:.1f} GB/s at one row"
        yield _bar(asks, one, OF_BANDWIDTH)
    few = []
    for c in ours:
        if FEW[0] <= c.rows <= FEW[1] and limits.dots and limits.bandwidth:
            least = c.bytes / limits.bandwidth
            least = max(least, c.rows * weights_of(c.shape) / limits.dots)
            few.append((least / c.seconds, c.place))
    if few:
        asks = f"W8A8 at {OF_LIMIT} of what memory and arithmetic allow, 2 to 16 rows"
        yield _bar(asks, few, OF_LIMIT)
