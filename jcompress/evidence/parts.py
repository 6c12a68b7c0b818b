"""The parts of a report, read from what `report.json` holds."""

from collections.abc import Mapping
from typing import Any

from jcompress.evidence.front import Point
from jcompress.evidence.reading import (
    Found,
    Front,
    Heat,
    Leaf,
    Line,
    Losses,
    Report,
    ReportError,
)
from jcompress.evidence.recipe import recipe_text
from jcompress.evidence.scales import short
from jcompress.evidence.strips import Strip

_COSTS = ("bytes", "multiplications", "seconds")


def read(report: Mapping[str, Any]) -> Report:
    """Check what a report holds, and bring it into one form.

    Args:
        report: what `report.json` of `jcompress compress` or `jcompress run` holds.

    Raises:
        ReportError: something in it is of another kind than it should be, or missing;
            it is named.
    """
    found = Found(report)
    own = "comparison" in found
    table = found.at("comparison") if own else found
    variants = (
        dict(table.at("variants").items())
        if own
        else {name: found.at(name) for name in ("dense", "compressed")}
    )
    baseline = table.at("baseline").text() if own else "dense"
    if baseline not in variants:
        raise ReportError(f"the report is damaged: no variant is named {baseline!r}")
    return Report(
        title=found.at("model").at("source").text() if own else "The digits network",
        baseline=baseline,
        lines=tuple(_line(each) for each in table.at("lines").each()),
        leaves=tuple(_leaf(each) for each in found.at("leaves").each()),
        losses=_losses(found),
        latency=_latency(variants, baseline),
        sensitivity=found.get("sensitivity", _heat),
        front=found.get("front", _front),
        rejected=_rejected(found),
        facts=_facts(found),
        recipe=recipe_text(found),
        notes=_notes(found),
    )


def _losses(found: Found) -> dict[str, Losses]:
    curves = {}
    for name, values in found.get("losses", Found.items) or []:
        own = values.numbers()
        steps = None
        # Trainings of `run` have a point an epoch, those of `compress` every few steps.
        if "loss_steps" in found and name in found.at("loss_steps"):
            each = found.at("loss_steps").at(name)
            steps = tuple(int(step.amount()) for step in each.each())
            if len(steps) != len(own):
                raise each.wrong(f"as long as the {len(own)} losses")
        curves[name] = Losses(values=own, steps=steps)
    return curves


def _line(found: Found) -> Line:
    label = found.get("label", Found.text)
    return Line(
        name=found.at("name").text(),
        variant=found.at("variant").text(),
        # Reports of earlier versions have the numbers only.
        base=found.get("baseline_text", Found.text)
        or short(found.at("baseline").maybe()),
        value=found.get("value_text", Found.text) or short(found.at("value").maybe()),
        change=found.at("change").text(),
        evidence=found.get("evidence", Found.text) or label or "",
    )


def _leaf(found: Found) -> Leaf:
    # `compress` tells forms and bytes, `run` the form afterwards and bytes.
    both = "bytes_before" in found
    before, after = ("bytes_before", "bytes_after") if both else ("before", "after")
    return Leaf(
        name=found.at("name").text(),
        before=found.at("before").text() if both else None,
        after=found.at("after" if both else "form").text(),
        bytes_before=found.at(before).amount(),
        bytes_after=found.at(after).amount(),
        error=found.get("error", Found.maybe),
        seconds_before=found.get("seconds_before", Found.maybe_amount),
        seconds_after=found.get("seconds_after", Found.maybe_amount),
    )


def _latency(
    variants: Mapping[str, Found], baseline: str
) -> dict[str, tuple[Strip, ...]]:
    sizes = [size for size, _ in variants[baseline].at("latency_ms").items()]
    return {
        size: tuple(
            _strip(name, entry, size, after=name != baseline)
            for name, entry in variants.items()
        )
        for size in sizes
    }


