"""The search for steps that meet a budget, or a limit on the metric's drop."""

import dataclasses
import json
import math
import pathlib
from typing import Any, NamedTuple

from jcompress.budget import Budget, BudgetError, Front, Mix, Search, Tried
from jcompress.budget.amounts import told
from jcompress.budget.fitting import front_of
from jcompress.models import Function, as_function
from jcompress.recipes.folder import Path, write_whole
from jcompress.recipes.progress import Progress
from jcompress.recipes.user_code import Source, UserCode, UserCodeError, named_errors
from jcompress.recipes.user_data import Data, check_data, read_data
from jcompress.sensitivity import Keep, ResumeError, Sensitivity
from jcompress.sensitivity.candidates import name_of

_POINTS = 5
"""Other budgets on the front."""
_HALVINGS = 7
"""How often a limit on the metric's drop halves what is between two budgets."""
_CLOSE = 1.02
"""Budgets whose ratio is less are not worth another try."""
_OTHERS = 3
"""Mixes of one budget whose metric is measured, until one is good enough."""


class UserModel(NamedTuple):
    """A model and its data, out of files of the user's.

    Attributes:
        model: what the user's function returned.
        function: the same as a function and a tree.
        data: its data.
    """

    model: Any
    function: Function
    data: Data


def load_model(model: Source, data: Source, code: UserCode) -> UserModel:
    """Call the user's two functions and check that they fit each other.

    Raises:
        UserCodeError: a file cannot be used, or the model does not take the data.
    """
    build, batches = code.load(model), code.load(data)
    with named_errors(model.path, str(model)):
        built = build()
    try:
        function = as_function(built)
    except (TypeError, ValueError) as error:
        raise UserCodeError(f"{model} returns something else: {error}") from error
    given = read_data(batches, data)
    check_data(given, function)
    return UserModel(built, function, given)


