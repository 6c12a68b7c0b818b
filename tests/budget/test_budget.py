"""One budget over widths, ranks, sparsity and bits, of a network that learned."""

import doctest
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jcompress as jc
from jcompress.budget import (
    Budget,
    BudgetError,
    Fitted,
    Front,
    Mix,
    Point,
    Search,
    fit_budget,
    fitting,
    multiplications,
)
from jcompress.budget.pricing import Prices
from jcompress.budget.search import Search as Searching
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.low_rank import Svd
from jcompress.pruning import NM, Unstructured
from jcompress.pruning.one_shot import Magnitude, OneShot
from jcompress.quantization import Quantize, Weights
from jcompress.recipes import load_digits
from jcompress.report.counts import stored_bytes
from jcompress.sensitivity import Keep
from jcompress.tensors import LowRank, NMSparse, UnstructuredSparse

EIGHT = Weights(format=Int(8))
FORMS = [
    Quantize(weights=EIGHT),
    Quantize(weights=Weights(format=Int(3))),
    OneShot(pattern=NM(2, 4), weights=EIGHT),
    OneShot(method=Magnitude(), pattern=Unstructured(), sparsity=0.75),
    Svd(parameters=0.5),
    (Svd(parameters=0.25), EIGHT),
    Keep(0.5),
]


def model(p: Any, x: Any) -> Any:
    x = jax.nn.relu(x @ p["first"] + p["bias"][None])
    return jax.nn.relu(x @ p["second"]) @ p["last"]


