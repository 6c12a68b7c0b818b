"""`fit_budget`: a model within a budget in one call."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jcompress.budget.amounts import Budget, told
from jcompress.budget.front import Front, Point
from jcompress.budget.mixes import Tried
from jcompress.budget.mixing import Mix
from jcompress.budget.search import Search
from jcompress.models import as_function
from jcompress.sensitivity import Candidate, Sensitivity, relative_error
from jcompress.sensitivity.trying import Tell


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What `fit_budget` chose; `print` shows it beside what other budgets buy.

    Attributes:
        step: for `jcompress.models.compress`, with the same data.
        cost: what it costs: bytes and multiplications by the shapes of what is stored
            (weights that are zero anyway may take less), seconds as measured.
        error: of the outputs, as measured.
        predicted: the errors of its leaves and widths, added up.
        within: whether the cost is within the budget; it is, but for seconds that no
            mix reached.
        table: the errors of single leaves and widths.
        front: what other budgets buy.
    """

    step: Mix
    cost: float
    error: float
    predicted: float
    within: bool
    table: Sensitivity
    front: Front

    def __str__(self) -> str:
        made = self.step.to_json()
        rows = [f"{name}: {units} units" for name, units in made["widths"].items()]
        rows += [f"{path}: {form}" for path, form in made["forms"].items()]
        took = told(self.front.cost, self.cost)
        rows.append(f"{took}, error {self.error:.3g}, predicted {self.predicted:.3g}")
        if not self.within:
            rows.append("no mix was within the budget; this one is the nearest")
        return "\n".join([*rows, "", str(self.front)])


def fit_budget(
    model: Any,
    inputs: Any,
    budget: Budget,
    *,
    data: Sequence[Any] = (),
    candidates: Sequence[Candidate] | None = None,
    divergence: Callable[[Any, Any], jax.Array] = relative_error,
    points: int = 5,
    resume: str | os.PathLike[str] | None = None,
    tell: Tell | None = None,
) -> Fitted:
    """Spend a budget on widths, ranks, sparsity and bits at once.

    Measures what each leaf loses in each form and each group of coupled axes at each
    width, all by one compiled program; takes these errors to add up, and shares out the
    budget, widths first, then a rank, a sparsity or bits for each leaf. What comes out
    is measured as a whole and compared with each form for all leaves: none of these
    that the budget allows errs less. Nothing is trained; `distil` or `train` as the
    next step of `compress` trains what was chosen, which cut units are often worth.

    Args:
        model: as of `jcompress.models.compress`.
        inputs: an example of what it is called with; a tuple for several arguments.
        budget: how much it may take.
        data: batches like `inputs`; the example if there are none. Methods learn from
            every other one and errors are measured on the rest, or on halves of a
            single one. Keep the data of your own metric apart.
        candidates: the forms, and `Keep(fraction)` for widths; see
            `default_candidates`.
        divergence: how outputs are compared.
        points: how many other budgets are tried for the front.
        resume: a file of the errors, to go on after an interruption.
        tell: told after each error.

    Raises:
        TypeError: the model is of no known kind.
        ValueError: the outputs of the model are not finite.
        BudgetError: the budget is below the least possible, which is told before
            anything is measured.
        MismatchError: the file is of another model, or there is no weight.

    References:
        Dong et al. 2020, "HAWQ-V2"; Yang et al. 2018, "NetAdapt": budgets shared out by
        measured sensitivities.

    Example:
        >>> import jax, jcompress as jc
        >>> from jcompress.budget import Budget, fit_budget
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights
        >>> model = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> a, b, x = (jax.random.normal(jax.random.key(n), (64, 64)) for n in range(3))
        >>> pair = model, {"a": a, "b": b}
        >>> few = [Quantize(weights=Weights(format=Int(bits))) for bits in (3, 8)]
        >>> fit = fit_budget(pair, x, Budget(bytes=7000), candidates=few)
        >>> small = jc.compress(pair, x, fit.step, measure=False)
        >>> fit.cost <= 7000, fit.cost == sum(
        ...     leaf.stored_bytes for leaf in small.params.values())
        (True, True)
    """
    dense = as_function(model)
    search = Search(
        dense.fn,
        dense.params,
        _arguments(inputs),
        kind=budget.kind,
        data=[_arguments(each) for each in data],
        candidates=candidates,
        divergence=divergence,
    )
    search.check(budget)
    table = search.sensitivity(resume=resume, tell=tell)
    for other in search.budgets(points):
        if search.predicted(other) is not None:
            search.choose(other)
    if budget.kind == "seconds":
        chosen, cost = search.choose_timed(budget.amount)
    else:
        chosen = search.choose(budget.amount)
        cost = chosen.cost
    return Fitted(
        step=search.step(chosen),
        cost=cost,
        error=chosen.error,
        predicted=chosen.predicted,
        within=cost <= budget.amount,
        table=table,
        front=front_of(search, chosen),
    )


def front_of(
    search: Search,
    chosen: Tried | None,
    *,
    metric: str = "error",
    higher_is_better: bool = False,
    values: Mapping[Tried, float] | None = None,
    predicted: Sequence[float] = (),
) -> Front:
    """All that a search tried, by cost.

    Args:
        search: the search.
        chosen: the result.
        metric: what was measured; the error of outputs unless it says otherwise.
        higher_is_better: of the metric.
        values: the metric of those that it was measured of; errors if None.
        predicted: further budgets, of which only a prediction is given.
    """
    points = []
    for one in search.mixes.tried:
        value = one.error if values is None else values.get(one)
        points.append(
            Point(
                label=one.label,
                cost=one.cost,
                metric=_finite(value),
                predicted=_finite(one.predicted),
                chosen=one is chosen,
            )
        )
    for budget in predicted:
        error = search.predicted(budget)
        if error is not None:
            told_of = Point(
                label="mix", cost=budget, metric=None, predicted=_finite(error)
            )
            points.append(told_of)
    return Front(
        cost=search.kind,
        metric=metric,
        higher_is_better=higher_is_better,
        points=tuple(sorted(points, key=lambda point: point.cost)),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
