"""Share out a budget among leaves: ranks, bits, sparsity or whatever has a price.

Each leaf has a list of options, each option a cost (bytes, multiplications, seconds)
and an error (lost energy, rise of the loss). `allocate` takes one option for each leaf
so that the errors add up to as little as a budget for the costs allows. Where scores
decide instead, `Ranking` says which of them are compared.
"""

import bisect
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jcompress.errors import MismatchError

__all__ = ["Allocation", "Options", "Ranking", "allocate"]

Numbers = Sequence[float] | np.ndarray[Any, Any]
_MOST_STATES = 1_000_000


class Ranking(enum.Enum):
    """What competes for staying, where scores decide what is removed.

    `jcompress.pruning` ranks the groups of a pattern in the leaves of a rule, and
    `jcompress.shrinking` the units in the groups that a rule takes.
    """

    UNIFORM = "uniform"
    """Each leaf, or group of units, by itself: all keep the same fraction."""
    GLOBAL = "global"
    """All together: what matters less loses more. Pruning compares the mean score of
    the entries, shrinking the score over the mean of its group."""
    ISOMORPHIC = "isomorphic"
    """Those with the same structure (the same operations on the same axes) together:
    each set of such leaves or groups keeps the same fraction.

    Fang et al. 2024, "Isomorphic Pruning for Vision Models"."""

    def __repr__(self) -> str:
        return f"Ranking.{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What may be chosen for one leaf; option n costs `costs[n]` and errs `errors[n]`.

    Attributes:
        costs: [options], in any unit, the same for all leaves; in any order.
        errors: [options], in a unit whose sum over the leaves is to be small.

    Raises:
        ValueError: there is no option, the lengths differ, or a number is not finite.
    """

    costs: Numbers
    errors: Numbers

    def __post_init__(self) -> None:
        costs, errors = np.asarray(self.costs), np.asarray(self.errors)
        if costs.ndim != 1 or costs.shape != errors.shape or not costs.size:
            raise ValueError(
                "costs and errors are lists of one length, a number for each option, "
                f"not of the shapes {list(costs.shape)} and {list(errors.shape)}"
            )
        if not (np.isfinite(costs).all() and np.isfinite(errors).all()):
            raise ValueError("costs and errors are finite numbers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """What `allocate` chose.

    Attributes:
        chosen: the number of the option taken, by leaf.
        cost: the sum of their costs; at most the budget.
        error: the sum of their errors.
        least_error: no choice within the budget has a smaller sum of errors than this.
    """

    chosen: Mapping[str, int]
    cost: float
    error: float
    least_error: float


def allocate(
    options: Mapping[str, Options], budget: float, *, exact: bool = False
) -> Allocation:
    """Choose one option for each leaf: the least total error within a budget.

    From the cheapest options on, always the step that saves most error for its cost is
    taken, along the lower convex hull of each leaf's options (the Lagrangian
    relaxation); what is left of the budget then buys any option that still fits. If
    each leaf's errors fall convexly and all steps cost the same, the result is the
    best there is; else its error exceeds the best by no more than one step's gain, and
    `Allocation.least_error` bounds it from below. Runs in NumPy on the host.

    Args:
        options: what may be chosen, by leaf.
        budget: the costs may add up to this.
        exact: search all combinations but those which provably cannot be best. For
            some dozens of leaves with a few options each; the number of combinations
            that must be kept can grow exponentially.

    Raises:
        MismatchError: there are no leaves, or the cheapest options cost more than the
            budget.
        ValueError: `exact` and more than a million combinations would have to be kept.

    References:
        Everett 1963, "Generalized Lagrange Multiplier Method"; Shoham and Gersho 1988,
        "Efficient bit allocation for an arbitrary set of quantizers".

    Example:
        >>> from jcompress.allocation import Options, allocate
        >>> bits = {  # bytes and error at 2, 4 and 8 bits
        ...     "first": Options(costs=[100, 200, 400], errors=[9.0, 2.0, 0.1]),
        ...     "last": Options(costs=[100, 200, 400], errors=[1.0, 0.2, 0.0]),
        ... }
        >>> allocate(bits, 500).chosen
        {'first': 2, 'last': 0}
    """
    if not options:
        raise MismatchError("allocate: there are no leaves to share a budget among")
    tables = {name: _Table.of(each) for name, each in options.items()}
    least = sum(float(table.costs[table.hull[0]]) for table in tables.values())
    if least > budget:
        raise MismatchError(
            f"allocate: the cheapest options of {len(tables)} leaves cost {least:g} "
            f"together, more than the budget of {budget:g}"
        )
    chosen, price = _along_hulls(tables, budget)
    _spend_the_rest(tables, chosen, budget)
    bound = _relaxed(tables, budget, price)
    if exact:
        chosen = _search(tables, chosen, budget, price)
    error = sum(float(tables[name].errors[n]) for name, n in chosen.items())
    return Allocation(
        chosen=chosen,
        cost=sum(float(tables[name].costs[n]) for name, n in chosen.items()),
        error=error,
        least_error=error if exact else min(bound, error),
    )


@dataclasses.dataclass(frozen=True)
class _Table:
    """Options as arrays, and the numbers of those on the lower convex hull."""

    costs: np.ndarray[Any, np.dtype[np.float64]]
    errors: np.ndarray[Any, np.dtype[np.float64]]
    hull: list[int]

    @classmethod
    def of(cls, options: Options) -> "_Table":
        costs = np.asarray(options.costs, np.float64)
        errors = np.asarray(options.errors, np.float64)
        hull: list[int] = []
        for n in np.lexsort((errors, costs)).tolist():
            if hull and errors[n] >= errors[hull[-1]]:
                continue  # dearer, and no better
            while len(hull) > 1 and _slope(costs, errors, hull[-2], hull[-1]) < _slope(
                costs, errors, hull[-2], n
            ):
                hull.pop()
            hull.append(n)
        return cls(costs, errors, hull)


def _slope(costs: Any, errors: Any, a: int, b: int) -> float:
    """The error that going from option `a` to the dearer `b` saves for each cost."""
    return float((errors[a] - errors[b]) / (costs[b] - costs[a]))


def _along_hulls(
    tables: Mapping[str, _Table], budget: float
) -> tuple[dict[str, int], float]:
    """The choice after the best steps, and what the first one not taken saves."""
    chosen = {name: table.hull[0] for name, table in tables.items()}
    left = budget - sum(float(tables[name].costs[n]) for name, n in chosen.items())
    steps = [
        (-_slope(table.costs, table.errors, a, b), order, place, name, b)
        for order, (name, table) in enumerate(tables.items())
        for place, (a, b) in enumerate(
            zip(table.hull[:-1], table.hull[1:], strict=True)
        )
    ]
    price, full = 0.0, set[str]()
    for slope, _, _, name, after in sorted(steps):
        if name in full:
            continue
        costs = tables[name].costs
        more = float(costs[after] - costs[chosen[name]])
        if more > left:
            price = price or -slope
            full.add(name)
            continue
        left -= more
        chosen[name] = after
    return chosen, price


def _spend_the_rest(
    tables: Mapping[str, _Table], chosen: dict[str, int], budget: float
) -> None:
    """Change single choices for the better while the budget allows one."""
    left = budget - sum(float(tables[name].costs[n]) for name, n in chosen.items())
    while True:
        best: tuple[float, str, int] | None = None
        for name, now in chosen.items():
            costs, errors = tables[name].costs, tables[name].errors
            fits = np.flatnonzero(costs - costs[now] <= left)
            option = int(fits[np.argmin(errors[fits])])
            gain = float(errors[now] - errors[option])
            if gain > 0 and (best is None or gain > best[0]):
                best = gain, name, option
        if best is None:
            return
        _, name, option = best
        left -= float(tables[name].costs[option] - tables[name].costs[chosen[name]])
        chosen[name] = option


def _relaxed(tables: Mapping[str, _Table], budget: float, price: float) -> float:
    """A bound of the total error from below, by Lagrange's relaxation."""
    return sum(_least(table, price) for table in tables.values()) - price * budget


