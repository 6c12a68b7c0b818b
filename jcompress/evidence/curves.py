"""Curves of a run's trainings, one after the other, as they were run."""

from collections.abc import Mapping, Sequence

from jcompress.evidence.chart import beside, chart, note, path, stretched
from jcompress.evidence.markup import Markup, joined, tag
from jcompress.evidence.scales import Scale, percent, short

_HEIGHT = 200
_NUMBERS = 12
"""Of trainings that fit below the curves on a telephone."""


def curves(
    name_of_chart: str,
    losses: Mapping[str, Sequence[float | None]],
    *,
    title: str,
) -> Markup:
    """The number of each epoch, training after training, with a rule between them.

    Args:
        name_of_chart: in the document, once.
        losses: of each training one number an epoch; None where there is none.
        title: what it is.
    """
    known = [x for values in losses.values() for x in values if x is not None]
    scale = Scale.of(known)
    total = sum(map(len, losses.values()))
    bands, parts, lines, legend = [], [], [], []
    done = 0
    for number, (training, values) in enumerate(losses.items(), 1):
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
                tag("title", f"{training}, epoch {epoch}: {short(value)}"),
                cx=percent((done + epoch - 0.5) / total),
                cy=round(_HEIGHT * (1 - scale.at(value)), 2),
                r=2.5,
                class_="dot",
            )
            for epoch, value in enumerate(values, 1)
            if value is not None
        ]
        middle = percent((left + right) / 2)
        if (number - 1) % -(-len(losses) // _NUMBERS) == 0:
            parts.append(note(str(number), middle, _HEIGHT + 16, text_anchor="middle"))
        ends = [short(value) for value in values if value is not None]
        said = f"from {ends[0]} to {ends[-1]}" if ends else "no finite number"
        legend.append(f"{training}: {len(values)} epochs, {said}")
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
    caption = tag("p", f"{scaled}one point an epoch", class_="small")
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
