"""A teacher and its student in any field: methods chosen, trained and judged alike."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

ALONE, SOFT = "alone", "soft targets"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A student, and the ways in which it learns.

    Attributes:
        name: for the table.
        unit: of the scores, of which more is better.
        teacher: its score on test data.
        weights: by method where the search for the weight of its loss begins; those
            after `SOFT` are losses of features beside soft targets, of the weight that
            was found for these.
        train: `(method, weights, seed) -> params`; `weights` of soft targets and of
            the features.
        score: `(params, test) -> score`; on validation data if not `test`.
    """

    name: str
    unit: str
    teacher: float
    weights: Mapping[str, float]
    train: Callable[[str, tuple[float, float], int], Any]
    score: Callable[[Any, bool], float]


def rows_of(subject: Subject, seeds: int, quick: bool) -> Iterator[Row]:
    """The teacher, the student alone, and each method with the weight that is best."""
    yield {"part": subject.name, "method": "teacher", "test": [subject.teacher]}
    chosen = {ALONE: (0.0, 0.0)}
    soft = 0.0
    for method, start in subject.weights.items():
        tried = [start * factor for factor in ((1.0,) if quick else (1.0, 0.3, 3.0))]
        pairs = [(w, 0.0) if method == SOFT else (soft, w) for w in tried]
        found = [subject.score(subject.train(method, p, 1000), False) for p in pairs]
        chosen[method] = pairs[int(np.argmax(found))]
        soft = chosen[method][0]
        print(f"chosen: {subject.name}, {method}, {chosen[method]}", flush=True)
    scores: dict[str, list[float]] = {method: [] for method in chosen}
    for seed in range(seeds):
        for method, weights in chosen.items():
            params = subject.train(method, weights, seed)
            scores[method].append(subject.score(params, True))
    for method, found in scores.items():
        yield {
            "part": subject.name,
            "method": method,
            "weight": chosen[method][0 if method == SOFT else 1],
            "hotter": False,
            "test": found,
            "gains": np.subtract(found, scores[ALONE]).tolist(),
            "beside_soft": np.subtract(found, scores.get(SOFT, found)).tolist(),
            "claim": "",
        }
