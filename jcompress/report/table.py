"""The comparison of several variants of a model, for people and for machines."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jcompress.report.labels import (
    Label,
    label_by_bytes,
    label_by_time,
    label_by_zeros,
)
from jcompress.report.measure import Latency, Spread
from jcompress.report.metric import Metric
from jcompress.report.text import aligned, fitted, in_the_middle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one variant of a model besides its speed.

    Attributes:
        bytes: bytes stored.
        parameters: elements of the dense arrays it stands for.
        nonzero: those that are not zero.
        macs: multiplications with weights for one example; None if they cannot be
            counted.
        metrics: the value of each metric, by its name.
    """

    bytes: int
    parameters: int
    nonzero: int
    macs: int | None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the comparison: one quantity of one variant beside the baseline.

    Attributes:
        name: the quantity.
        variant: the variant.
        base: the baseline's value.
        value: the variant's value.
        base_text: the baseline's value for people.
        text: the variant's value for people.
        change: what happened, for people.
        label: the kind of evidence; None if there is no difference to claim, and for
            metrics, which are no claim about size or speed.
        verdict: what stands in the place of a label that is None.
    """

    name: str
    variant: str
    base: float
    value: float
    base_text: str
    text: str
    change: str
    label: Label | None
    verdict: str = "no difference"

    @property
    def evidence(self) -> str:
        """The label, or what stands in its place."""
        return self.label.value if self.label else self.verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variants of a model side by side; `str` is the table, within 80 columns.

    Attributes:
        facts: of each variant, by its name; the first is the baseline.
        latency: by batch size, what was measured with all variants in one run.
        metrics: how good each variant is, in the order of the table.

    Raises:
        ValueError: there are fewer than two variants, or one lacks a metric or a time.
    """

    facts: Mapping[str, Facts]
    latency: Mapping[int, Latency] = dataclasses.field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        if len(self.facts) < 2:
            raise ValueError(
                "Comparison: a baseline and another variant at least, not "
                f"{list(self.facts)}"
            )
        for name, facts in self.facts.items():
            for metric in self.metrics:
                if metric.name not in facts.metrics:
                    raise ValueError(f"Comparison: {name!r} has no {metric.name!r}")
            for size, measured in self.latency.items():
                if name not in measured.seconds:
                    raise ValueError(
                        f"Comparison: {name!r} was not timed at batch size {size}"
                    )

    @property
    def baseline(self) -> str:
        """The name of the variant that the others are compared with."""
        return next(iter(self.facts))

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines of the table, variant after variant, each with its label."""
        others = [name for name in self.facts if name != self.baseline]
        return tuple(line for name in others for line in self._lines_of(name))

    def labels(self, variant: str) -> tuple[Label, ...]:
        """The labels that a variant earned, each once; the baseline has none."""
        found = {line.label for line in self.lines if line.variant == variant}
        return tuple(label for label in Label if label in found)

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain dicts, lists, numbers and strings.

        Returns:
            `baseline`, its name; `variants`, by name, each with its metrics, `bytes`,
            `parameters`, `nonzero`, `macs`, `latency_ms` (median, by batch size),
            `latency_ms_quartiles`, `latency_ms_samples` (one a round; those of the
            same place in two variants were taken side by side) and `labels`; and
            `lines`, the table with a label for each line, and as it is printed.
        """
        return {
            "baseline": self.baseline,
            "variants": {name: self._variant_json(name) for name in self.facts},
            "lines": [
                {
                    "name": line.name,
                    "variant": line.variant,
                    "baseline": line.base,
                    "value": line.value,
                    "change": line.change,
                    "label": None if line.label is None else line.label.value,
                    "baseline_text": line.base_text,
                    "value_text": line.text,
                    "evidence": line.evidence,
                }
                for line in self.lines
            ],
        }

    def __str__(self) -> str:
        others = [name for name in self.facts if name != self.baseline]
        parts = [self._table(name) for name in others]
        return "\n".join(["\n\n".join(parts), "", *self._notes()])

    def _variant_json(self, name: str) -> dict[str, Any]:
        facts = self.facts[name]
        times = {size: self.latency[size].time(name) for size in sorted(self.latency)}
        return {
            **facts.metrics,
            "bytes": facts.bytes,
            "parameters": facts.parameters,
            "nonzero": facts.nonzero,
            "macs": facts.macs,
            "latency_ms": {str(n): time.median * 1e3 for n, time in times.items()},
            "latency_ms_quartiles": {
                str(n): [time.low * 1e3, time.high * 1e3] for n, time in times.items()
            },
            "latency_ms_samples": {
                str(n): [float(f"{1e3 * each:.5g}") for each in samples]
                for n, samples in self._samples(name)
            },
            "labels": [label.value for label in self.labels(name)],
        }

    def _samples(self, name: str) -> list[tuple[int, tuple[float, ...]]]:
        return [
            (size, self.latency[size].seconds[name]) for size in sorted(self.latency)
        ]

    def _table(self, name: str) -> str:
        head = ("", self.baseline, name, "change", "evidence")
        rows = [
            (line.name, line.base_text, line.text, line.change, line.evidence)
            for line in self._lines_of(name)
        ]
        return aligned(_narrowed([head, *rows]), right=(1, 2))

    def _notes(self) -> list[str]:
        """What the labels rest on."""
        notes = []
        lines = self.lines
        if any(line.name == "nonzero" and line.label for line in lines):
            notes.append("nonzero: a zero by itself saves nothing; bytes and ms tell")
        if any(line.name in _COUNTED and line.label for line in lines):
            notes.append("parameters, multiplications: counted from shapes")
        if self.latency:
            baseline = in_the_middle(self.baseline, 24)
            notes += [
                "ms: median and half the interquartile range, measured here, "
                "in alternation;",
                f"    the change is the time over that of {baseline} (its quartiles)",
            ]
        return notes

    def _lines_of(self, name: str) -> list[Line]:
        base, facts = self.facts[self.baseline], self.facts[name]
        lines = [self._metric(metric, name) for metric in self.metrics]
        by_bytes = label_by_bytes(base.bytes, facts.bytes)
        lines.append(_count("bytes stored", name, base.bytes, facts.bytes, by_bytes))
        shapes = [("parameters", base.parameters, facts.parameters)]
        if base.macs is not None and facts.macs is not None:
            shapes.append(("multiplications", base.macs, facts.macs))
        counted = [
            _count(what, name, of_base, own, Label.SMALLER if own < of_base else None)
            for what, of_base, own in shapes
        ]
        by_zeros = label_by_zeros(base.nonzero, facts.nonzero)
        zeros = _count("nonzero", name, base.nonzero, facts.nonzero, by_zeros)
        times = [self._time(size, name) for size in sorted(self.latency)]
        return [*lines, counted[0], zeros, *counted[1:], *times]

    def _metric(self, metric: Metric, name: str) -> Line:
        base = self.facts[self.baseline].metrics[metric.name]
        value = self.facts[name].metrics[metric.name]
        return Line(
            name=metric.name,
            variant=name,
            base=base,
            value=value,
            base_text=metric.text(base),
            text=metric.text(value),
            change=metric.change(base, value),
            label=None,
            verdict=metric.verdict(base, value),
        )

    def _time(self, size: int, name: str) -> Line:
        measured = self.latency[size]
        base, own = measured.time(self.baseline), measured.time(name)
        ratio = measured.ratio(name)
        return Line(
            name=f"ms at batch {size}",
            variant=name,
            base=base.median * 1e3,
            value=own.median * 1e3,
            base_text=_milliseconds(base),
            text=_milliseconds(own),
            change=f"{_digits(ratio.median)}x ({_digits(ratio.low)}"
            f"-{_digits(ratio.high)})",
            label=label_by_time(measured, name),
        )