def _strip(name: str, found: Found, size: str, *, after: bool) -> Strip:
    middle = found.at("latency_ms").at(size).amount()
    samples = (
        [each.amount() for each in found.at("latency_ms_samples").at(size).each()]
        if "latency_ms_samples" in found
        else []
    )
    if len(samples) > 1:
        return Strip.of(name, samples, after=after)
    ends = [each.amount() for each in found.at("latency_ms_quartiles").at(size).each()]
    if len(ends) != 2:
        raise ReportError(f"the report is damaged: {name} has no two quartiles")
    return Strip(name, (ends[0], middle, ends[1]), (), after)


def _heat(found: Found) -> Heat:
    candidates = tuple(each.text() for each in found.at("candidates").each())
    tables = []
    for key in ("leaves", "bytes"):
        rows = {name: values.numbers() for name, values in found.at(key).items()}
        for name, values in rows.items():
            if len(values) != len(candidates):
                raise ReportError(
                    f"the report is damaged: sensitivity.{key}.{name} has "
                    f"{len(values)} numbers for {len(candidates)} candidates"
                )
        tables.append(rows)
    return Heat(
        candidates=candidates,
        leaves=tables[0],
        bytes=tables[1],
        measure=found.at("measure").text(),
    )


def _front(found: Found) -> Front:
    cost = found.at("cost").text()
    if cost not in _COSTS:
        raise ReportError(
            f"the report is damaged: front.cost is {cost!r}, not one of "
            f"{', '.join(_COSTS)}"
        )
    return Front(
        cost=cost,
        metric=found.at("metric").text(),
        higher_is_better=found.at("higher_is_better").flag(),
        points=tuple(
            Point(
                label=each.at("label").text(),
                cost=each.at("cost").amount(),
                metric=each.get("metric", Found.maybe),
                predicted=each.get("predicted", Found.maybe),
                chosen=each.at("chosen").flag(),
            )
            for each in found.at("points").each()
        ),
    )


def _rejected(found: Found) -> str:
    if found.get("accepted", Found.flag) is not False:
        return ""
    drop = found.get("metric", lambda metric: metric.get("drop", Found.maybe))
    most = found.get("max_drop", Found.maybe)
    if drop is None or most is None or drop <= most:
        return "Not published: what was asked for was not reached."
    name = found.at("metric").at("name").text()
    return (
        f"Not published: {name} became worse by {short(drop)}, more than the {most:g} "
        "allowed."
    )


def _facts(found: Found) -> tuple[tuple[str, str], ...]:
    rows = []
    for key in ("date", "data", "seed"):
        if key in found:
            rows.append((key, str(found.value[key])))
    model = found.get("model", lambda x: x.get("kind", Found.text))
    if model:
        rows.append(("model", model))
    if "device" in found:
        device = found.at("device")
        rows.append(("device", ", ".join(f"{k} {x.value}" for k, x in device.items())))
    if "versions" in found:
        each = found.at("versions").items()
        rows.append(("versions", ", ".join(f"{k} {x.value}" for k, x in each)))
    if "seconds" in found:
        times = [(k, x.maybe()) for k, x in found.at("seconds").items()]
        rows.append(("seconds", ", ".join(f"{k} {short(x)}" for k, x in times)))
    if "program" in found:
        program = found.at("program")
        size, any_batch = program.at("bytes").number(), program.at("any_batch").flag()
        batch = "for any batch size" if any_batch else "for this batch size"
        rows.append(
            ("program", f"{program.at('file').text()}, {size:,.0f} bytes, {batch}")
        )
    return tuple(rows)


def _notes(found: Found) -> tuple[str, ...]:
    notes = []
    apart = found.get("output_difference", Found.maybe)
    if apart is not None:
        notes.append(f"Outputs on the example differ by {100 * apart:.2g} %.")
    if "verification" in found:
        notes.append(f"In a fresh process, {found.at('verification').text()}.")
    apart = found.get("largest_difference_from_simulation", Found.maybe)
    if apart is not None:
        notes.append(
            "What was trained is what runs: outputs of the two differ by "
            f"{short(apart)} at most."
        )
    return tuple(notes)
