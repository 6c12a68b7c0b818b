"""The search for the mix of widths, ranks, sparsity and bits that loses least."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jcompress.budget.amounts import Budget, BudgetError, told
from jcompress.budget.held_out import parted
from jcompress.budget.layouts import Layout, finite, shares
from jcompress.budget.menus import default_candidates
from jcompress.budget.mixes import Mixes, Tried
from jcompress.budget.mixing import Mix
from jcompress.budget.pricing import Prices
from jcompress.errors import MismatchError
from jcompress.models import Work
from jcompress.sensitivity import (
    Candidate,
    Keep,
    OutputError,
    Sensitivity,
    measure_sensitivity,
    relative_error,
)
from jcompress.sensitivity.candidates import (
    check_candidates,
    for_leaf,
    name_of,
)
from jcompress.sensitivity.trying import Tell

_TIMED = 4
"""How often a call is timed as a whole for one budget."""
_TRIED, _NEAR = 2, 1.5
"""How many choices of widths are measured for one budget, and by how much more the
others may be predicted to err than the best."""


class Search:
    """Spends budgets on one model; what is measured once serves them all.

    Args:
        fn: the function of a tree.
        params: the tree, with dense leaves.
        args: an example of what follows the tree.
        kind: what budgets count: "bytes", "multiplications" or "seconds".
        data: batches of such arguments; the example if there are none. Methods learn
            from one half of them, and errors are measured on the other. Not those that
            the result is judged by.
        candidates: the forms, and `Keep` for widths; None stands for
            `default_candidates(kind)`. What suits no leaf is left out.
        divergence: how outputs are compared, as of `OutputError`.

    Attributes:
        kind: as given.
        prices: what the model and its leaves cost in each form: `dense`, as it is, and
            `least`, the least that any mix costs.
        mixes: those that were made and measured: `tried`, in their order.

    Raises:
        ValueError: a candidate cannot be searched with, or the kind is unknown.
        MismatchError: no weight is left to choose for.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any,
        args: tuple[Any, ...],
        *,
        kind: str = "bytes",
        data: Sequence[tuple[Any, ...]] = (),
        candidates: Sequence[Candidate] | None = None,
        divergence: Callable[[Any, Any], jax.Array] = relative_error,
    ) -> None:
        given = default_candidates(kind) if candidates is None else candidates
        check_candidates(given)
        self.kind = kind
        learnt, held_out = parted(list(data) or [args])
        self.work = Work(fn=fn, params=params, args=args, data=learnt)
        self.measure = OutputError(fn, held_out, divergence)
        self.prices = Prices(self.work, given, kind)
        self.mixes = Mixes(self.prices, self.measure)
        self._table: Sensitivity | None = None

    def check(self, budget: Budget) -> None:
        """Refuse a budget that cannot be met, before anything is measured.

        Raises:
            ValueError: it counts something else than this search.
            BudgetError: it is below the least possible, which is told.
        """
        if budget.kind != self.kind:
            raise ValueError(
                f"Search: this one counts {self.kind}, the budget {budget.kind}"
            )
        if budget.amount < self.prices.least:
            least = (
                self.prices.least
                if self.kind == "seconds"
                else math.ceil(self.prices.least)
            )
            raise BudgetError(
                f"the budget of {budget} cannot be met: the least possible is "
                f"{told(self.kind, least)}, and the model takes "
                f"{told(self.kind, self.prices.dense)} as it is"
            )

    def sensitivity(
        self,
        *,
        resume: str | os.PathLike[str] | None = None,
        tell: Tell | None = None,
    ) -> Sensitivity:
        """What each leaf loses in each form and each width; measured once.

        Args:
            resume: as of `measure_sensitivity`.
            tell: as of `measure_sensitivity`.

        Raises:
            MismatchError: the file is of something else.
            ValueError: the outputs of the model as it is are no finite numbers.
        """
        if self._table is None:
            self._table = measure_sensitivity(
                self.work.params,
                self.prices.candidates,
                self.measure,
                sites=self.work.sites,
                moments=self.mixes.moments(self.prices.layout({})),
                groups=self.prices.widths.groups if self.prices.keeps else None,
                partial=True,
                resume=resume,
                tell=tell,
            )
            if not self._table.stored:
                raise MismatchError("Search: the model has no weight to choose for")
            self._measure_uniform()
        return self._table

    def choose(self, budget: float) -> Tried:
        """The mix that errs least within a budget, among those that were measured.

        What is predicted to be best is measured, and so was every form and width for
        all: none of those that the budget allows errs less.

        Raises:
            BudgetError: nothing that was tried costs so little.
        """
        self.sensitivity()
        best = sorted(self._predictions(budget), key=lambda one: one[0])
        for predicted, layout, numbers in best[:_TRIED]:
            if predicted <= _NEAR * best[0][0]:
                label = "narrow mix" if layout.keeps else "mix"
                self.mixes.measure(label, layout, numbers, predicted)
        fits = self.mixes.within(budget)
        if not fits:
            smallest = min(one.cost for one in self.mixes.tried)
            raise BudgetError(
                f"no mix that was tried takes {told(self.kind, budget)} or less; the "
                f"smallest takes {told(self.kind, smallest)}"
            )
        return fits[0]

    def choose_timed(self, budget: float) -> tuple[Tried, float]:
        """As `choose`, of calls that were timed as a whole.

        Sums of the times of products only guess the time of a call, so that less is
        allowed for them while the call takes longer than the budget.

        Returns:
            The mix and the seconds of a call; of the fastest if none is fast enough.
        """
        allowed, best = budget, None
        for _ in range(_TIMED):
            try:
                one = self.choose(allowed)
            except BudgetError:
                break
            seconds = self.prices.seconds(*self.mixes.realised(one))
            if best is None or seconds < best[1]:
                best = one, seconds
            if seconds <= budget:
                break
            allowed *= 0.95 * budget / seconds
        if best is None:
            raise BudgetError(
                f"no mix takes {told(self.kind, budget)} or less by the times of its "
                "products"
            )
        return best

    def predicted(self, budget: float) -> float | None:
        """The least error that the errors of single leaves promise for a budget."""
        self.sensitivity()
        found = [error for error, _, _ in self._predictions(budget)]
        return min(found) if found else None

    def step(self, tried: Tried) -> Mix:
        """The step for `jcompress.models.compress` that makes what was tried."""
        sites = tried.layout.work.sites
        forms = {
            path: for_leaf(path, self.prices.candidates[n], sites)
            for path, n in tried.numbers.items()
            if self.prices.candidates[n] is not None
        }
        return Mix(forms=forms, plan=tried.layout.plan)

    def budgets(self, count: int) -> list[float]:
        """Budgets between the least possible and the model as it is, evenly spaced.

        Evenly on a logarithmic scale; neither end is among them.
        """
        low, high = max(self.prices.least, 1e-12), max(self.prices.dense, 1e-12)
        steps = [n / (count + 1) for n in range(1, count + 1)]
        return [low ** (1 - step) * high**step for step in steps]

    def _predictions(self, budget: float) -> list[tuple[float, Layout, dict[str, int]]]:
        table = self._table
        assert table is not None
        found = []
        for keeps in self._choices:
            layout = self.prices.layout(keeps)
            numbers = layout.allocated(table.errors, budget)
            if numbers is not None:
                found.append((self._sum(layout, numbers), layout, numbers))
        return found

    @functools.cached_property
    def _choices(self) -> list[dict[str, Keep]]:
        assert self._table is not None
        return [
            {},
            *shares(
                self.prices.widths, self._table.errors, self.prices.keeps, self.kind
            ),
        ]

    def _sum(self, layout: Layout, numbers: Mapping[str, int]) -> float:
        """The errors of the leaves and the groups, added up."""
        table = self._table
        assert table is not None
        errors = [table.errors[path][n] for path, n in numbers.items()]
        places = {keep: n for n, keep in self.prices.keeps.items()}
        errors += [
            table.errors[name][places[keep]]
            for name, keep in layout.keeps.items()
            if table.errors[name][places[keep]] is not None
        ]
        return sum(e if e is not None and finite(e) else math.inf for e in errors)

    def _measure_uniform(self) -> None:
        """The model as it is, and every form and width for all that it suits."""
        self.mixes.measure("dense", self.prices.layout({}), {}, 0.0)
        if not math.isfinite(self.mixes.tried[0].error):
            raise ValueError(
                "Search: the outputs of the model as it is are no finite numbers"
            )
        for n, each in enumerate(self.prices.candidates):
            keeps = (
                dict.fromkeys(self.prices.widths.rules, each)
                if isinstance(each, Keep)
                else {}
            )
            layout = self.prices.layout(keeps)
            numbers = {
                path: n
                for path, row in layout.costs.items()
                if not keeps and math.isfinite(row[n])
            }
            if each is not None:
                predicted = self._sum(layout, numbers)
                label = f"{name_of(each)} for all"
                self.mixes.measure(label, layout, numbers, predicted)
