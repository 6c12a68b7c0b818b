"""What the report of a compression of the user's own model says."""

import json
import math
from typing import Any

from jcompress.models import Compressed, Expectation
from jcompress.recipes.user_data import Data
from jcompress.report import Comparison, Metric

SCHEMA = 1
"""The version of the report; it changes when a key changes its name or meaning."""


def measured(
    small: Compressed, data: Data, before: float | None
) -> tuple[dict[str, Any] | None, Comparison]:
    """The metric of both variants, and both side by side.

    Args:
        small: the compressed model.
        data: the user's, with a metric or without.
        before: the metric of the model as it is; None without a metric.
    """
    if before is None:
        return None, small.report()
    after = data.measure("compressed", small.fn, small.params)
    metric = Metric(
        data.name,
        {"dense": before, "compressed": after},
        higher_is_better=data.higher_is_better,
    )
    entry = {
        "name": data.name,
        "higher_is_better": data.higher_is_better,
        "dense": before,
        "compressed": after,
        "drop": before - after if data.higher_is_better else after - before,
    }
    return entry, small.report(metrics=[metric])


def changed_leaves(
    small: Compressed, expected: Expectation | None
) -> list[dict[str, Any]]:
    """A row for each leaf that changed, with the seconds that were expected."""
    assert small.changes is not None
    times = {} if expected is None else {leaf.name: leaf for leaf in expected.leaves}
    rows = []
    for change in small.changes:
        row: dict[str, Any] = {
            "name": change.name,
            "before": change.before,
            "after": change.after,
            "bytes_before": change.bytes_before,
            "bytes_after": change.bytes_after,
            "error": finite(change.error),
        }
        if change.name in times:
            row["seconds_before"] = times[change.name].dense
            row["seconds_after"] = times[change.name].small
        rows.append(row)
    return rows


def drops_within(metric: dict[str, Any], most: float) -> bool:
    """Whether it fell by no more; 1 - 0.98, in float32, is no more than 0.02."""
    rounding = 1e-6 * max(abs(metric["dense"]), abs(metric["compressed"]))
    return bool(metric["drop"] <= most + rounding)


def finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return number if number is not None and math.isfinite(number) else None


def as_json(report: dict[str, Any]) -> bytes:
    """The report as it is written."""
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()