def measure_files(
    model: Source,
    data: Source,
    *,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """What each leaf and width of a model loses in each form: which layer hurts.

    Args:
        model: a function without arguments that returns a model.
        data: a function without arguments that returns data: errors are those of the
            outputs on every other batch of `calibration`, or on half of the example.
        resume: a file that errors are written to as they come.
        progress: shows how far it is.

    Raises:
        UserCodeError: a file cannot be used, or the model does not take the data.
        ResumeError: the file is of another model, or of other data.
        MismatchError: the model has no weight.
        OSError: the file cannot be written.
    """
    with UserCode() as code:
        found = load_model(model, data, code)
        return _Searching(found, "bytes", progress or Progress()).measured(resume)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search came to.

    Attributes:
        step: what it found.
        within: whether the budget and the limit are met, as far as the search saw.
        report: for `report.json`: `found`, a sentence; `budget`, its kind and amount,
            or None; `kind` and `cost` of what was found and `dense`, that of the model
            as it is; `within`; `metric`, what it looked at, and `table`.
        sensitivity: the errors of single leaves and widths.
        front: what other budgets buy.
    """

    step: Mix
    within: bool
    report: dict[str, Any]
    sensitivity: Sensitivity
    front: Front


def search_steps(
    found: UserModel,
    *,
    budget: Budget | None,
    max_drop: float | None,
    resume: Path | None = None,
    choice: Path | None = None,
    progress: Progress,
) -> Searched:
    """Find the mix that errs least within a budget, or the smallest within a limit.

    With a budget alone, errors of outputs on the calibration data decide, and the
    metric is not looked at. With a limit alone budgets of bytes are halved until the
    smallest is found whose metric stays within. With both the first of the best mixes
    within the budget is taken that stays within the limit; if none does, the best.

    Args:
        found: the model and its data.
        budget: how much it may take; None for the smallest in bytes.
        max_drop: how much worse the metric may become. The search looks at
            `validation`, if there is one, in place of the metric.
        resume: as of `measure_files`.
        choice: a file that what is chosen is written to; if it is there already, of
            the same budget, that is what is found.
        progress: shows how far it is.

    Raises:
        BudgetError: the budget is below the least possible, which is told before
            anything is measured.
        ResumeError: the file is of another model, or of other data.
    """
    assert budget is not None or max_drop is not None
    kind = "bytes" if budget is None else budget.kind
    one = _Searching(found, kind, progress)
    if budget is not None:
        one.search.check(budget)
    table = one.measured(resume)
    if budget is None:
        assert max_drop is not None
        chosen, cost, within = one.smallest(max_drop)
    else:
        kept = None if choice is None else one.read(pathlib.Path(choice), budget)
        chosen, cost, within = kept or one.best(budget, max_drop)
        if choice is not None and kept is None:
            one.write(pathlib.Path(choice), budget, chosen, cost)
    front = one.front(chosen, by_metric=max_drop is not None)
    return Searched(
        step=one.search.step(chosen),
        within=within,
        report={
            "found": _said(kind, cost, one.search.prices.dense),
            "budget": None
            if budget is None
            else {"kind": budget.kind, "amount": budget.amount},
            "kind": kind,
            "cost": cost,
            "dense": one.search.prices.dense,
            "within": within,
            "metric": front.metric,
            "table": str(front),
        },
        sensitivity=table,
        front=front,
    )


def _said(kind: str, cost: float, dense: float) -> str:
    if kind == "seconds":
        return f"found: {1e3 * cost:.3g} ms a call; as it is {1e3 * dense:.3g} ms"
    what = "multiplications of data with stored weights, for one example"
    name = what if kind == "multiplications" else kind
    return f"found: {cost:,.0f} {name}; as it is {dense:,.0f}"


class _Searching:
    """One search, and the metrics that it measured."""

    def __init__(self, found: UserModel, kind: str, progress: Progress) -> None:
        self.data = found.data
        self.progress = progress
        if kind == "seconds":
            progress.say("timing each leaf in each form")
        self.search = Search(
            found.function.fn,
            found.function.params,
            self.data.example,
            kind=kind,
            data=self.data.calibration,
        )
        self.values: dict[Tried, float] = {}
        self.began = False

    @property
    def name(self) -> str:
        """What the search looks at."""
        return "validation" if self.data.validation else self.data.name

    def measured(self, resume: Path | None) -> Sensitivity:
        """The errors of single leaves and widths."""

        def tell(done: int, total: int, note: str) -> None:
            if not self.began:
                self.began = True
                self.progress.begin("errors", total=total, done=done - 1)
            self.progress.step(note)

        return self.search.sensitivity(resume=resume, tell=tell)

    def best(self, budget: Budget, max_drop: float | None) -> tuple[Tried, float, bool]:
        """The mix for a budget, its cost, and whether all is within."""
        search = self.search
        for other in search.budgets(_POINTS):
            if search.predicted(other) is not None:
                search.choose(other)
        if budget.kind == "seconds":
            chosen, cost = search.choose_timed(budget.amount)
            within = cost <= budget.amount
            if max_drop is not None:
                within = within and self.drop(chosen) <= max_drop
            return chosen, cost, within
        chosen = search.choose(budget.amount)
        if max_drop is None:
            return chosen, chosen.cost, True
        for other_mix in search.mixes.within(budget.amount)[:_OTHERS]:
            if self.drop(other_mix) <= max_drop:
                return other_mix, other_mix.cost, True
        chosen = min(
            (one for one in self.values if one.cost <= budget.amount * (1 + 1e-9)),
            key=self.drop,
        )
        return chosen, chosen.cost, False

    def write(
        self, path: pathlib.Path, budget: Budget, chosen: Tried, cost: float
    ) -> None:
        """Keep a choice, which times of another run might not lead to."""
        entry = {
            "budget": [budget.kind, budget.amount],
            "forms": self._forms,
            "keeps": {
                name: keep.fraction for name, keep in chosen.layout.keeps.items()
            },
            "numbers": dict(chosen.numbers),
            "label": chosen.label,
            "predicted": chosen.predicted,
            "cost": cost,
        }
        write_whole(path, json.dumps(entry).encode())

    def read(
        self, path: pathlib.Path, budget: Budget
    ) -> tuple[Tried, float, bool] | None:
        """The choice of an earlier run; None if there is none for this budget."""
        wanted = [budget.kind, budget.amount], self._forms
        try:
            found = json.loads(path.read_text())
            if (found["budget"], found["forms"]) != wanted:
                return None
            keeps = {name: Keep(part) for name, part in found["keeps"].items()}
            given = found["numbers"], float(found["predicted"])
            label, cost = found["label"], float(found["cost"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResumeError(f"{path} is damaged; remove it") from error
        layout = self.search.prices.layout(keeps)
        tried = self.search.mixes.measure(label, layout, *given)
        return tried, cost, cost <= budget.amount

    @property
    def _forms(self) -> list[str]:
        return [name_of(each) for each in self.search.prices.candidates]

    def smallest(self, max_drop: float) -> tuple[Tried, float, bool]:
        """The mix of the fewest bytes whose metric stays within a limit."""
        search = self.search
        low, high = search.prices.least, search.prices.dense
        self.progress.begin("budgets", total=_HALVINGS + 1)
        # The smallest of all first: often nothing else needs to be tried.
        amount = low
        for _ in range(_HALVINGS + 1):
            told_of = told(search.kind, amount)
            try:
                one = search.choose(amount)
                drop = self.drop(one)
                note = f"{told_of}: {self.name} {self.values[one]:.5g}"
            except BudgetError:
                one, drop, note = None, math.inf, f"{told_of}: no mix"
            self.progress.step(note)
            if one is not None and drop <= max_drop:
                high = min(amount, one.cost)
            else:
                low = amount
            if high <= low * _CLOSE:
                break
            amount = math.sqrt(low * high)
        dense = search.mixes.tried[0]
        known = [one for one in self.values if one is not dense]
        good = [one for one in known if self.drop(one) <= max_drop]
        if good:
            chosen = min(good, key=lambda one: one.cost)
            return chosen, chosen.cost, True
        chosen = min(known, key=self.drop) if known else dense
        return chosen, chosen.cost, False

    def drop(self, tried: Tried) -> float:
        """How much worse than dense the metric is; infinite if it is no number."""
        dense = self.search.mixes.tried[0]
        before, after = self._value(dense), self._value(tried)
        worse = before - after if self.data.higher_is_better else after - before
        # 1 - 0.98, in float32, is no more than 0.02.
        rounding = 1e-6 * max(abs(before), abs(after))
        return math.inf if math.isnan(worse) else worse - rounding

    def _value(self, tried: Tried) -> float:
        if tried not in self.values:
            fn, params = self.search.mixes.realised(tried)
            self.values[tried] = self.data.measure(
                tried.label, fn, params, searching=True
            )
        return self.values[tried]

    def front(self, chosen: Tried, *, by_metric: bool) -> Front:
        """All that was tried; with a limit by the metric, else by errors."""
        if not by_metric:
            return front_of(self.search, chosen)
        return front_of(
            self.search,
            chosen,
            metric=self.name,
            higher_is_better=self.data.higher_is_better,
            values=self.values,
            predicted=self.search.budgets(_POINTS),
        )
