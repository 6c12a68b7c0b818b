"""The comparison of a dense with a compressed model, for people and for machines."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jcompress.report.labels import (
    Label,
    label_by_bytes,
    label_by_time,
    label_by_zeros,
)
from jcompress.report.measure import Latency, Spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one model.

    Attributes:
        accuracy: fraction of test examples classified rightly.
        bytes: bytes stored.
        parameters: elements of the dense arrays it stands for.
        nonzero: those that are not zero.
        macs: multiplications with weights for one example.
    """

    accuracy: float
    bytes: int
    parameters: int
    nonzero: int
    macs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the comparison.

    Attributes:
        name: what is compared.
        dense: the dense model's value.
        compressed: the compressed model's value.
        dense_text: that value for people.
        compressed_text: that value for people.
        change: what happened, for people.
        label: the kind of evidence; None if there is no difference to claim.
        note: what the label rests on, for people.
    """

    name: str
    dense: float
    compressed: float
    dense_text: str
    compressed_text: str
    change: str
    label: Label | None
    note: str = ""

    @property
    def evidence(self) -> str:
        """The label, and what it rests on."""
        name = self.label.value if self.label else "no difference"
        return f"{name} ({self.note})" if self.note else name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A dense and a compressed model side by side; `str` is the table.

    Attributes:
        dense: facts of the dense model.
        compressed: facts of the compressed model.
        latency: by batch size, what was measured with both in one run, under the names
            "dense" (the baseline) and "compressed".
    """

    dense: Facts
    compressed: Facts
    latency: Mapping[int, Latency]

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines of the table, each with its label."""
        return (
            self._accuracy(),
            self._bytes(),
            self._shape(
                "parameters", self.dense.parameters, self.compressed.parameters
            ),
            self._count("nonzero", self.dense.nonzero, self.compressed.nonzero),
            self._shape("multiplications", self.dense.macs, self.compressed.macs),
            *(self._time(size) for size in sorted(self.latency)),
        )

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels that the compressed model earned, each once."""
        found = {line.label for line in self.lines}
        return tuple(label for label in Label if label in found)

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain dicts, lists, numbers and strings.

        Returns:
            `dense` and `compressed`, each with `accuracy`, `bytes`, `parameters`,
            `nonzero`, `macs`, `latency_ms` (median, by batch size) and `labels`; and
            `lines`, the table with a label for each line.
        """

        def side(facts: Facts, name: str, labels: list[str]) -> dict[str, Any]:
            times = {size: self.latency[size].time(name) for size in self.latency}
            return {
                **dataclasses.asdict(facts),
                "latency_ms": {
                    str(size): times[size].median * 1e3 for size in sorted(times)
                },
                "latency_ms_quartiles": {
                    str(size): [times[size].low * 1e3, times[size].high * 1e3]
                    for size in sorted(times)
                },
                "labels": labels,
            }

        return {
            "dense": side(self.dense, "dense", []),
            "compressed": side(
                self.compressed, "compressed", [label.value for label in self.labels]
            ),
            "lines": [
                {
                    "name": line.name,
                    "dense": line.dense,
                    "compressed": line.compressed,
                    "change": line.change,
                    "label": None if line.label is None else line.label.value,
                }
                for line in self.lines
            ],
        }

    def __str__(self) -> str:
        head = ("", "dense", "compressed", "change", "evidence")
        rows = [
            (
                line.name,
                line.dense_text,
                line.compressed_text,
                line.change,
                line.evidence,
            )
            for line in self.lines
        ]
        return aligned([head, *rows], right=(1, 2))

    def _accuracy(self) -> Line:
        dense, compressed = self.dense.accuracy, self.compressed.accuracy
        return Line(
            name="accuracy",
            dense=dense,
            compressed=compressed,
            dense_text=f"{dense:.2%}",
            compressed_text=f"{compressed:.2%}",
            change=f"{100 * (compressed - dense):+.2f} points",
            label=label_by_bytes(self.dense.bytes, self.compressed.bytes),
            note="of the model as stored",
        )

    def _bytes(self) -> Line:
        dense, compressed = self.dense.bytes, self.compressed.bytes
        return Line(
            name="bytes stored",
            dense=dense,
            compressed=compressed,
            dense_text=f"{dense:,}",
            compressed_text=f"{compressed:,}",
            change=_times(dense, compressed),
            label=label_by_bytes(dense, compressed),
        )

    def _shape(self, name: str, dense: int, compressed: int) -> Line:
        """A count that follows from shapes alone, whatever the numbers are."""
        return Line(
            name=name,
            dense=dense,
            compressed=compressed,
            dense_text=f"{dense:,}",
            compressed_text=f"{compressed:,}",
            change="same" if dense == compressed else _times(dense, compressed),
            label=Label.SMALLER if compressed < dense else None,
            note="" if dense == compressed else "counted from shapes",
        )

    def _count(self, name: str, dense: int, compressed: int) -> Line:
        return Line(
            name=name,
            dense=dense,
            compressed=compressed,
            dense_text=f"{dense:,}",
            compressed_text=f"{compressed:,}",
            change="same" if dense == compressed else _times(dense, compressed),
            label=label_by_zeros(dense, compressed),
            note="" if dense == compressed else "zeros are stored as well",
        )

    def _time(self, size: int) -> Line:
        measured = self.latency[size]
        dense, compressed = measured.time("dense"), measured.time("compressed")
        ratio = measured.ratio("compressed")
        return Line(
            name=f"ms at batch {size}",
            dense=dense.median * 1e3,
            compressed=compressed.median * 1e3,
            dense_text=_milliseconds(dense),
            compressed_text=_milliseconds(compressed),
            change=f"{ratio.median:.2f}x time ({ratio.low:.2f} to {ratio.high:.2f})",
            label=label_by_time(measured, "compressed"),
            note="measured here",
        )


def aligned(rows: list[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> str:
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


def _times(dense: float, compressed: float) -> str:
    if compressed <= dense:
        return f"{dense / max(compressed, 1):.2f}x fewer"
    return f"{compressed / max(dense, 1):.2f}x more"


def _milliseconds(time: Spread) -> str:
    return f"{time.median * 1e3:.3f} ±{(time.high - time.low) * 1e3 / 2:.3f}"
