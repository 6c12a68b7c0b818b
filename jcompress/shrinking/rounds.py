"""Shrinking in rounds, with recovery between them."""

from collections.abc import Callable
from typing import Any

from jcompress.allocation import Ranking
from jcompress.rules import Rules
from jcompress.shrinking.choosing import ALL, Cost, Width, choose, static_cost
from jcompress.shrinking.groups import find_groups
from jcompress.shrinking.plan import Plan, Recover, shrink, shrunk
from jcompress.shrinking.scoring import score_units


def shrink_in_rounds(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    target: float,
    rounds: int,
    score: Callable[[Callable[..., Any], Any], Any],
    recover: Recover,
    rules: Rules[Width] = ALL,
    cost: Cost = Cost.PARAMETERS,
    ranking: Ranking = Ranking.UNIFORM,
) -> tuple[Plan, Any]:
    """Shrink a little, recover, and again: the usual way to a small model.

    Args:
        fn: the function.
        variables: its tree.
        *args: further arguments to trace it with; shapes suffice.
        target: the fraction of the cost that may be left in the end, in (0, 1). Every
            round leaves the same fraction of what the one before left.
        rounds: how many.
        score: `score(fn, variables)` scores elements, as `score_units` wants them; it
            is called in each round with the shrunk function and its tree.
        recover: `recover(plan, variables, round)` fine-tunes the tree that the plan of
            all rounds so far has left, and returns it: it trains `shrunk(f, plan)`,
            where f is `fn` or its training mode, with distillation from the whole model
            where that helps. `search_widths` takes the same functions.
        rules: as of `choose`.
        cost: as of `choose`.
        ranking: as of `choose`.

    Returns:
        One plan for all rounds together, and the recovered tree.

    Raises:
        MismatchError, ValueError: as `choose`.
    """
    if rounds < 1:
        raise ValueError(f"shrink_in_rounds: at least one round, not {rounds!r}")
    whole = None
    plan: Plan | None = None
    now = fn
    for number in range(rounds):
        groups = find_groups(now, variables, *args)
        left = static_cost(groups, cost)(None)
        whole = left if whole is None else whole
        step = target ** ((number + 1) / rounds) * whole / left
        if step >= 1:
            continue
        scores = score_units(groups, score(now, variables))
        chosen = choose(groups, scores, rules, target=step, cost=cost, ranking=ranking)
        variables = shrink(variables, chosen)
        plan = chosen if plan is None else plan.then(chosen)
        now = shrunk(fn, plan)
        variables = recover(plan, variables, number)
    assert plan is not None
    return plan, variables
