"""GPTQ and AWQ of ours and of peers, layer by layer, in turn."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from _quantization_layers import Layer
from _quantization_rounders import AWQ, PEERS, Contender, ours
from _timing import Unavailable

from jcompress.report import aligned

MARGIN = 1.005
GROUPS = (128, None)


class Row(NamedTuple):
    """One layer by one contender.

    Attributes:
        error: |W x - W' x| over |W x| on inputs that it did not see.
        seconds: of one call.
        first: whether the call was its first at these bits and groups, which compiles.
    """

    layer: str
    bits: int
    group: int | None
    symmetric: bool
    method: str
    name: str
    ours: bool
    searched: bool
    error: float
    seconds: float
    first: bool


def contenders() -> tuple[list[Contender], list[str]]:
    """All that can run here, and why others cannot."""
    found, absent = list(ours()), []
    for name, make in PEERS.items():
        try:
            found += list(make())
        except Unavailable as error:
            absent.append(f"{name}: {error}")
    return found, absent


def run(
    layers: Sequence[Layer],
    *,
    quick: bool,
    skip: Sequence[str] = (),
    save: Callable[[list[Row]], None] = lambda rows: None,
) -> tuple[list[Row], list[str]]:
    """Every layer by every contender, in random order; and what could not run.

    Args:
        layers: the layers.
        quick: 4 bits and groups of 128 only.
        skip: contenders that are left out.
        save: is given all rows after each setting of a layer.
    """
    offered, absent = contenders()
    offered = [one for one in offered if one.name not in skip]
    absent += [f"{name}: left out" for name in skip]
    order = np.random.default_rng(0)
    rows: list[Row] = []
    broken: dict[tuple[str, bool], str] = {}
    met: set[tuple[Any, ...]] = set()
    for layer in layers:
        print(f"{layer.name} ...", file=sys.stderr, flush=True)
        for bits in (4,) if quick else (4, 3):
            for group in GROUPS[:1] if quick else GROUPS:
                for place in order.permutation(len(offered)):
                    one = offered[place]
                    known = (one.name, one.symmetric)
                    if bits not in one.bits or known in broken:
                        continue
                    begin = time.perf_counter()
                    try:
                        made = one.make(layer, bits, group)
                    except Exception as error:
                        if one.ours:
                            raise
                        broken[known] = f"{type(error).__name__}: {error}"[:200]
                        continue
                    seconds = time.perf_counter() - begin
                    key = (*known, bits, group)
                    rows.append(
                        Row(
                            layer.name,
                            bits,
                            group,
                            one.symmetric,
                            one.method,
                            one.name,
                            one.ours,
                            one.searched,
                            layer.error(made),
                            seconds,
                            key not in met,
                        )
                    )
                    met.add(key)
                save(rows)
    for (name, symmetric), reason in broken.items():
        kind = "symmetric" if symmetric else "with zero points"
        absent.append(f"{name}, {kind}, raises {reason}")
    return rows, absent


def _cells(rows: Sequence[Row]) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    by: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        by.setdefault((row.method, row.symmetric, row.bits, row.group), []).append(row)
    yield from sorted(by.items(), key=str)


def tables(rows: Sequence[Row]) -> str:
    """The geometric mean of the errors over all layers, and the median seconds."""
    head = ("method", "zero points", "bits", "group", "by", "error", "s", "first s")
    lines: list[tuple[str, ...]] = [head]
    for (method, symmetric, bits, group), own in _cells(rows):
        for name in dict.fromkeys(
            row.name for row in sorted(own, key=lambda r: r.name)
        ):
            mine = [row for row in own if row.name == name]
            warm = [row.seconds for row in mine if not row.first]
            lines.append(
                (
                    method,
                    "no" if symmetric else "yes",
                    str(bits),
                    "-" if group is None else str(group),
                    name,
                    f"{np.exp(np.mean(np.log([row.error for row in mine]))):.5f}",
                    f"{np.median(warm):.2f}" if warm else "",
                    f"{max(row.seconds for row in mine if row.first):.1f}",
                )
            )
    return str(aligned(lines, right=(2, 3, 5, 6, 7)))


def falls(rows: Sequence[Row]) -> list[str]:
    """Each layer on which a peer errs less than ours with searched scales."""
    found = []
    for (_, symmetric, bits, group), own in _cells(rows):
        mine = [row for row in own if row.ours and row.searched]
        for peer in (row for row in own if not row.ours):
            for row in mine:
                if row.layer != peer.layer or row.error <= MARGIN * peer.error:
                    continue
                kind = "symmetric" if symmetric else "with zero points"
                found.append(
                    f"{row.name}, {kind}, {bits} bits, group {group or '-'}, "
                    f"{row.layer}: {row.error:.5f}, {peer.name} {peer.error:.5f}"
                )
    return found


def ratios(rows: Sequence[Row]) -> list[str]:
    """The error of ours over the least of any peer's, over all layers, by setting."""
    lines = []
    for (method, symmetric, bits, group), own in _cells(rows):
        for name in dict.fromkeys(row.name for row in own if row.ours):
            found = []
            for row in (row for row in own if row.name == name):
                peers = [r.error for r in own if not r.ours and r.layer == row.layer]
                if peers:
                    found.append(row.error / min(peers))
            if found:
                kind = "symmetric" if symmetric else "zero points"
                words = AWQ.upper() if method == AWQ else "GPTQ"
                lines.append(
                    f"{name}, {kind}, {bits} bits, group {group or '-'}: "
                    f"{min(found):.3f} to {max(found):.3f} times the best {words}"
                )
    return lines
