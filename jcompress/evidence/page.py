"""The page `report.html`: one file that needs nothing else."""

from collections.abc import Mapping
from typing import Any

from jcompress.evidence.markup import Markup, tag
from jcompress.evidence.parts import read
from jcompress.evidence.reading import Line, Report
from jcompress.evidence.sections import SECTIONS, label
from jcompress.evidence.style import style_sheet

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser asks for nothing and runs nothing, whatever the report holds."""

_COUNTS = ("bytes stored", "parameters", "nonzero", "multiplications")
_TIME = "ms at batch "
_NOTHING = ("no difference", "same", "")


def draw_page(report: Mapping[str, Any]) -> str:
    """Draw a report as one HTML document, with its charts, for light and dark screens.

    It has no script and asks for nothing: it can be sent and kept as it is. A section
    is there if the report has its data.

    Args:
        report: what `report.json` of `jcompress compress` or `jcompress run` holds.

    Returns:
        The document.

    Raises:
        ReportError: something in the report is missing or of another kind; it is named.
    """
    found = read(report)
    sections = [made for section in SECTIONS if (made := section(found)) is not None]
    title = f"{found.title}, compressed"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(style_sheet())),
    )
    main = tag(
        "main",
        tag("h1", title),
        *_headline(found),
        *(tag("section", tag("h2", name), body) for name, body in sections),
        tag(
            "p",
            "Drawn from the JSON file of the same name beside it; `jcompress report "
            "DIR` draws it again.",
            class_="small",
        ),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", main), lang="en") + "\n"


def _headline(report: Report) -> list[Markup]:
    alarm = [tag("p", report.rejected, class_="alarm")] if report.rejected else []
    cards = [_card(line) for line in report.lines if _belongs(line, report)]
    return [
        *alarm,
        *(tag("p", sentence) for sentence in _sentences(report)),
        tag("ul", *cards, class_="cards") if cards else Markup(),
        *(tag("p", note, class_="small") for note in report.notes),
    ]


def _sentences(report: Report) -> list[str]:
    """What came of each variant, in words, each with its label."""
    said = []
    for variant in dict.fromkeys(line.variant for line in report.lines):
        own = [line for line in report.lines if line.variant == variant]
        parts = [_in_words(line, report.baseline) for line in own]
        told = [part for part in parts if part]
        if told:
            said.append(f"{variant}: {'; '.join(told)}.")
    return said


def _in_words(line: Line, baseline: str) -> str:
    """A line in words; empty if it tells nothing that others do not."""
    if line.name == "bytes stored":
        if line.change == "same":
            return f"the same bytes as {baseline} (simulated)"
        return f"{line.change} bytes ({line.evidence})"
    if line.name.startswith(_TIME):
        size = line.name.removeprefix(_TIME)
        if line.evidence in _NOTHING:
            return f"no difference in time at batch {size}"
        ratio = line.change.partition(" ")[0].removesuffix("x")
        share = "times the" if line.evidence == "slower" else "of the"
        return f"{ratio} {share} time at batch {size} ({line.evidence})"
    if line.name in _COUNTS:
        return ""
    if line.evidence in _NOTHING:
        return f"{line.name} {line.value}, as before"
    return f"{line.name} {line.base} became {line.value} ({line.evidence})"


def _belongs(line: Line, report: Report) -> bool:
    """Whether a line has a card: metrics, bytes, and times; what got worse always."""
    if line.name == "bytes stored" or line.evidence in ("worse", "slower"):
        return True
    if line.name.startswith(_TIME):
        times = [x.name for x in report.lines if x.name.startswith(_TIME)]
        return line.name in (times[0], times[-1])
    return line.name not in _COUNTS


def _card(line: Line) -> Markup:
    what = f"{line.name}: {line.base} became {line.value}"
    if line.name.startswith(_TIME):
        change = f"{line.change.partition(' (')[0]} the time"
    elif line.name in _COUNTS:
        change = line.change
    else:
        what, change = f"{line.name}, {line.base} before", line.value
    return tag(
        "li",
        tag("b", change),
        tag("span", what, class_="small"),
        label(line.evidence),
    )
