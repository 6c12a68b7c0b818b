"""A table of errors and bytes: each leaf in each of several forms, each width."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jcompress.report.text import in_blocks
from jcompress.sensitivity.candidates import Candidate, Keep, name_of


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What each leaf loses in each form, and what it takes; `print` shows the table.

    Rows are leaves and, where widths were tried, groups of coupled axes.

    Attributes:
        candidates: the forms.
        errors: for each row, one number for each candidate: NaN if the outputs are no
            numbers any more, None if the candidate does not suit the row.
        stored: for each row, the bytes in each candidate, scales included; of a group
            those of all the leaves that it touches. None where there is no error.
        measure: how errors were told.
    """

    candidates: tuple[Candidate, ...]
    errors: Mapping[str, tuple[float | None, ...]]
    stored: Mapping[str, tuple[int | None, ...]]
    measure: str = ""

    def __str__(self) -> str:
        def shown(path: str, n: int) -> str:
            error = self.errors[path][n]
            return "-" if error is None else format(error, ".3g")

        sums = [self._bytes(n) for n in range(len(self.candidates))]
        last = ["-" if each is None else format(each, ",") for each in sums]
        return self._rows(shown, [("bytes", last)])

    def heat_map(self) -> str:
        """The table in five shades, one for every factor of ten in the error.

        The darkest is the largest error of all; a dot is less than a ten-thousandth of
        it.
        """
        numbers = [e for row in self.errors.values() for e in row if e is not None]
        most = max((e for e in numbers if math.isfinite(e)), default=0.0)

        def shade(path: str, n: int) -> str:
            error = self.errors[path][n]
            if error is None:
                return ""
            if not math.isfinite(error):
                return "NaN"
            if most <= 0 or error <= 0:
                return "."
            step = 4 + math.floor(math.log10(error / most) + 1e-9)
            return (".", "░", "▒", "▓", "█")[max(0, min(4, step))]

        return self._rows(shade, [])

    def to_json(self) -> dict[str, Any]:
        """The table for other programs: `candidates`, `leaves`, `bytes`, `measure`.

        `leaves` and `bytes` have for each row a number for each candidate, null where
        it does not suit the row or is no number.
        """
        return {
            "candidates": [name_of(each) for each in self.candidates],
            "leaves": {
                path: [e if e is not None and math.isfinite(e) else None for e in row]
                for path, row in self.errors.items()
            },
            "bytes": {path: list(row) for path, row in self.stored.items()},
            "measure": self.measure,
        }

    def _bytes(self, n: int) -> int | None:
        """Of all leaves in one form; those that it does not suit stay as they are."""
        if isinstance(self.candidates[n], Keep):
            return None
        leaves = [
            row
            for row in self.stored.values()
            if not all(
                stored is None or isinstance(each, Keep)
                for stored, each in zip(row, self.candidates, strict=True)
            )
        ]
        dense = self.candidates.index(None) if None in self.candidates else None
        total = 0
        for row in leaves:
            stored = row[n]
            if stored is None and dense is not None:
                stored = row[dense]
            if stored is None:
                return None
            total += stored
        return total

    def _rows(
        self, cell: Callable[[str, int], str], last: list[tuple[str, list[str]]]
    ) -> str:
        names = [name_of(each) for each in self.candidates]
        cells = [
            (path, *(cell(path, n) for n in range(len(names)))) for path in self.errors
        ]
        rows = [("leaf", *names), *cells, *((name, *told) for name, told in last)]
        return in_blocks(rows, right=range(1, len(names) + 1))
