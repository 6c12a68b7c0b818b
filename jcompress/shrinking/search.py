"""The search for sizes: shrink, recover briefly, evaluate, keep the best."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.rules import Rules
from jcompress.shrinking._trials import LOG as LOG
from jcompress.shrinking._trials import Candidate as Candidate
from jcompress.shrinking._trials import Log, Task, Trial
from jcompress.shrinking.choosing import (
    ALL,
    Cost,
    Width,
    resolve_widths,
    static_cost,
)
from jcompress.shrinking.groups import find_groups
from jcompress.shrinking.plan import Plan, Recover, shrink

_STATE = "state"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """From the whole model downwards, each time by the group that hurts least.

    Attributes:
        step: the fraction of the cost that one step leaves, in (0, 1).

    References:
        Yang et al. 2018, "NetAdapt".
    """

    step: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.step < 1:
            raise ValueError(f"Greedy: the step is in (0, 1), not {self.step!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evolution:
    """Sizes of all groups at once, mutated and crossed; all meet the budget.

    Attributes:
        population: candidates of a generation.
        generations: how many.
        parents: how many of the best the next generation is bred from.
        spread: standard deviation of a mutation, as a factor of a size (log scale).
    """

    population: int = 8
    generations: int = 4
    parents: int = 3
    spread: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.parents <= self.population or self.generations < 1:
            raise ValueError(f"Evolution: {self!r} breeds nothing")


_GREEDY = Greedy()


class Found(NamedTuple):
    """What a search leaves behind.

    Attributes:
        plan: the best plan that meets the budget.
        variables: its recovered tree.
        log: every candidate, in order.
    """

    plan: Plan
    variables: Any
    log: tuple[Candidate, ...]


def search_widths(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    folder: str | os.PathLike[str],
    budget: float,
    evaluate: Callable[[Callable[..., Any], Any], float],
    recover: Recover,
    score: Callable[[Callable[..., Any], Any], Any],
    search: Greedy | Evolution = _GREEDY,
    rules: Rules[Width] = ALL,
    cost: Cost = Cost.MULTIPLICATIONS,
    seed: int = 0,
) -> Found:
    """Search the sizes of groups under a budget.

    Every candidate is written to `folder/log.jsonl` as soon as it is known. A search
    that was interrupted goes on where it was when it is called again with the same
    arguments: known candidates are not evaluated again. Layers that a `scan` runs over
    are a group too; a rule with `Width(reduced=True)` adds the depth to the search.

    Args:
        fn: the function.
        variables: its tree.
        *args: further arguments to trace it with; shapes suffice.
        folder: where the log and the state are kept; made if absent.
        budget: the fraction of the cost that may be left, in (0, 1).
        evaluate: `evaluate(fn, variables)`: the metric on held-out data; more is
            better, and NaN worse than anything.
        recover: `recover(plan, variables, step)`: a short fine-tuning of the tree that
            the plan leaves, by `shrunk(f, plan)`, where f is `fn` or its training mode;
            the same for equal arguments, or a resumed search may end otherwise. The
            step is that of the log. `shrink_in_rounds` takes the same functions.
        score: `score(fn, variables)`: scores of elements, as `score_units` takes them.
        search: how candidates are made.
        rules: which groups may shrink, as of `choose`.
        cost: what the budget counts.
        seed: of the mutations.

    Returns:
        The best plan, its tree and the log.

    Raises:
        MismatchError: as `choose`; or the folder's log is of another search,
            or no candidate has a metric.
    """
    if not 0 < budget < 1:
        raise ValueError(f"search_widths: the budget is in (0, 1), not {budget!r}")
    home = pathlib.Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    groups = find_groups(fn, variables, *args)
    widths = resolve_widths(groups, rules)
    task = Task(
        fn=fn,
        args=args,
        groups=groups,
        widths=widths,
        count=static_cost(groups, cost),
        evaluate=evaluate,
        recover=recover,
        score=score,
        log=Log(home / LOG),
    )
    least = task.cost(
        {name: width.rounded(0, groups[name].size) for name, width in widths.items()}
    )
    if least > budget:
        raise MismatchError(
            f"search_widths: the budget {budget} of {cost.value} cannot be met: with "
            f"the "
            f"smallest sizes that the rules allow {least:.3f} is left"
        )
    task.log.open({"budget": budget, "search": repr(search), "seed": seed})
    if isinstance(search, Greedy):
        plan, tree = _greedy(task, variables, budget, search, home / _STATE)
    else:
        plan, tree = _evolve(task, variables, budget, search, seed)
    return Found(plan, tree, tuple(task.log))


def _greedy(
    task: Task, variables: Any, budget: float, search: Greedy, state: pathlib.Path
) -> tuple[Plan, Any]:
    step, plan = 0, None
    if checkpoint.exists(state):
        saved = checkpoint.load(state)
        step, plan = int(saved["step"]), Plan.from_tree(saved["plan"])
        variables = checkpoint.load(
            state,
            like={
                "step": 0,
                "plan": saved["plan"],
                "variables": shrink(variables, plan),
            },
        )["variables"]
    sizes = task.whole
    if plan is not None:
        sizes |= {
            name: len(units) for name, units in plan.kept.items() if name in sizes
        }
    while task.cost(sizes) > budget:
        wanted = max(budget, task.cost(sizes) * search.step)
        start = task.start(plan, variables)
        trials = [
            task.tried(step, trial, start) for trial in _steps_down(task, sizes, wanted)
        ]
        if not trials:
            raise MismatchError(
                f"search_widths: no group alone can bring the cost to {wanted:.3f}; "
                f"take a "
                "larger step or fewer multiples"
            )
        best = max(trials, key=lambda trial: trial.rank)
        _check_best(best, f"of step {step} ")
        sizes = best.sizes
        plan, variables = task.made(best, start)
        step += 1
        checkpoint.save(
            state,
            {"step": step, "plan": plan, "variables": variables},
        )
    assert plan is not None
    return plan, variables


def _steps_down(
    task: Task, sizes: dict[str, int], wanted: float
) -> Iterator[dict[str, int]]:
    """For each group the largest size of it that alone meets a cost."""
    for name, width in task.widths.items():
        lengths = sorted(
            {width.rounded(n, task.whole[name]) for n in range(sizes[name])},
            reverse=True,
        )
        for length in lengths:
            trial = {**sizes, name: length}
            if length < sizes[name] and task.cost(trial) <= wanted:
                yield trial
                break


def _evolve(
    task: Task, variables: Any, budget: float, search: Evolution, seed: int
) -> tuple[Plan, Any]:
    start = task.start(None, variables)
    random = np.random.default_rng(seed)
    names = list(task.widths)
    ranked: list[tuple[float, tuple[float, ...]]] = []
    best: Trial | None = None
    for generation in range(search.generations):
        for number in range(search.population):
            genes = _bred(ranked, len(names), search, random)
            if generation == 0 and number == 0:
                genes = np.zeros(len(names))
            sizes = _within(task, names, genes, budget)
            trial = task.tried(generation, sizes, start)
            ranked.append((trial.rank, tuple(genes)))
            if best is None or trial.rank > best.rank:
                best = trial
        ranked = sorted(ranked, key=lambda one: -one[0])[: search.parents]
    assert best is not None
    _check_best(best, "")
    return task.made(best, start)


def _check_best(best: Trial, which: str) -> None:
    if math.isnan(best.metric):
        raise MismatchError(
            f"search_widths: `evaluate` gave no number (NaN) for any candidate "
            f"{which}in the "
            "log; a recovery that diverges needs a smaller learning rate"
        )


def _bred(
    parents: list[tuple[float, tuple[float, ...]]],
    count: int,
    search: Evolution,
    random: np.random.Generator,
) -> Any:
    if not parents:
        return random.normal(0, search.spread, count)
    one, other = random.integers(0, min(len(parents), search.parents), 2)
    mixed = np.where(random.random(count) < 0.5, parents[one][1], parents[other][1])
    return mixed + random.normal(0, search.spread, count)


def _within(task: Task, names: list[str], genes: Any, budget: float) -> dict[str, int]:
    """The largest sizes in the proportion of the genes that meet the budget."""

    def sizes(scale: float) -> dict[str, int]:
        return {
            name: task.widths[name].rounded(
                task.whole[name] * min(1.0, scale * math.exp(gene)), task.whole[name]
            )
            for name, gene in zip(names, genes, strict=True)
        }

    low, high = 0.0, float(np.exp(-np.min(genes)))
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if task.cost(sizes(middle)) <= budget else (low, middle)
        )
    return sizes(low)
