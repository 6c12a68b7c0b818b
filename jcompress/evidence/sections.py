"""The sections of the page, each only where the report has its data."""

from jcompress.evidence.bars import MOST, Pair, bars
from jcompress.evidence.curves import curves
from jcompress.evidence.front import front
from jcompress.evidence.heat import MOST as MOST_ROWS
from jcompress.evidence.heat import heat_map
from jcompress.evidence.markup import Markup, folded, joined, table, tag
from jcompress.evidence.reading import Heat, Leaf, Report
from jcompress.evidence.scales import bytes_text, seconds_text, short
from jcompress.evidence.strips import strips

Section = tuple[str, Markup]
"""A heading and what stands under it."""


def comparison(report: Report) -> Section | None:
    """The table of the comparison."""
    if not report.lines:
        return None
    variants = dict.fromkeys(line.variant for line in report.lines)
    tables = [
        table(
            ["", report.baseline, variant, "change", "evidence"],
            [
                [line.name, line.base, line.value, line.change, label(line.evidence)]
                for line in report.lines
                if line.variant == variant
            ],
            caption=f"{variant} beside {report.baseline}",
            numbers=(1, 2),
            tight=True,
        )
        for variant in variants
    ]
    said = tag(
        "p",
        "simulated: the same bytes and the same speed as before. smaller: fewer bytes "
        "stored and in memory. faster, slower: measured here, both in one run, in "
        "turn; times are medians and half the range of the middle half.",
        class_="small",
    )
    return "Side by side", joined(*tables, said)


def trainings(report: Report) -> Section | None:
    """The losses of a run."""
    losses = {name: each for name, each in report.losses.items() if each.values}
    if not any(x is not None for each in losses.values() for x in each.values):
        return None
    rows = [
        [name, f"{each.unit} {place}", short(value)]
        for name, each in losses.items()
        for place, value in zip(each.places, each.values, strict=True)
    ]
    numbers = table(
        ["training", "until", "loss"], rows, caption="Loss by training", numbers=(1, 2)
    )
    drawing = curves("losses", losses, title="Loss, training after training")
    return "Training and recovery", joined(drawing, folded("Numbers", numbers))


def bytes_by_leaf(report: Report) -> Section | None:
    """What each leaf takes, and what became of it."""
    if not report.leaves:
        return None
    pairs = [Pair(x.name, x.bytes_before, x.bytes_after) for x in report.leaves]
    return "Bytes by leaf", joined(
        bars("bytes", pairs, title="Bytes of each leaf", shown=bytes_text),
        folded(
            f"Numbers of all {len(pairs)} leaves"
            if len(pairs) > MOST
            else "Numbers, formats and errors",
            _leaf_table(report.leaves),
        ),
    )


def _leaf_table(leaves: tuple[Leaf, ...]) -> Markup:
    columns = {
        "leaf": [leaf.name for leaf in leaves],
        "before": [leaf.before or "" for leaf in leaves],
        "after": [leaf.after for leaf in leaves],
        "bytes": [f"{leaf.bytes_before:,.0f}" for leaf in leaves],
        "new bytes": [f"{leaf.bytes_after:,.0f}" for leaf in leaves],
        "error": ["" if x.error is None else short(x.error) for x in leaves],
    }
    told = {name: cells for name, cells in columns.items() if any(cells)}
    error = "; the error is |W - W'| / |W|" if "error" in told else ""
    return table(
        list(told),
        [list(row) for row in zip(*told.values(), strict=True)],
        caption=f"Leaves before and after{error}",
        numbers=tuple(
            n for n, x in enumerate(told) if x in ("bytes", "new bytes", "error")
        ),
    )


def time_by_leaf(report: Report) -> Section | None:
    """How long the products of each leaf take by themselves."""
    known = [
        Pair(leaf.name, leaf.seconds_before, leaf.seconds_after)
        for leaf in report.leaves
        if leaf.seconds_before is not None and leaf.seconds_after is not None
    ]
    if not known:
        return None
    slower = [pair.name for pair in known if pair.after > pair.before]
    said = tag(
        "p",
        "The products of each leaf, run by themselves on random numbers; what lies "
        "between them is not in these times. "
        + (
            f"{len(slower)} of {len(known)} take longer than before: "
            f"{', '.join(slower[:3])}{', ...' if len(slower) > 3 else ''}."
            if slower
            else f"None of {len(known)} takes longer than before."
        ),
        class_="small",
    )
    rows = [
        [
            pair.name,
            seconds_text(pair.before),
            seconds_text(pair.after),
            f"{pair.after / pair.before:.2f}x" if pair.before else short(None),
        ]
        for pair in known
    ]
    numbers = table(
        ["leaf", "before", "after", "change"],
        rows,
        caption="Time of each leaf's products",
        numbers=(1, 2, 3),
    )
    drawing = bars("times", known, title="Time of each leaf", shown=seconds_text)
    return "Time by leaf", joined(said, drawing, folded("Numbers", numbers))


