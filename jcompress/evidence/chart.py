"""What all charts share: the frame, its axes, and rows with a name above each.

Widths are fractions of the page's, heights and texts are in pixels, so that a chart
fits a telephone and a wide screen, and its text has the same size on both.
"""

from collections.abc import Callable, Sequence

from jcompress.evidence.markup import Markup, joined, tag
from jcompress.evidence.scales import Scale, percent, short
from jcompress.report.text import in_the_middle

LONGEST = 40
"""Characters of a name that fit beside a value on a telephone."""


def chart(
    key: str,
    *content: str,
    title: str,
    text: str,
    height: int,
    margin: bool = False,
) -> Markup:
    """A drawing with a name and a description for those who do not see it.

    Args:
        key: its name in the document, once.
        *content: what is drawn, with lengths along the width in percent.
        title: what it is.
        text: what it shows, in a sentence or two.
        height: in pixels.
        margin: leave room for the numbers of a vertical axis.
    """
    drawing = tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", text, id=f"{key}-text"),
        *content,
        width="100%",
        height=height,
        role="img",
        aria_labelledby=f"{key}-title {key}-text",
    )
    return tag("div", drawing, class_="plot margin" if margin else "plot")


def name(text: str, y: float, most: int = LONGEST) -> Markup:
    """The name of a row; whole if one points at it."""
    shown = in_the_middle(text, most)
    return tag("text", shown, tag("title", text), x=0, y=y, class_="name")


def note(text: str, x: str, y: float, **more: str | int | None) -> Markup:
    """A small text."""
    return tag("text", text, x=x, y=y, class_="note", **more)


def below(
    scale: Scale, y: float, top: float, shown: Callable[[float], str] = short
) -> Markup:
    """A horizontal axis with lines up to `top`."""
    parts = []
    for tick in _few(scale.ticks):
        place = percent(scale.at(tick))
        anchor = _anchor(scale.at(tick))
        parts.append(tag("line", x1=place, x2=place, y1=top, y2=y, class_="grid"))
        parts.append(note(shown(tick), place, y + 14, text_anchor=anchor))
    return joined(*parts)


def beside(scale: Scale, height: float, shown: Callable[[float], str] = short) -> str:
    """A vertical axis, its numbers in the margin on the left."""
    parts = []
    for tick in scale.ticks:
        y = round(height * (1 - scale.at(tick)), 2)
        parts.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(note(shown(tick), "0", y + 4, dx=-6, text_anchor="end"))
    return joined(*parts)


def stretched(*content: str, height: float) -> Markup:
    """A part in which points have numbers: 1000 is the whole width and height."""
    return tag(
        "svg",
        *content,
        x=0,
        y=0,
        width="100%",
        height=height,
        view_box="0 0 1000 1000",
        preserve_aspect_ratio="none",
        class_="stretched",
    )


def path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """A line through points of `stretched`, by their fractions of width and height."""
    places = " ".join(f"{1000 * x:.1f},{1000 * (1 - y):.1f}" for x, y in points)
    return tag(
        "polyline", points=places, class_=kind, vector_effect="non-scaling-stroke"
    )


def key(*entries: tuple[str, str]) -> Markup:
    """What the marks mean.

    Args:
        *entries: a mark, the class of it in the style sheet, and its meaning.
    """
    return tag(
        "ul",
        *(
            tag("li", tag("span", "", class_=f"mark {mark}"), " ", text)
            for mark, text in entries
        ),
        class_="key",
    )


def _few(ticks: Sequence[float]) -> Sequence[float]:
    """So many that their numbers do not meet on a telephone."""
    return ticks[:: max(1, -(-len(ticks) // 6))]


def _anchor(place: float) -> str:
    """Numbers at the ends stay within the drawing."""
    if place < 0.02:
        return "start"
    return "end" if place > 0.98 else "middle"
