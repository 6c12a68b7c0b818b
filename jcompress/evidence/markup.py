"""Elements of HTML and SVG as text, with everything from outside escaped."""

import html
import re

Value = str | int | float | None

_CONTROLS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff"
    r"\u202a-\u202e\u2066-\u2069]"
)
"""What a document may not hold, even escaped, and what turns the text after it."""

_CAMEL = {
    "view_box": "viewBox",
    "preserve_aspect_ratio": "preserveAspectRatio",
}


class Markup(str):
    """Text that is an element or several, and stays as it is."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Text that shows as it is, whatever is in it; markup stays markup."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)))


def tag(kind: str, /, *content: str, **attributes: Value) -> Markup:
    """One element.

    Args:
        kind: the name of the element.
        *content: markup, and text, which is escaped.
        **attributes: those that are None are left out. A trailing `_` of a name goes,
            others become `-`: `class_`, `stroke_width`.
    """
    given = "".join(
        f' {_name(key)}="{escaped(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if kind in ("meta", "link"):
        return Markup(f"<{kind}{given}>")
    return Markup(f"<{kind}{given}>{joined(*content)}</{kind}>")


def joined(*content: str) -> Markup:
    """Elements and texts in a row."""
    return Markup("".join(map(escaped, content)))


def _name(key: str) -> str:
    return _CAMEL.get(key) or key.rstrip("_").replace("_", "-")


def _text(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(
    head: list[str],
    rows: list[list[str]],
    *,
    caption: str,
    numbers: tuple[int, ...],
    tight: bool = False,
) -> Markup:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        head: the names of the columns.
        rows: the cells; the first of each row is its name.
        caption: what it shows.
        numbers: the columns that are set flush right.
        tight: whether its first column has words and no long names.
    """

    def kind(column: int) -> str | None:
        return "number" if column in numbers else None

    body = [
        tag(
            "tr",
            *(
                tag("td", cell, class_=kind(n))
                if n
                else tag("th", cell, scope="row", class_=kind(n))
                for n, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    names = (tag("th", x, scope="col", class_=kind(n)) for n, x in enumerate(head))
    whole = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *names)),
        tag("tbody", *body),
        class_="tight" if tight else None,
    )
    # A region that scrolls has to be reached by the keyboard.
    return tag(
        "div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption
    )


def folded(summary: str, *content: str) -> Markup:
    """What is shown when it is asked for."""
    return tag("details", tag("summary", summary), *content)
