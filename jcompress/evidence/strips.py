"""Strips of repeated measurements: every one a dot, their quartiles a box."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jcompress.evidence.chart import below, chart, name, note
from jcompress.evidence.markup import Markup, joined, tag
from jcompress.evidence.scales import Scale, percent

_ROW = 48
_FAR = 3.0
"""Dots farther from the box than so many of its lengths are told of, not drawn."""


class Strip(NamedTuple):
    """Measurements of one thing.

    Attributes:
        name: what was measured.
        quartiles: the first, the median and the third.
        samples: every measurement; empty if only the quartiles are known.
        after: whether it is drawn as what there is afterwards.
    """

    name: str
    quartiles: tuple[float, float, float]
    samples: Sequence[float]
    after: bool

    @classmethod
    def of(cls, name: str, samples: Sequence[float], *, after: bool) -> "Strip":
        """The strip of two measurements or more."""
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(name, (low, middle, high), samples, after)

    @property
    def end(self) -> float:
        """How far the drawing reaches."""
        low, _, high = self.quartiles
        return high + _FAR * max(high - low, 0.02 * high)


def strips(
    name_of_chart: str,
    rows: Sequence[Strip],
    *,
    title: str,
    shown: Callable[[float], str],
) -> Markup:
    """Rows on one axis that begins at 0.

    Args:
        name_of_chart: in the document, once.
        rows: at least one.
        title: what it is.
        shown: a number as text.
    """
    ends = [min(max([*row.samples, row.quartiles[2]]), row.end) for row in rows]
    scale = Scale.of(ends, zero=True)
    bottom = len(rows) * _ROW
    parts: list[str] = [below(scale, bottom, 0, shown)]
    said = []
    for number, row in enumerate(rows):
        low, middle, high = row.quartiles
        far = sum(sample > scale.high for sample in row.samples)
        told = f"{shown(middle)} ({shown(low)} to {shown(high)})"
        said.append(f"{row.name}: {told}")
        beyond = f"; {far} beyond" if far else ""
        y = number * _ROW
        parts += [
            name(row.name, y + 13, most=18),
            note(told + beyond, "100%", y + 13, text_anchor="end"),
            _row(row, scale, y + 31),
        ]
    return chart(
        name_of_chart,
        *parts,
        title=title,
        text="Medians and quartiles. " + "; ".join(said) + ".",
        height=bottom + 20,
    )


def _row(row: Strip, scale: Scale, y: float) -> Markup:
    low, middle, high = (scale.at(value) for value in row.quartiles)
    kind = "after" if row.after else "before"
    dots = [
        tag(
            "circle",
            cx=percent(scale.at(sample)),
            # Not on top of each other; the same on every drawing.
            cy=y + (index * 5) % 11 - 5,
            r=2,
            class_=f"sample {kind}",
        )
        for index, sample in enumerate(row.samples)
        if sample <= scale.high
    ]
    place = percent(middle)
    return joined(
        *dots,
        tag(
            "rect",
            x=percent(low),
            y=y - 8,
            width=percent(max(high - low, 0.002)),
            height=16,
            class_="box",
        ),
        tag("line", x1=place, x2=place, y1=y - 10, y2=y + 10, class_="median"),
    )
