"""The search for the mix of widths, ranks, sparsity and bits that loses least."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.budget.amounts import Budget, BudgetError, examples, told
from jcompress.budget.layouts import Layout, finite, shares
from jcompress.budget.menus import default_candidates
from jcompress.budget.mixing import Mix, observed, stored_leaves
from jcompress.conversion import replace_leaves
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.leaves import named_leaves
from jcompress.models import Work
from jcompress.report import latency
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
from jcompress.sensitivity.table import Tell
from jcompress.sensitivity.widths import Widths, spread
from jcompress.shrinking import find_groups
from jcompress.tensors import is_compressed

_TIMED = 4
"""How often a call is timed as a whole for one budget."""
_TRIED, _NEAR = 2, 1.5
"""How many choices of widths are measured for one budget, and by how much more the
others may be predicted to err than the best."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """A mix that was measured.

    Attributes:
        label: what it is: "mix", "int8", "width 0.5", "dense".
        layout: its widths.
        numbers: the candidate of each leaf.
        cost: what it costs, by the shapes of what is stored; of sparse leaves the most
            that they may take. Seconds are those of the products.
        predicted: the errors of its leaves and groups, added up.
        error: as measured; infinite if it is no number.
    """

    label: str
    layout: Layout
    numbers: Mapping[str, int]
    cost: float
    predicted: float
    error: float


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
        groups = find_groups(fn, params, *args)
        self._widths = Widths.of(params, groups)
        # A leaf that no form suits stays as it is: always the last candidate.
        every = [*(each for each in given if each is not None), None]
        self._overhead = 0.0
        first = Layout.of(self.work, {}, self._widths, every, "bytes")
        self.candidates: tuple[Candidate, ...] = tuple(
            each for n, each in enumerate(every) if self._suits(each, n, first)
        )
        self._layouts: dict[str, Layout] = {}
        if kind == "seconds":
            self._time_the_rest()
        self.tried: list[Tried] = []
        self._made: dict[tuple[str, str, int], Any] = {}
        self._table: Sensitivity | None = None

    def _suits(self, each: Candidate, n: int, layout: Layout) -> bool:
        if each is None:
            return True
        if isinstance(each, Keep):
            every = dict.fromkeys(self._widths.rules, each)
            return self._widths.plan(every) is not None
        return any(math.isfinite(row[n]) for row in layout.costs.values())

    def _time_the_rest(self) -> None:
        """The seconds of a call that are not those of its products."""
        alone = sum(row[-1] for row in self.layout({}).costs.values())
        whole = self.seconds(self.work.fn, self.work.params)
        self._overhead = max(0.0, whole - alone)
        self._layouts.clear()

    def seconds(self, fn: Callable[..., Any], params: Any) -> float:
        """The median time of a call on the example, here."""
        args = self.work.args
        turned = jax.tree.map(
            lambda x: jnp.roll(x, 1, axis=0) if _is_batch(x) else x, args
        )
        found = latency(
            {"model": (fn, params), "again": (fn, params)}, [args, turned], rounds=11
        )
        return found.time("model").median

    @property
    def keeps(self) -> dict[int, Keep]:
        """The candidates that are widths, by number."""
        return {n: k for n, k in enumerate(self.candidates) if isinstance(k, Keep)}

    def layout(self, keeps: Mapping[str, Keep]) -> Layout:
        """The model with some widths; counted once."""
        key = repr(sorted(keeps.items(), key=lambda item: item[0]))
        if key not in self._layouts:
            self._layouts[key] = Layout.of(
                self.work,
                keeps,
                self._widths,
                self.candidates,
                self.kind,
                self._overhead,
            )
        return self._layouts[key]

    @functools.cached_property
    def least(self) -> float:
        """The least that any mix costs, from shapes (or times): nothing is run."""
        layouts = [self.layout({})]
        if self.keeps:
            smallest = min(self.keeps.values(), key=lambda keep: keep.fraction)
            layouts.append(self.layout(dict.fromkeys(self._widths.rules, smallest)))
        return min(each.least for each in layouts)

    @functools.cached_property
    def dense(self) -> float:
        """The cost of the model as it is."""
        return self.layout({}).cost({})

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
        if budget.amount < self.least:
            least = self.least if self.kind == "seconds" else math.ceil(self.least)
            raise BudgetError(
                f"the budget of {budget} cannot be met: the least possible is "
                f"{told(self.kind, least)}, and the model takes "
                f"{told(self.kind, self.dense)} as it is"
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
                self.candidates,
                self.measure,
                sites=self.work.sites,
                moments=self._moments(self.layout({})),
                groups=self._widths.groups if self.keeps else None,
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
                self._try(label, layout, numbers, predicted)
        fits = [one for one in self.tried if one.cost <= budget * (1 + 1e-9)]
        if not fits:
            raise BudgetError(
                f"no mix that was tried takes {told(self.kind, budget)} or less; the "
                f"smallest takes {told(self.kind, min(t.cost for t in self.tried))}"
            )
        return min(fits, key=lambda one: (one.error, one.cost))

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
            seconds = self.seconds(*self.realised(one))
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

    def realised(self, tried: Tried) -> tuple[Callable[..., Any], Any]:
        """The function and the tree of what was tried, as they are run."""
        work = tried.layout.work
        stored = self._stored(tried.layout, tried.numbers)
        fn = compressed(work.fn) if stored else work.fn
        return fn, replace_leaves(work.params, stored)

    def predicted(self, budget: float) -> float | None:
        """The least error that the errors of single leaves promise for a budget."""
        self.sensitivity()
        found = [error for error, _, _ in self._predictions(budget)]
        return min(found) if found else None

    def within(self, budget: float) -> list[Tried]:
        """All that was tried and costs no more, the least error first."""
        fits = [one for one in self.tried if one.cost <= budget * (1 + 1e-9)]
        return sorted(fits, key=lambda one: (one.error, one.cost))

    def step(self, tried: Tried) -> Mix:
        """The step for `jcompress.models.compress` that makes what was tried."""
        sites = tried.layout.work.sites
        forms = {
            path: for_leaf(path, self.candidates[n], sites)
            for path, n in tried.numbers.items()
            if self.candidates[n] is not None
        }
        return Mix(forms=forms, plan=tried.layout.plan)

    def budgets(self, count: int) -> list[float]:
        """Budgets between the least possible and the model as it is, evenly spaced.

        Evenly on a logarithmic scale; neither end is among them.
        """
        low, high = max(self.least, 1e-12), max(self.dense, 1e-12)
        steps = [n / (count + 1) for n in range(1, count + 1)]
        return [low ** (1 - step) * high**step for step in steps]

    def _predictions(self, budget: float) -> list[tuple[float, Layout, dict[str, int]]]:
        table = self._table
        assert table is not None
        found = []
        for keeps in self._choices:
            layout = self.layout(keeps)
            numbers = layout.allocated(table.errors, budget)
            if numbers is not None:
                found.append((self._sum(layout, numbers), layout, numbers))
        return found

    @functools.cached_property
    def _choices(self) -> list[dict[str, Keep]]:
        assert self._table is not None
        return [{}, *shares(self._widths, self._table.errors, self.keeps, self.kind)]

    def _sum(self, layout: Layout, numbers: Mapping[str, int]) -> float:
        """The errors of the leaves and the groups, added up."""
        table = self._table
        assert table is not None
        errors = [table.errors[path][n] for path, n in numbers.items()]
        places = {keep: n for n, keep in self.keeps.items()}
        errors += [
            table.errors[name][places[keep]]
            for name, keep in layout.keeps.items()
            if table.errors[name][places[keep]] is not None
        ]
        return sum(e if e is not None and finite(e) else math.inf for e in errors)

    def _measure_uniform(self) -> None:
        """The model as it is, and every form and width for all that it suits."""
        self._try("dense", self.layout({}), {}, 0.0)
        if not math.isfinite(self.tried[0].error):
            raise ValueError(
                "Search: the outputs of the model as it is are no finite numbers"
            )
        for n, each in enumerate(self.candidates):
            keeps = (
                dict.fromkeys(self._widths.rules, each)
                if isinstance(each, Keep)
                else {}
            )
            layout = self.layout(keeps)
            numbers = {
                path: n
                for path, row in layout.costs.items()
                if not keeps and math.isfinite(row[n])
            }
            if each is not None:
                predicted = self._sum(layout, numbers)
                self._try(f"{name_of(each)} for all", layout, numbers, predicted)

    def _try(
        self, label: str, layout: Layout, numbers: Mapping[str, int], predicted: float
    ) -> None:
        """Make it and measure it, unless that was done."""
        kept = {p: n for p, n in numbers.items() if self.candidates[n] is not None}
        for one in self.tried:
            if one.layout is layout and one.numbers == kept:
                return
        stored = self._stored(layout, kept)
        error = self.measure.together(self.work.params, self._dense(layout, stored))
        self.tried.append(
            Tried(
                label=label,
                layout=layout,
                numbers=kept,
                cost=layout.cost(kept),
                predicted=predicted,
                error=error if math.isfinite(error) else math.inf,
            )
        )

    def _stored(self, layout: Layout, numbers: Mapping[str, int]) -> dict[str, Any]:
        key = repr(layout.keeps)
        open_ones = {
            path: self.candidates[n]
            for path, n in numbers.items()
            if (key, path, n) not in self._made
        }
        made = stored_leaves(layout.work, open_ones, self._moments(layout))
        for path, leaf in made.items():
            self._made[key, path, numbers[path]] = leaf
        return {path: self._made[key, path, n] for path, n in numbers.items()}

    def _moments(self, layout: Layout) -> Mapping[str, jax.Array] | None:
        key = repr(layout.keeps)
        if key not in self._seen:
            every = [each for each in self.candidates if not isinstance(each, Keep)]
            forms = dict.fromkeys(layout.costs, every)
            self._seen[key] = observed(layout.work, forms)
        return self._seen[key]

    @functools.cached_property
    def _seen(self) -> dict[str, Mapping[str, jax.Array] | None]:
        return {}

    def _dense(self, layout: Layout, stored: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The changed leaves in the whole model's shapes: one program runs them all."""
        plan = layout.plan
        whole = dict(named_leaves(self.work.params))
        changed = {
            path: leaf.dense() if is_compressed(leaf) else leaf
            for path, leaf in stored.items()
        }
        if plan is None:
            return changed
        small = dict(named_leaves(layout.work.params))
        return {
            path: spread(changed.get(path, small[path]), plan, path, whole[path].shape)
            for path in {**changed, **plan.masks}
        }


def parted(
    batches: Sequence[tuple[Any, ...]],
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """What methods learn from, and what their errors are measured on.

    Every other batch, or the halves of a single one: on what it was fitted to a low
    rank errs far less than elsewhere.
    """
    if len(batches) > 1:
        return list(batches[::2]), list(batches[1::2])
    (only,) = batches
    rows = examples(only)
    half = rows // 2
    if not half:
        return [only], [only]

    def part(start: int) -> tuple[Any, ...]:
        made: tuple[Any, ...] = jax.tree.map(
            lambda x: (
                x[start : start + half] if _is_batch(x) and x.shape[0] == rows else x
            ),
            only,
        )
        return made

    return [part(0)], [part(half)]


def _is_batch(x: Any) -> bool:
    return bool(
        hasattr(x, "dtype")
        and x.ndim
        and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