def latencies(report: Report) -> Section | None:
    """How the times of a whole call scatter."""
    if not report.latency:
        return None
    parts = [
        joined(
            tag("h3", f"batch {size}"),
            strips(
                f"latency-{number}",
                rows,
                title=f"Time of a call at batch size {size}",
                shown=lambda ms: seconds_text(ms / 1e3) if ms else "0",
            ),
        )
        for number, (size, rows) in enumerate(report.latency.items())
    ]
    rows = [
        [f"batch {size}, {row.name}", *(short(x) for x in row.quartiles)]
        + [str(len(row.samples) or short(None))]
        for size, strips_of_size in report.latency.items()
        for row in strips_of_size
    ]
    numbers = table(
        ["", "1st quartile", "median", "3rd quartile", "samples"],
        rows,
        caption="Milliseconds of a call",
        numbers=(1, 2, 3, 4),
    )
    said = tag(
        "p",
        "Each dot is one round, in which all variants were timed in turn; the box "
        "holds the middle half, the thick line is the median.",
        class_="small",
    )
    return "Time of a call", joined(said, *parts, folded("Numbers", numbers))


def sensitivity(report: Report) -> Section | None:
    """What each leaf loses in each candidate."""
    heat = report.sensitivity
    if heat is None or not heat.leaves or not heat.candidates:
        return None
    order = sorted(heat.leaves, key=lambda name: -_worst(heat, name))
    drawn = {name: heat.leaves[name] for name in order[:MOST_ROWS]}
    some = "" if len(order) <= MOST_ROWS else f" The {MOST_ROWS} most sensitive ones."
    said = tag("p", f"Each leaf by itself; {heat.measure}.{some}", class_="small")
    columns = list(heat.candidates)
    errors = [[name, *(short(x) for x in heat.leaves[name])] for name in order]
    stored = [
        [name, *("" if x is None else f"{x:,.0f}" for x in heat.bytes[name])]
        for name in order
        if name in heat.bytes
    ]
    right = tuple(range(1, len(columns) + 1))
    tables = [
        table(["leaf", *columns], errors, caption=heat.measure, numbers=right),
        table(["leaf", *columns], stored, caption="Bytes", numbers=right),
    ]
    drawing = heat_map("sensitivity", columns, drawn, title="Error by leaf and format")
    return "Which leaf hurts", joined(said, drawing, folded("Numbers", *tables))


def _worst(heat: Heat, name: str) -> float:
    return max((x for x in heat.leaves[name] if x is not None), default=0.0)


def search(report: Report) -> Section | None:
    """What a search found: cost against quality."""
    found = report.front
    if found is None:
        return None
    points = [
        p for p in found.points if p.metric is not None or p.predicted is not None
    ]
    if not points:
        return None
    shown = {"bytes": bytes_text, "seconds": seconds_text}.get(found.cost, short)
    drawing = front(
        "front",
        points,
        title=f"{found.metric} against {found.cost}",
        cost=found.cost,
        metric=found.metric,
        higher_is_better=found.higher_is_better,
        shown=shown,
    )
    rows = [
        [
            f"{number}. {point.label}",
            shown(point.cost),
            short(point.metric),
            short(point.predicted),
            "chosen" if point.chosen else "",
        ]
        for number, point in enumerate(points, 1)
    ]
    numbers = table(
        ["", found.cost, f"{found.metric}, measured", "predicted error", ""],
        rows,
        caption="What was tried",
        numbers=(1, 2, 3),
    )
    return "Cost and quality", joined(drawing, numbers)


def origin(report: Report) -> Section | None:
    """The recipe, the machine and the versions."""
    facts = [joined(tag("dt", name), tag("dd", text)) for name, text in report.facts]
    recipe = tag("pre", report.recipe, tabindex=0) if report.recipe else ""
    return "How it was made", joined(recipe, tag("dl", *facts) if facts else "")


def label(evidence: str) -> Markup:
    """A label of a result; its colour adds nothing to the word."""
    kind = {
        "smaller": "good",
        "faster": "good",
        "better": "good",
        "slower": "bad",
        "worse": "bad",
        "simulated": "simulated",
    }.get(evidence)
    if kind is None:
        return tag("span", evidence, class_="small")
    return tag("span", evidence, class_=f"label {kind}")


SECTIONS = (
    comparison,
    trainings,
    bytes_by_leaf,
    time_by_leaf,
    latencies,
    sensitivity,
    search,
    origin,
)
"""In the order of the page."""