_COUNTED = ("parameters", "multiplications")


def _narrowed(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Shorten names of variants and metrics that would make a table too wide."""
    head, *body = rows
    return fitted([tuple(in_the_middle(cell, 14) for cell in head), *body])


def _count(name: str, variant: str, base: int, value: int, label: Label | None) -> Line:
    return Line(
        name=name,
        variant=variant,
        base=base,
        value=value,
        base_text=_whole(base),
        text=_whole(value),
        change="same" if base == value else _times(base, value),
        label=label,
    )


def _whole(number: int) -> str:
    return f"{number:,}" if number < 10**10 else f"{number:.4e}"


def _times(base: float, value: float) -> str:
    if value <= base:
        return f"{base / max(value, 1):.2f}x fewer"
    return f"{value / max(base, 1):.2f}x more"


def _milliseconds(time: Spread) -> str:
    places = _places(time.median * 1e3)
    half = (time.high - time.low) * 1e3 / 2
    return f"{time.median * 1e3:.{places}f} ±{half:.{places}f}"


def _digits(number: float) -> str:
    return f"{number:.{min(_places(number), 2)}f}"


def _places(number: float) -> int:
    """Decimal places that show about three digits of a number."""
    return next((n for n, top in ((3, 1), (2, 10), (1, 100)) if number < top), 0)
