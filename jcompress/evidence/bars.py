"""Horizontal bars: a number before and after for each of many names."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jcompress.evidence.chart import chart, key, name
from jcompress.evidence.markup import Markup, joined, tag
from jcompress.evidence.scales import percent

MOST = 20
"""Bars that are drawn by themselves; the rest is summed."""
LEAST = 0.002
"""The fraction of the sum that a bar of its own stands for at least."""

_ROW, _BAR = 46, 11
_LONGEST = 0.72
"""The fraction of the width of the longest bar; its number stands beside it."""


class Pair(NamedTuple):
    """One row: a name, and a number of it before and after."""

    name: str
    before: float
    after: float


def bars(
    name_of_chart: str,
    pairs: Sequence[Pair],
    *,
    title: str,
    shown: Callable[[float], str],
    most: int = MOST,
) -> Markup:
    """Two bars for each name, the largest first, the rest in one row.

    Args:
        name_of_chart: in the document, once.
        pairs: what is drawn, at least one.
        title: what it is.
        shown: a number as text.
        most: rows that are drawn by themselves.
    """
    rows = ranked(pairs, most)
    whole = max((max(row.before, row.after) for row in rows), default=0) or 1
    parts = []
    for number, row in enumerate(rows):
        y = number * _ROW
        parts.append(name(row.name, y + 12))
        for kind, value, top in (
            ("before", row.before, y + 18),
            ("after", row.after, y + 19 + _BAR),
        ):
            width = percent(_LONGEST * value / whole)
            bar = tag("rect", x=0, y=top, width=width, height=_BAR - 2, class_=kind)
            text = tag("text", shown(value), x=width, y=top + 9, dx=6, class_="value")
            parts.append(joined(bar, text))
    first = rows[0]
    drawing = chart(
        name_of_chart,
        *parts,
        title=title,
        text=f"{len(rows)} pairs of bars, before and after. {first.name}: "
        f"{shown(first.before)} before, {shown(first.after)} after. "
        "The table below has all numbers.",
        height=len(rows) * _ROW,
    )
    return joined(key(("before", "before"), ("after", "after")), drawing)


def ranked(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """The largest first; those that have no place of their own as a sum."""
    ordered = sorted(pairs, key=_size, reverse=True)
    least = LEAST * sum(map(_size, pairs))
    large = sum(_size(pair) >= least for pair in ordered)
    if len(ordered) - large < 2 and len(ordered) <= most:
        return ordered
    own = min(large, most - 1)
    rest = ordered[own:]
    before, after = sum(x.before for x in rest), sum(x.after for x in rest)
    return [*ordered[:own], Pair(f"the other {len(rest)}", before, after)]


def _size(pair: Pair) -> float:
    return max(pair.before, pair.after)
