"""Tables as plain text that fit a terminal, and long names in little space."""

from collections.abc import Sequence

WIDTH = 80
"""The columns of a terminal that every table fits."""
ELLIPSIS = "…"

_NAME = 24
"""Characters of a name that are left beside its row."""

Rows = Sequence[tuple[str, ...]]


def aligned(rows: Rows, *, right: Sequence[int] = ()) -> str:
    """Plain text with aligned columns and a rule under the first row.

    Args:
        rows: equally long tuples of cells; the first is the head.
        right: columns that are set flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def fitted(
    rows: Rows, *, give: Sequence[tuple[int, int]] = ((0, 8),), width: int = WIDTH
) -> list[tuple[str, ...]]:
    """Cut cells so that `aligned` makes no line longer than a terminal is wide.

    Args:
        rows: as of `aligned`.
        give: columns that may be cut, and how many characters stay at least: each in
            turn gives what is missing. Names, in column 0, are cut in the middle,
            others at the end.
        width: of the terminal.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    for column, least in give:
        over = sum(widths) + 2 * (len(widths) - 1) - width
        room = widths[column] - max(0, min(over, widths[column] - least))
        if room < widths[column]:
            cells = columns[column]
            columns[column] = (
                shortened(cells, room)
                if column == 0
                else [c if len(c) <= room else c[: room - 1] + ELLIPSIS for c in cells]
            )
            widths[column] = room
    return list(zip(*columns, strict=True))


def leaf_table(
    rows: Rows,
    *,
    right: Sequence[int] = (),
    give: Sequence[tuple[int, int]] = (),
    width: int = WIDTH,
) -> str:
    """`aligned` for rows that begin with the name of a leaf.

    Long names are cut in the middle. Where too little would be left of them to tell
    them apart, each stands on a line of its own, above its row.

    Args:
        rows: as of `aligned`.
        right: columns that are set flush right.
        give: other columns that may be cut, as of `fitted`.
        width: of the terminal.
    """
    cut = fitted(rows, give=((0, _NAME), *give), width=width)
    table = aligned(cut, right=right)
    different = len({row[0] for row in cut}) == len({row[0] for row in rows})
    if different and max(map(len, table.splitlines())) <= width:
        return table
    rest = [("", *row[1:]) for row in rows]
    body = aligned(fitted(rest, give=give, width=width), right=right).splitlines()
    names = shortened([row[0] for row in rows], width)
    del body[1]
    lines = [line for pair in zip(names, body, strict=True) for line in pair]
    lines.insert(2, "-" * max(map(len, lines)))
    return "\n".join(lines)


def in_blocks(rows: Rows, *, right: Sequence[int] = (), width: int = WIDTH) -> str:
    """`aligned`, with columns that do not fit in further tables below each other.

    Args:
        rows: as of `aligned`; every block begins with the first column.
        right: columns that are set flush right.
        width: of the terminal.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    first = min(widths[0], _NAME)
    blocks: list[list[int]] = [[]]
    for column in range(1, len(columns)):
        used = first + sum(2 + widths[n] for n in [*blocks[-1], column])
        if used > width and blocks[-1]:
            blocks.append([])
        blocks[-1].append(column)
    parts = []
    for block in blocks:
        taken = [0, *block]
        cells = [tuple(row[n] for n in taken) for row in rows]
        flush = [place for place, n in enumerate(taken) if n in right]
        parts.append(leaf_table(cells, right=flush, width=width))
    return "\n\n".join(parts)


def in_the_middle(text: str, most: int, *, first: int | None = None) -> str:
    """A text cut to a number of characters: both its ends tell more than its middle.

    Args:
        text: such as the name of a leaf.
        most: characters that are left, the ellipsis included; at least 1.
        first: how many of them stand before it; half of them by default.
    """
    if len(text) <= most:
        return text
    first = most // 2 if first is None else first
    last = most - first - 1
    return text[:first] + ELLIPSIS + (text[-last:] if last else "")


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Names cut in the middle, or beside it if more of them can be told apart then.

    Args:
        names: of leaves.
        most: characters of each that are left.
    """
    middle = most // 2
    different = len(set(names))
    best: list[str] = []
    for first in sorted(range(most), key=lambda n: abs(n - middle)):
        cut = [in_the_middle(name, most, first=first) for name in names]
        if not best or len(set(cut)) > len(set(best)):
            best = cut
        if len(set(best)) == different:
            break
    return best
