"""Points of cost and quality: what was measured apart from what was predicted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jcompress.evidence.chart import below, beside, chart, key, path, stretched
from jcompress.evidence.markup import Markup, joined, tag
from jcompress.evidence.scales import Scale, percent, short

_HEIGHT = 200
_SIZE = 5
_ROOM = 16
"""Pixels above and below the points, for their numbers."""

Shown = Callable[[float], str]


class Point(NamedTuple):
    """One way to compress.

    Attributes:
        label: what it is.
        cost: what it takes.
        metric: how good it is; None if it was not measured.
        predicted: the error that was predicted, in units of its own; None if none was.
        chosen: whether it was taken.
    """

    label: str
    cost: float
    metric: float | None
    predicted: float | None
    chosen: bool


def front(
    name_of_chart: str,
    points: Sequence[Point],
    *,
    title: str,
    cost: str,
    metric: str,
    higher_is_better: bool,
    shown: Shown,
) -> Markup:
    """Each point with its number in the table; a line through the best measured ones.

    Predictions are errors and not the metric, so they have a drawing of their own, with
    the same costs below it.

    Args:
        name_of_chart: in the document, once.
        points: at least one with a metric or a prediction.
        title: what it is.
        cost: what the horizontal axis is.
        metric: what was measured.
        higher_is_better: of the metric.
        shown: a cost as text.
    """
    x = Scale.of([point.cost for point in points])
    best = [(p.cost, p.metric or 0.0) for p in pareto(points, higher_is_better)]
    good = "higher" if higher_is_better else "lower"
    panels = [
        _panel(
            f"{name_of_chart}-{kind}",
            [(n, p, v) for n, (p, v) in enumerate(values, 1) if v is not None],
            best if kind == "measured" else [],
            x=x,
            title=f"{title}, {kind}",
            caption=f"{what} over {cost} (lower is better)",
            kind=kind,
            shown=shown,
        )
        for kind, what, values in (
            (
                "measured",
                f"{metric}, measured here ({good} is better)",
                [(point, point.metric) for point in points],
            ),
            (
                "predicted",
                "predicted error (lower is better)",
                [(point, point.predicted) for point in points],
            ),
        )
        if any(value is not None for _, value in values)
    ]
    marks = [("dot", "measured here"), ("diamond", "predicted"), ("ring", "chosen")]
    return joined(key(*marks), *panels)


def pareto(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """The measured points that no other one beats in both, from cheap to dear."""
    sign = 1 if higher_is_better else -1
    best: list[Point] = []
    measured = [point for point in points if point.metric is not None]
    for point in sorted(measured, key=lambda p: (p.cost, -sign * (p.metric or 0.0))):
        if not best or sign * (point.metric or 0.0) > sign * (best[-1].metric or 0.0):
            best.append(point)
    return best


def _panel(
    name_of_chart: str,
    values: Sequence[tuple[int, Point, float]],
    best: Sequence[tuple[float, float]],
    *,
    x: Scale,
    title: str,
    caption: str,
    kind: str,
    shown: Shown,
) -> Markup:
    y = Scale.of([value for _, _, value in values])
    drawn: list[str] = []
    for number, point, value in values:
        told = _told(point, value, kind, shown)
        drawn.append(
            _mark(number, point, x.at(point.cost), _down(y.at(value)), told, kind)
        )
    line = [(x.at(cost), 1 - _down(y.at(v)) / _HEIGHT) for cost, v in best]
    drawing = chart(
        name_of_chart,
        tag("svg", beside(y, _HEIGHT - 2 * _ROOM), y=_ROOM, class_="stretched"),
        below(x, _HEIGHT, 0, shown),
        stretched(*([path(line, "curve")] if len(line) > 1 else []), height=_HEIGHT),
        *drawn,
        title=title,
        text=f"{len(values)} points. "
        + " ".join(f"{_told(p, v, kind, shown)}." for _, p, v in values),
        height=_HEIGHT + 20,
        margin=True,
    )
    axes = [name for name, s in (("cost", x), ("vertical", y)) if s.log]
    scaled = f"; {' and '.join(axes)} axis logarithmic" if axes else ""
    return joined(tag("p", caption + scaled, class_="small"), drawing)


def _mark(
    number: int, point: Point, left: float, down: float, told: str, kind: str
) -> Markup:
    if kind == "measured":
        mark = tag(
            "circle",
            tag("title", told),
            cx=percent(left),
            cy=down,
            r=_SIZE,
            class_="measured",
        )
    else:
        # Turned about its own middle, which stands at a percentage of the width.
        diamond = tag(
            "rect",
            tag("title", told),
            x=-4,
            y=-4,
            width=8,
            height=8,
            transform="rotate(45)",
            class_="predicted",
        )
        mark = tag("svg", diamond, x=percent(left), y=down, class_="stretched")
    ring = tag("circle", cx=percent(left), cy=down, r=_SIZE + 4, class_="chosen")
    at_the_end = left > 0.9
    label = tag(
        "text",
        str(number),
        x=percent(left),
        y=down - 8,
        dx=-8 if at_the_end else 8,
        text_anchor="end" if at_the_end else "start",
        class_="note halo",
    )
    return joined(mark, ring if point.chosen else "", label)


def _down(up: float) -> float:
    return round(_ROOM + (_HEIGHT - 2 * _ROOM) * (1 - up), 2)


def _told(point: Point, value: float, kind: str, shown: Shown) -> str:
    chosen = ", chosen" if point.chosen else ""
    return f"{point.label}: {shown(point.cost)}, {kind} {short(value)}{chosen}"