def _least(table: _Table, price: float) -> float:
    return float(np.min(table.errors + price * table.costs))


def _search(
    tables: Mapping[str, _Table], found: dict[str, int], budget: float, price: float
) -> dict[str, int]:
    """The best choice, leaf by leaf over all partial choices that may become it."""
    limit = sum(float(tables[name].errors[n]) for name, n in found.items())
    rest = [(0.0, 0.0)]  # for the leaves still to come: least cost, relaxed error
    for table in reversed(list(tables.values())):
        cost, error = rest[-1]
        cheapest = float(table.costs[table.hull[0]])
        rest.append((cost + cheapest, error + _least(table, price)))
    rest.reverse()
    states: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for table, (cheapest, relaxed) in zip(tables.values(), rest[1:], strict=True):
        wider = sorted(
            (cost + float(table.costs[n]), error + float(table.errors[n]), (*path, n))
            for cost, error, path in states
            for n in range(len(table.costs))
        )
        states = []
        last = bisect.bisect_right(wider, budget - cheapest, key=lambda state: state[0])
        for state in wider[:last]:
            cost, error, _ = state
            bound = error + relaxed - price * (budget - cost)
            beaten = states and error >= states[-1][1]
            if not beaten and bound <= limit + 1e-9 * abs(limit):
                states.append(state)
        if len(states) > _MOST_STATES:
            raise ValueError(
                f"allocate: an exact search keeps more than {_MOST_STATES:,} "
                "combinations; use exact=False"
            )
    if not states:
        return found  # the sums differ by rounding only
    best = min(states, key=lambda state: state[1])
    if best[1] >= limit:
        return found
    return dict(zip(tables, best[2], strict=True))
