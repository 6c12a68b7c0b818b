"""One table of what a transform changed: forms, bytes, errors, zeros and reasons."""

import dataclasses
import textwrap
from collections.abc import Iterator

from jcompress.report.labels import Label, label_by_bytes
from jcompress.report.text import WIDTH, leaf_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One leaf before and after a transform.

    Attributes:
        name: the leaf's name.
        before: its form, such as "float32 64x10".
        after: its form afterwards, such as "int4" or "rank 8"; "removed" if there is
            none.
        bytes_before: bytes that it took.
        bytes_after: bytes that it takes.
        size: elements of the dense array that it stands for, afterwards if it is there.
        rule: the place of the rule that took it; None if none did, or none is known.
        reason: why it stayed as it is; empty if it changed.
        error: `|W - W'| / |W|` of the dense arrays; None if that has no meaning, as
            for another shape.
        zeros_before: the fraction of elements that were exactly 0; None for what holds
            no numbers.
        zeros_after: the fraction that is.
    """

    name: str
    before: str
    after: str
    bytes_before: int
    bytes_after: int
    size: int = 0
    rule: int | None = None
    reason: str = ""
    error: float | None = None
    zeros_before: float | None = None
    zeros_after: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """What a transform did to a tree: a table to print, rows to iterate over.

    Attributes:
        rows: one a leaf, in tree order; leaves with a `reason` did not change.
        notes: what else is to be known, a sentence each.
    """

    rows: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def __getitem__(self, name: str) -> Change:
        """The row of a leaf, by its name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def changed(self) -> tuple[Change, ...]:
        """The rows of the leaves that changed."""
        return tuple(row for row in self.rows if not row.reason)

    @property
    def skipped(self) -> tuple[Change, ...]:
        """The rows of the leaves that stayed as they are, with the reasons."""
        return tuple(row for row in self.rows if row.reason)

    @property
    def bytes_before(self) -> int:
        """Bytes of all rows before."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all rows afterwards."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def sparsity(self) -> float:
        """The fraction of the elements of the changed leaves that is 0 afterwards."""
        rows = [row for row in self.changed if row.zeros_after is not None]
        size = sum(row.size for row in rows)
        return sum(row.size * (row.zeros_after or 0.0) for row in rows) / max(size, 1)

    @property
    def label(self) -> Label | None:
        """The evidence: smaller, or simulated at the same bytes; None if larger."""
        if self.bytes_after > self.bytes_before:
            return None
        return label_by_bytes(self.bytes_before, self.bytes_after)

    def __str__(self) -> str:
        lines = [*_aligned(self._columns()), self._total()]
        if not self.changed:
            lines = ["nothing changed"]
        for row in self.skipped:
            lines += _wrapped(f"skipped {row.name}: {row.reason}")
        for note in self.notes:
            lines += _wrapped(f"note: {note}")
        return "\n".join(lines)

    def _total(self) -> str:
        label = "" if self.label is None else f" ({self.label.value})"
        total = f"{self.bytes_before:,} bytes became {self.bytes_after:,}{label}"
        return f"{total}; {self.sparsity:.1%} zeros" if self._has_zeros() else total

    def _has_zeros(self) -> bool:
        return any(row.zeros_after for row in self.changed)

    def _columns(self) -> dict[str, list[str]]:
        rows = self.changed
        columns = {
            "leaf": [row.name for row in rows],
            "before": [row.before for row in rows],
            "after": ["same" if r.after == r.before else r.after for r in rows],
            "bytes": [f"{row.bytes_before:,}" for row in rows],
            "new bytes": [f"{row.bytes_after:,}" for row in rows],
            "error": ["-" if row.error is None else f"{row.error:.2g}" for row in rows],
        }
        if columns["bytes"] == columns["new bytes"]:
            del columns["new bytes"]
        if self._has_zeros():
            columns["zeros"] = [_zeros(row) for row in rows]
        if any(row.rule is not None for row in rows):
            columns["rule"] = ["-" if r.rule is None else str(r.rule) for r in rows]
        return columns


def _zeros(row: Change) -> str:
    """From before to after, such as "2-50%"."""
    parts = (row.zeros_before, row.zeros_after)
    return (
        "-".join("?" if part is None else f"{100 * part:.3g}" for part in parts) + "%"
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _aligned(columns: dict[str, list[str]]) -> list[str]:
    """Lines of at most 80 columns; long names, then the forms, give way."""
    names = list(columns)
    rows = [tuple(names), *zip(*columns.values(), strict=True)]
    left = ("leaf", "before", "after", "rule")
    right = [place for place, name in enumerate(names) if name not in left]
    lines = leaf_table(rows, right=right, give=((1, 10), (2, 8))).splitlines()
    return [line for line in lines if set(line) != {"-"}]
