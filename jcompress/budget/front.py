"""What each cost buys: points that were measured, apart from those predicted only."""

import dataclasses
import math
from typing import Any

from jcompress.budget.amounts import told
from jcompress.report.text import aligned, fitted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One mix, or what a budget promises.

    Attributes:
        label: what it is, in a few words.
        cost: what it costs; of a prediction the budget.
        metric: how good it is, as measured; None if it was not measured.
        predicted: the errors of its leaves and widths, added up; None if one of them
            is no number.
        chosen: whether it is the result.
    """

    label: str
    cost: float
    metric: float | None
    predicted: float | None
    chosen: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Front:
    """Costs against errors; `print` shows the table, the cheapest first.

    Attributes:
        cost: what is counted: "bytes", "multiplications" or "seconds".
        metric: what was measured.
        higher_is_better: of the metric.
        points: by cost.
    """

    cost: str
    metric: str
    higher_is_better: bool
    points: tuple[Point, ...]

    @property
    def best(self) -> tuple[Point, ...]:
        """The measured points that no cheaper or equally cheap one matches."""
        found: list[Point] = []
        for point in sorted(
            self.points, key=lambda each: (each.cost, self._loss(each))
        ):
            if self._loss(point) < math.inf and (
                not found or self._loss(point) < self._loss(found[-1])
            ):
                found.append(point)
        return tuple(found)

    def _loss(self, point: Point) -> float:
        if point.metric is None:
            return math.inf
        return -point.metric if self.higher_is_better else point.metric

    def __str__(self) -> str:
        best = self.best
        rows = [("", self.cost, self.metric, "predicted error", "")]
        for point in self.points:
            note = "chosen" if point.chosen else "" if point in best else "beaten"
            if point.metric is None and not point.chosen:
                note = "not measured"
            rows.append(
                (
                    point.label,
                    told(self.cost, point.cost).partition(" ")[0]
                    + (" ms" if self.cost == "seconds" else ""),
                    "-" if point.metric is None else f"{point.metric:.4g}",
                    "-" if point.predicted is None else f"{point.predicted:.3g}",
                    note,
                )
            )
        return aligned(fitted(rows), right=(1, 2, 3))

    def to_json(self) -> dict[str, Any]:
        """The points for other programs: null where nothing was measured."""
        return {
            "cost": self.cost,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "points": [dataclasses.asdict(point) for point in self.points],
        }
