"""What a report holds, checked and in one form, whichever command wrote it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jcompress.evidence.front import Point
from jcompress.evidence.strips import Strip

T = TypeVar("T")

_HUGE = 10**300
"""Larger and, the other way, smaller numbers have no logarithm that can be drawn."""


class ReportError(ValueError):
    """A report that cannot be drawn; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the comparison, as it is printed."""

    name: str
    variant: str
    base: str
    value: str
    change: str
    evidence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One leaf before and after; None for what the report does not tell."""

    name: str
    before: str | None
    after: str
    bytes_before: float
    bytes_after: float
    error: float | None
    seconds_before: float | None
    seconds_after: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """The curve of one training.

    Attributes:
        values: one for each point; None where there is no number.
        steps: after how many steps each was taken; None if one was taken an epoch.
    """

    values: tuple[float | None, ...]
    steps: tuple[int, ...] | None = None

    @property
    def unit(self) -> str:
        """What points are numbered by."""
        return "epoch" if self.steps is None else "step"

    @property
    def places(self) -> tuple[int, ...]:
        """The number of each point."""
        if self.steps is not None:
            return self.steps
        return tuple(range(1, len(self.values) + 1))

    @property
    def length(self) -> str:
        """How long it was, in words."""
        last = self.places[-1]
        return f"{last:,} {self.unit}{'' if last == 1 else 's'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heat:
    """What each leaf loses by each candidate."""

    candidates: tuple[str, ...]
    leaves: Mapping[str, tuple[float | None, ...]]
    bytes: Mapping[str, tuple[float | None, ...]]
    measure: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Front:
    """Ways to compress, by what they take and how good they are."""

    cost: str
    metric: str
    higher_is_better: bool
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that is drawn.

    Attributes:
        title: what was compressed.
        baseline: the variant that others are compared with.
        lines: of the comparison.
        leaves: those that the report lists.
        losses: the curve of each training.
        latency: for each batch size a strip for each variant, in milliseconds.
        sensitivity: None if it was not measured.
        front: None if there was no search.
        rejected: why nothing was published; empty if it was.
        facts: names and what was found, for the end of the page.
        recipe: as text; empty if there is none.
        notes: sentences.
    """

    title: str
    baseline: str
    lines: tuple[Line, ...]
    leaves: tuple[Leaf, ...]
    losses: Mapping[str, Losses]
    latency: Mapping[str, tuple[Strip, ...]]
    sensitivity: Heat | None
    front: Front | None
    rejected: str
    facts: tuple[tuple[str, str], ...]
    recipe: str
    notes: tuple[str, ...]


class Found:
    """A value of a report and where it stands, for messages."""

    def __init__(self, value: Any, where: str = "") -> None:
        self.value = value
        self.where = where

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, Mapping) and self.value.get(key) is not None

    def wrong(self, wanted: str) -> ReportError:
        """What is wrong with it."""
        place = self.where or "the report"
        return ReportError(
            f"the report is damaged: {place} is {type(self.value).__name__}, not "
            f"{wanted}"
        )

    def at(self, key: str) -> "Found":
        """An entry of an object; it has to be there."""
        place = f"{self.where}.{key}" if self.where else key
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        if key not in self.value:
            raise ReportError(f"the report is damaged: it has no {place!r}")
        return Found(self.value[key], place)

    def get(self, key: str, read: "Callable[[Found], T]") -> T | None:
        """An entry, if it is there and not null."""
        return read(self.at(key)) if key in self else None

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def number(self) -> float:
        """A finite number."""
        found = self.maybe()
        if found is None:
            raise self.wrong("a finite number")
        return found

    def maybe(self) -> float | None:
        """A number; None for null and for what is not finite."""
        value = self.value
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong("a number")
        if isinstance(value, int):
            value = max(-_HUGE, min(value, _HUGE))
        if not math.isfinite(value):
            return None
        return float(value) if abs(value) >= 1 / _HUGE else 0.0

    def amount(self) -> float:
        """A finite number of at least 0."""
        found = self.number()
        if found < 0:
            raise ReportError(f"the report is damaged: {self.where} is {found:g}")
        return found

    def maybe_amount(self) -> float | None:
        """A number of at least 0; None for null and for what is not finite."""
        return None if self.maybe() is None else self.amount()

    def each(self) -> "list[Found]":
        """The entries of a list."""
        if not isinstance(self.value, Sequence) or isinstance(self.value, str):
            raise self.wrong("a list")
        return [Found(x, f"{self.where}[{n}]") for n, x in enumerate(self.value)]

    def items(self) -> "list[tuple[str, Found]]":
        """The entries of an object."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        return [(str(key), self.at(key)) for key in self.value]

    def numbers(self) -> tuple[float | None, ...]:
        """A list of numbers."""
        return tuple(each.maybe() for each in self.each())
