"""The candidates of a search for sizes: made, evaluated and written down."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jcompress.errors import MismatchError
from jcompress.shrinking.choosing import Width, check_scores
from jcompress.shrinking.groups import Groups, find_groups
from jcompress.shrinking.plan import Plan, Recover, shrink, shrunk
from jcompress.shrinking.scoring import Scores, score_units

LOG = "log.jsonl"
"""The file with one line for each candidate."""


class Candidate(NamedTuple):
    """One line of the log.

    Attributes:
        step: the step or generation.
        sizes: units kept, by group.
        cost: the fraction of the whole model's that it needs.
        metric: what `evaluate` gave after the recovery.
    """

    step: int
    sizes: Mapping[str, int]
    cost: float
    metric: float


class Log:
    """The candidates of a folder; a line that an interruption cut is written again."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._all: list[Candidate] = []

    def open(self, head: Mapping[str, Any]) -> None:
        """Read what is there, and make sure that it is of this search."""
        lines = self._path.read_text().splitlines(True) if self._path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole and json.loads(whole[0]) != head:
            raise MismatchError(
                f"search_widths: {self._path} is of another search: "
                f"{whole[0].strip()}; give "
                "another folder"
            )
        self._all += [Candidate(**json.loads(line)) for line in whole[1:]]
        draft = self._path.with_name(f"{LOG}.tmp")
        draft.write_text("".join(whole) or json.dumps(head) + "\n")
        draft.replace(self._path)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._all)

    def metric(self, step: int, sizes: Mapping[str, int]) -> float | None:
        """What a candidate reached; None if it is not known."""
        for one in self._all:
            if one.step == step and dict(one.sizes) == dict(sizes):
                return one.metric
        return None

    def add(self, candidate: Candidate) -> None:
        """Write a candidate down, safe from an interruption."""
        self._all.append(candidate)
        with self._path.open("a") as file:
            file.write(json.dumps(candidate._asdict()) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Basis(NamedTuple):
    """What candidates begin with: a plan, its tree and the scores of its units."""

    plan: Plan | None
    variables: Any
    scores: Scores


class Trial(NamedTuple):
    """A candidate, with its plan and tree if they were made just now."""

    step: int
    metric: float
    sizes: dict[str, int]
    made: tuple[Plan, Any] | None

    @property
    def rank(self) -> float:
        """The metric; a tree that diverged, with none, is behind all others."""
        return -math.inf if math.isnan(self.metric) else self.metric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What all candidates of a search share."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    groups: Groups
    widths: Mapping[str, Width]
    count: Callable[[Plan | None], float]
    evaluate: Callable[..., float]
    recover: Recover
    score: Callable[..., Any]
    log: Log

    @property
    def whole(self) -> dict[str, int]:
        """The sizes before anything is removed."""
        return {name: self.groups[name].size for name in self.widths}

    def cost(self, sizes: Mapping[str, int]) -> float:
        """The fraction of the cost that sizes leave, whichever units they keep."""
        changed = {
            name: range(size) for name, size in sizes.items() if size < self.whole[name]
        }
        plan = self.groups.keep(changed) if changed else None
        return self.count(plan) / self.count(None)

    def shrunk(
        self, start: Basis, sizes: Mapping[str, int], step: int
    ) -> tuple[Plan, Any]:
        """Go to smaller sizes and recover."""
        plan, variables = start.plan, start.variables
        kept = {}
        for name, units in start.scores.items():
            if name in sizes and sizes[name] < len(units):
                order = np.argsort(-np.asarray(units), kind="stable")
                kept[name] = np.sort(order[: sizes[name]])
        cut = self._now(plan, variables).keep(kept)
        both = cut if plan is None else plan.then(cut)
        return both, self.recover(both, shrink(variables, cut), step)

    def start(self, plan: Plan | None, variables: Any) -> Basis:
        """Score the units that are left."""
        now = self.fn if plan is None else shrunk(self.fn, plan)
        groups = self._now(plan, variables)
        scores = score_units(groups, self.score(now, variables))
        for name in self.widths:
            if name in scores:
                check_scores(groups[name], scores[name], "search_widths")
        return Basis(plan, variables, scores)

    def _now(self, plan: Plan | None, variables: Any) -> Groups:
        if plan is None:
            return self.groups
        return find_groups(shrunk(self.fn, plan), variables, *self.args)

    def tried(self, step: int, sizes: dict[str, int], start: Basis) -> Trial:
        """Evaluate a candidate, unless the log knows it."""
        known = self.log.metric(step, sizes)
        if known is not None:
            return Trial(step, known, sizes, None)
        plan, tree = self.shrunk(start, sizes, step)
        metric = float(self.evaluate(shrunk(self.fn, plan), tree))
        self.log.add(Candidate(step, sizes, self.cost(sizes), metric))
        return Trial(step, metric, sizes, (plan, tree))

    def made(self, trial: Trial, start: Basis) -> tuple[Plan, Any]:
        """The plan and tree of a candidate; made again if only the log knew it."""
        return trial.made or self.shrunk(start, trial.sizes, trial.step)
