"""One choice of widths, and what each leaf then costs in each form."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jcompress.allocation import Options, allocate
from jcompress.budget.amounts import examples
from jcompress.budget.mixing import narrowed
from jcompress.leaves import named_leaves
from jcompress.models import Work
from jcompress.report.counts import leaf_bytes, stored_bytes
from jcompress.sensitivity import Candidate, Keep, measure_seconds
from jcompress.sensitivity.counting import multiplied, stored_by_candidate
from jcompress.sensitivity.widths import Widths
from jcompress.shrinking import Cost, Plan, static_cost

Errors = Mapping[str, Sequence[float | None]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A model with some widths, and the costs of its leaves.

    Attributes:
        keeps: the groups that are narrower, by how much.
        plan: the units that stay; None if all do.
        work: the model.
        fixed: the cost of all that has no choice of a form.
        costs: for each leaf that of each candidate; infinite if it does not suit.
    """

    keeps: Mapping[str, Keep]
    plan: Plan | None
    work: Work
    fixed: float
    costs: Mapping[str, Sequence[float]]

    @classmethod
    def of(
        cls,
        work: Work,
        keeps: Mapping[str, Keep],
        widths: Widths,
        candidates: Sequence[Candidate],
        kind: str,
        overhead: float = 0.0,
    ) -> "Layout":
        """Count one; `kind` is that of a `Budget`.

        Args:
            work: the whole model.
            keeps: the groups that are narrower.
            widths: its groups.
            candidates: the forms.
            kind: what is counted.
            overhead: seconds of a call that no leaf's products take.
        """
        plan = widths.plan(keeps)
        small = narrowed(work, plan)
        count = {
            "bytes": _bytes,
            "multiplications": _multiplications,
            "seconds": _seconds,
        }[kind]
        fixed, costs = count(small, candidates)
        return cls(
            keeps=dict(keeps),
            plan=plan,
            work=small,
            fixed=fixed + overhead,
            costs=costs,
        )

    @property
    def least(self) -> float:
        """The cost of the cheapest forms."""
        return self.fixed + sum(min(row) for row in self.costs.values())

    def cost(self, numbers: Mapping[str, int]) -> float:
        """The cost of a choice of forms; leaves without one stay as they are."""
        return self.fixed + sum(
            row[numbers[path]] if path in numbers else row[-1]
            for path, row in self.costs.items()
        )

    def allocated(self, errors: Errors, budget: float) -> dict[str, int] | None:
        """The forms with the least sum of errors within a budget, by leaf.

        None if even the cheapest cost more.
        """
        usable = {
            path: [
                n
                for n, cost in enumerate(row)
                if math.isfinite(cost) and finite(errors[path][n])
            ]
            for path, row in self.costs.items()
        }
        options = {
            path: Options(
                costs=[self.costs[path][n] for n in numbers],
                errors=[errors[path][n] or 0.0 for n in numbers],
            )
            for path, numbers in usable.items()
        }
        # A budget that was added up from the same costs is met despite of rounding.
        left = (budget - self.fixed) * (1 + 1e-12)
        if sum(float(np.min(each.costs)) for each in options.values()) > left:
            return None
        chosen = allocate(options, left).chosen if options else {}
        return {path: usable[path][n] for path, n in chosen.items()}


def finite(error: float | None) -> bool:
    """Whether it is a number at all."""
    return error is not None and math.isfinite(error)


Counted = tuple[float, dict[str, list[float]]]


def _bytes(work: Work, candidates: Sequence[Candidate]) -> Counted:
    stored = stored_by_candidate(
        work.params, candidates, sites=work.sites, partial=True
    )
    named = dict(named_leaves(work.params))
    own = sum(leaf_bytes(named[path]) for path in stored)
    costs = {
        path: [math.inf if size is None else float(size) for size in row]
        for path, row in stored.items()
    }
    return float(stored_bytes(work.params) - own), costs


def _multiplications(work: Work, candidates: Sequence[Candidate]) -> Counted:
    sites, count = work.sites, examples(work.args)
    stored = stored_by_candidate(work.params, candidates, sites=sites, partial=True)
    costs = {}
    for path, row in stored.items():
        whole = sum(site.total_macs for site in sites.of(path)) / count
        costs[path] = [
            math.inf if size is None else whole * multiplied(path, each, sites)
            for size, each in zip(row, candidates, strict=True)
        ]
    rest = sum(site.total_macs for site in sites if site.path not in costs)
    return rest / count, costs


def _seconds(work: Work, candidates: Sequence[Candidate]) -> Counted:
    found = measure_seconds(
        work.fn, work.params, candidates, *work.args, partial=True, rounds=7
    )
    return 0.0, {path: list(row) for path, row in found.items()}


def shares(
    widths: Widths, errors: Errors, keeps: Mapping[int, Keep], kind: str
) -> list[dict[str, Keep]]:
    """Choices of widths from few units removed to all that may be.

    Each removes a share of the most that can be removed, with the least sum of errors.

    Args:
        widths: the groups.
        errors: of each group, by the number of a candidate.
        keeps: the candidates that are widths, by number.
        kind: what is counted; for seconds the multiplications.
    """
    cost = Cost.BYTES if kind == "bytes" else Cost.MULTIPLICATIONS
    count = static_cost(widths.groups, cost)
    whole = count(None)
    options: dict[str, Options] = {}
    steps: dict[str, list[Keep | None]] = {}
    for name in widths.rules:
        steps[name], costs, lost = [None], [0.0], [0.0]
        for n, one in keeps.items():
            plan = widths.plan({name: one})
            error = errors[name][n]
            if plan is not None and error is not None and math.isfinite(error):
                steps[name].append(one)
                costs.append(count(plan) - whole)
                lost.append(error)
        options[name] = Options(costs=costs, errors=lost)
    least = sum(float(np.min(each.costs)) for each in options.values())
    made: list[dict[str, Keep]] = []
    for share in (0.25, 0.5, 0.75, 1.0):
        if not options or least >= 0:
            break
        chosen = allocate(options, share * least * (1 - 1e-9)).chosen
        each: dict[str, Keep] = {}
        for name, n in chosen.items():
            keep = steps[name][n]
            if keep is not None:
                each[name] = keep
        if each and each not in made:
            made.append(each)
    return made