@pytest.fixture(scope="module")
def params() -> Any:
    digits = load_digits().train
    x = jnp.asarray(digits.images.reshape(-1, 64))
    y = jnp.asarray(digits.labels)
    keys = jax.random.split(jax.random.key(0), 3)
    tree = {
        "first": jax.random.normal(keys[0], (64, 48)) / 8,
        "bias": jnp.zeros(48),
        "second": jax.random.normal(keys[1], (48, 32)) / 7,
        "last": jax.random.normal(keys[2], (32, 10)) / 6,
    }
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(tree: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            tree, state = carry

            def loss(tree: Any) -> Any:
                logits = model(tree, x)
                return optax.losses.softmax_cross_entropy_with_integer_labels(
                    logits, y
                ).mean()

            updates, state = optimizer.update(jax.grad(loss)(tree), state)
            return (optax.apply_updates(tree, updates), state), None

        carry, _ = jax.lax.scan(step, (tree, optimizer.init(tree)), length=120)
        return carry[0]

    with jax.numpy_dtype_promotion("standard"):
        return train(tree)


@pytest.fixture(scope="module")
def data() -> list[Any]:
    images = load_digits().validation.images.reshape(-1, 64)
    return [jnp.asarray(images[n * 128 : n * 128 + 128]) for n in range(2)]


@pytest.fixture(scope="module")
def search(params: Any, data: list[Any]) -> Search:
    return Search(
        model, params, (data[0],), data=[(x,) for x in data], candidates=FORMS
    )


def error_of(small: Any, params: Any, data: list[Any]) -> float:
    """Of the model as it runs, over the data, by hand."""
    found = []
    for x in data:
        wanted, got = model(params, x), small(x)
        found.append(float(jnp.sum((wanted - got) ** 2) / jnp.sum(wanted**2)))
    return sum(found) / len(found)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_bytes_stay_within_and_no_uniform_choice_errs_less(
    search: Search, params: Any, data: list[Any], share: float
) -> None:
    budget = round(search.prices.least * (1 - share) + search.prices.dense * share) + 1
    chosen = search.choose(budget)
    small = jc.compress(
        (model, params), data[0], search.step(chosen), data=data, measure=False
    )
    stored = stored_bytes(small.params)
    # A weight that is zero anyway is not stored either.
    assert 0.99 * chosen.cost <= stored <= chosen.cost <= budget
    # The search learned from the first batch and measured on the second.
    other = jc.compress(
        (model, params), data[0], search.step(chosen), data=data[:1], measure=False
    )
    assert chosen.error == pytest.approx(error_of(other, params, data[1:]), rel=1e-2)
    uniform = [
        one
        for one in search.mixes.tried
        if "for all" in one.label and one.cost <= budget
    ]
    assert all(chosen.error <= one.error for one in uniform)
    if share:
        assert chosen.error < 0.8 * min(one.error for one in uniform)


def test_every_kind_composes_and_is_stored_as_it_says(
    search: Search, params: Any, data: list[Any]
) -> None:
    mix = Mix(
        plan=search.prices.layout(
            dict.fromkeys(search.prices.widths.rules, Keep(0.5))
        ).plan,
        forms={
            "first": OneShot(pattern=NM(2, 4), weights=EIGHT),
            "second": (Svd(rank=4), EIGHT),
            "last": OneShot(pattern=Unstructured(), sparsity=0.75),
        },
    )
    small = jc.compress((model, params), data[0], mix, data=data, measure=False)
    kinds = {name: type(leaf) for name, leaf in small.params.items()}
    assert kinds["first"] is NMSparse
    assert kinds["second"] is LowRank
    assert kinds["last"] is UnstructuredSparse
    assert small.params["first"].shape == (64, 24)
    assert small(data[0]).shape == (128, 10)
    told = json.loads(json.dumps(mix.to_json()))
    assert told["forms"]["second"] == "rank 4 int8"
    assert sorted(told["widths"].values()) == [16, 24]


def test_all_choices_run_by_one_program(params: Any, data: list[Any]) -> None:
    traces = []

    def counted(p: Any, x: Any) -> Any:
        traces.append(0)
        return model(p, x)

    one = Searching(
        counted, params, (data[0],), candidates=[FORMS[0], FORMS[1], Keep(0.5)]
    )
    one.sensitivity()
    before = len(traces)
    one._measure_uniform()
    for budget in one.budgets(3):
        one.choose(budget)
    # Narrow models are traced for their shapes, not compiled.
    scores = one.measure._score
    assert scores._cache_size() == 1  # type: ignore[attr-defined]
    assert one.measure._run._cache_size() == 1  # type: ignore[attr-defined]
    assert len(traces) - before < 12


def test_multiplications_are_counted_in_what_is_stored(
    params: Any, data: list[Any]
) -> None:
    dense = 64 * 48 + 48 * 32 + 32 * 10
    assert multiplications(model, params, data[0]) == dense
    budget = Budget(multiplications=0.45 * dense)
    fit = fit_budget(
        (model, params), data[0], budget, data=data, points=1,
        candidates=[OneShot(pattern=NM(2, 4)), Svd(parameters=0.25), Keep(0.5)],
    )  # fmt: skip
    small = jc.compress((model, params), data[0], fit.step, data=data, measure=False)
    by_hand = 0.0
    for name in ("first", "second", "last"):
        leaf = small.params[name]
        if isinstance(leaf, LowRank):
            by_hand += sum(factor.size for factor in leaf.factors)
        elif isinstance(leaf, NMSparse):
            by_hand += leaf.values.size
        else:
            by_hand += leaf.size
    counted = multiplications(small.plain, small.params, data[0])
    assert counted == round(by_hand) == round(fit.cost) <= budget.amount
    assert fit.within


def test_a_budget_below_the_least_raises_before_anything_is_measured(
    params: Any, data: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(amount: float) -> Fitted:
        return fit_budget(
            (model, params), data[0], Budget(bytes=amount), candidates=FORMS, points=0
        )

    for work in ("search.measure_sensitivity", "mixes.observed"):
        monkeypatch.setattr(f"jcompress.budget.{work}", pytest.fail)
    with pytest.raises(BudgetError, match=r"least possible is ([\d,]+) bytes") as told:
        fit(100)
    least = int(told.value.args[0].partition("is ")[2].split()[0].replace(",", ""))
    assert f"takes {stored_bytes(params):,} bytes as it is" in str(told.value)
    with pytest.raises(BudgetError):
        fit(least - 1)
    monkeypatch.undo()
    assert fit(least).cost <= least


def test_the_front_tells_measured_from_predicted(params: Any, data: list[Any]) -> None:
    fit = fit_budget(
        (model, params), data[0], Budget(bytes=7000), data=data, points=2,
        candidates=[FORMS[0], FORMS[1], Keep(0.5)],
    )  # fmt: skip
    told = json.loads(json.dumps(fit.front.to_json(), allow_nan=False))
    assert (told["cost"], told["metric"]) == ("bytes", "error")
    assert told["higher_is_better"] is False
    points = told["points"]
    assert [point["cost"] for point in points] == sorted(p["cost"] for p in points)
    (chosen,) = (point for point in points if point["chosen"])
    assert chosen["cost"] == fit.cost <= 7000
    assert chosen["metric"] == fit.error
    dense = points[-1]
    assert (dense["label"], dense["metric"]) == ("dense", 0)
    best = fit.front.best
    assert all((a.metric or 0) > (b.metric or 0) for a, b in itertools.pairwise(best))
    assert "chosen" in str(fit)
    assert fit.table.measure == "outputs, relative_error"
    front = Front(
        cost="bytes", metric="accuracy", higher_is_better=True,
        points=(
            Point(label="a", cost=1, metric=0.5, predicted=0.1),
            Point(label="b", cost=2, metric=None, predicted=0.1),
            Point(label="c", cost=3, metric=0.4, predicted=None),
        ),
    )  # fmt: skip
    assert [point.label for point in front.best] == ["a"]
    lines = str(front).splitlines()
    assert "not measured" in lines[3]
    assert lines[4].endswith("beaten")


def test_seconds_are_those_of_the_whole_call(
    params: Any, data: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that knows the bytes of a model: no real time is compared."""
    monkeypatch.setattr(
        "jcompress.budget.layouts.measure_seconds",
        lambda fn, params, candidates, *args, **given: {
            path: [0.5 * params[path].size] + [1.0 * params[path].size] * 1
            for path in ("first", "second", "last")
        },
    )
    # A call takes longer than its products promise.
    monkeypatch.setattr(
        Prices,
        "seconds",
        lambda self, fn, params: float(stored_bytes(params)) / 4 + 100.0,
    )

    def fit(seconds: float) -> Fitted:
        return fit_budget(
            (model, params), data[0], Budget(seconds=seconds),
            candidates=[FORMS[0]], points=0,
        )  # fmt: skip

    dense = stored_bytes(params) / 4 + 100
    fitted = fit(0.7 * dense)
    assert fitted.within
    fn, tree = compressed(model), jc.compress(
        (model, params), data[0], fitted.step, measure=False
    ).params  # fmt: skip
    assert fn(tree, data[0]).shape == (128, 10)
    assert fitted.cost == stored_bytes(tree) / 4 + 100 <= 0.7 * dense
    with pytest.raises(BudgetError, match="the least possible is"):
        fit(0.3 * dense)


def test_a_model_of_no_numbers_and_wrong_budgets_raise(
    params: Any, data: list[Any]
) -> None:
    broken = {**params, "bias": jnp.full(48, math.nan)}
    one = Search(model, broken, (data[0],), candidates=[FORMS[0]])
    with pytest.raises(ValueError, match="as it is are no finite numbers"):
        one.sensitivity()
    with pytest.raises(ValueError, match="give one of bytes"):
        Budget()
    with pytest.raises(ValueError, match="give one of bytes"):
        Budget(bytes=1, seconds=1)
    with pytest.raises(ValueError, match="above 0, not -1"):
        Budget(bytes=-1)
    with pytest.raises(ValueError, match="counts bytes, the budget seconds"):
        one.check(Budget(seconds=1))
    with pytest.raises(ValueError, match="is not one of"):
        Search(model, params, (data[0],), kind="watts")


def test_a_form_that_leaves_no_numbers_is_never_taken(
    params: Any, data: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least bytes would be rank 1 of all, whose outputs are made NaN here."""

    def fragile(p: Any, x: Any) -> Any:
        rank = jnp.linalg.norm(p["last"]) < 0.99 * norm
        return model(p, x) + jnp.where(rank, jnp.float32(math.nan), jnp.float32(0))

    norm = float(np.linalg.norm(params["last"]))
    one = Search(fragile, params, (data[0],), candidates=[Svd(rank=1), FORMS[0]])
    table = one.sensitivity()
    assert math.isnan(table.errors["last"][0] or 0.0)
    chosen = one.choose(one.prices.dense)
    assert math.isfinite(chosen.error)
    for budget in one.budgets(2):
        numbers = one.choose(budget).numbers
        assert numbers.get("last") != 0


def test_the_example_runs() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(fitting)
    assert attempted
    assert not failed
