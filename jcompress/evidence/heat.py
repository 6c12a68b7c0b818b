"""A heat map: a number for each row and column, by its logarithm."""

import math
from collections.abc import Mapping, Sequence

from jcompress.evidence.chart import chart, name, note
from jcompress.evidence.markup import Markup, joined, tag
from jcompress.evidence.scales import percent, short

LEVELS = 8
"""Shades, of which the style sheet has the colours."""
MOST = 40
"""Rows that are drawn."""

_ROW, _CELL, _HEAD = 42, 22, 20
_FEW = 6
"""Columns in which numbers fit, on a telephone, too."""
_CHARACTERS = 46
"""That fit beside each other in all columns together, on a telephone."""


def heat_map(
    name_of_chart: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
    *,
    title: str,
) -> Markup:
    """Rows as they are given, a cell for each column.

    Args:
        name_of_chart: in the document, once.
        columns: their names.
        rows: the numbers of each; None where there is none.
        title: what it is.
    """
    known = [x for values in rows.values() for x in values if x is not None and x > 0]
    low, high = (min(known), max(known)) if known else (1.0, 1.0)
    few = len(columns) <= _FEW
    named = few and max(map(len, columns)) * len(columns) <= _CHARACTERS
    heads = columns if named else [str(n) for n in range(1, len(columns) + 1)]
    width = 1 / len(columns)
    parts = [
        note(head, percent(width * (n + 0.5)), 12, text_anchor="middle")
        for n, head in enumerate(heads)
    ]
    for number, (row, values) in enumerate(rows.items()):
        y = _HEAD + number * _ROW
        parts.append(name(row, y + 12))
        for n, (column, value) in enumerate(zip(columns, values, strict=True)):
            level = None if value is None else level_of(value, low, high)
            kind = "none" if level is None else f"level{level}"
            parts.append(
                tag(
                    "rect",
                    tag("title", f"{row}, {column}: {short(value)}"),
                    x=percent(width * n),
                    y=y + 16,
                    width=percent(width),
                    height=_CELL,
                    class_=f"cell {kind}",
                )
            )
            if few:
                parts.append(
                    tag(
                        "text",
                        short(value if value is None else float(f"{value:.2g}")),
                        x=percent(width * (n + 0.5)),
                        y=y + 31,
                        text_anchor="middle",
                        class_=f"on {kind}",
                    )
                )
    drawing = chart(
        name_of_chart,
        *parts,
        title=title,
        text=f"{len(rows)} rows, {len(columns)} columns, from {short(low)} to "
        f"{short(high)}; the table below has all numbers.",
        height=_HEAD + len(rows) * _ROW,
    )
    shades = [tag("span", "", class_=f"shade level{n}") for n in range(LEVELS)]
    legend = tag(
        "p",
        f"{short(low)} ",
        *shades,
        f" {short(high)}, by the logarithm",
        class_="small shades",
    )
    numbers = [tag("li", column) for column in columns]
    columns_named = "" if named else tag("ol", *numbers, class_="key")
    return joined(legend, drawing, columns_named)


def level_of(value: float, low: float, high: float) -> int:
    """The shade of a number between the least and the greatest above 0."""
    if value <= 0 or high <= low:
        return 0
    part = math.log(value / low) / math.log(high / low)
    return min(max(int(part * LEVELS + 1e-9), 0), LEVELS - 1)
