"""Curves of a run's trainings, one after the other, as they were run."""

from collections.abc import Mapping, Sequence

from jcompress.evidence.chart import beside, chart, note, path, stretched
from jcompress.evidence.markup import Markup, joined, tag
from jcompress.evidence.reading import Losses
from jcompress.evidence.scales import Scale, percent, short

_HEIGHT = 200
_NUMBERS = 12
"""Of trainings that fit below the curves on a telephone."""


def curves(
    name_of_chart: str,
    losses: Mapping[str, Losses],
    *,
    title: str,
) -> Markup:
    """The number of each point, training after training, with a band behind each other.

    Args:
        name_of_chart: in the document, once.
        losses: of each training.
        title: what it is.
    """
    known = [x for each in losses.values() for x in each.values if x is not None]
    scale = Scale.of(known)
    total = sum(len(each.values) for each in losses.values())
    bands, parts, lines, legend = [], [], [], []
    done = 0
    for number, (training, each) in enumerate(losses.items(), 1):
        values = each.values
        left, right = done / total, (done + len(values)) / total
        if number % 2 == 0:
            bands.append(
                tag(
                    "rect",
                    x=percent(left),
                    y=0,
                    width=percent(right - left),
                    height=_HEIGHT,
                    class_="band",
                )
            )
        lines += [path(piece, "curve") for piece in _pieces(values, done, total, scale)]
        parts += [
            tag(
                "circle",
                tag("title", f"{training}, {each.unit} {place}: {short(value)}"),
                cx=percent((done + point + 0.5) / total),
                cy=round(_HEIGHT * (1 - scale.at(value)), 2),
                r=2.5,
                class_="dot",
            )
            for point, (place, value) in enumerate(
                zip(each.places, values, strict=True)
            )
            if value is not None
        ]
        middle = percent((left + right) / 2)
        if (number - 1) % -(-len(losses) // _NUMBERS) == 0:
            parts.append(note(str(number), middle, _HEIGHT + 16, text_anchor="middle"))
        ends = [short(value) for value in values if value is not None]
        said = f"from {ends[0]} to {ends[-1]}" if ends else "no finite number"
        legend.append(f"{training}: {each.length}, {said}")
        done += len(values)
    drawing = chart(
        name_of_chart,
        *bands,
        beside(scale, _HEIGHT),
        stretched(*lines, height=_HEIGHT),
        *parts,
        title=title,
        text="; ".join(legend) + ".",
        height=_HEIGHT + 22,
        margin=True,
    )
    entries = (tag("li", text) for text in legend)
    scaled = "logarithmic axis; " if scale.log else ""
    points = {
        "one point an epoch"
        if each.steps is None
        else "each point is the mean of the steps since the one before it"
        for each in losses.values()
    }
    caption = tag("p", f"{scaled}{'; '.join(sorted(points))}", class_="small")
    return joined(drawing, tag("ol", *entries, class_="key"), caption)


def _pieces(
    values: Sequence[float | None], done: int, total: int, scale: Scale
) -> list[list[tuple[float, float]]]:
    """The points of a curve, which is broken where there is no number."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for epoch, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(((done + epoch + 0.5) / total, scale.at(value)))
    return [piece for piece in pieces if len(piece) > 1]
