"""The search for sizes, its log and its resumption."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.pruning.scores import score_by_magnitude
from jcompress.shrinking.choosing import Cost, Width, static_cost
from jcompress.shrinking.free import ShrinkableAxes
from jcompress.shrinking.groups import find_groups
from jcompress.shrinking.search import LOG, Evolution, Found, Greedy, search_widths

pytestmark = pytest.mark.once


def model(p: Any, x: jax.Array) -> jax.Array:
    y: jax.Array = jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
    return y


PARAMS = {
    "a": jax.random.normal(jax.random.key(0), (4, 12)),
    "b": jax.random.normal(jax.random.key(1), (12, 8)),
    "c": jax.random.normal(jax.random.key(2), (8, 3)),
}
X = jax.random.normal(jax.random.key(3), (5, 4))


class Calls:
    """Counts evaluations, and stops the search after some of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.count, self._stop = 0, stop

    def __call__(self, fn: Any, params: Any) -> float:
        if self.count == self._stop:
            raise KeyboardInterrupt
        self.count += 1
        # The first layer matters more, so that the best sizes are not all alike.
        return float(10 * params["a"].shape[1] + params["b"].shape[1])


def run(
    folder: pathlib.Path,
    calls: Calls,
    search: Any,
    fn: Any = model,
    params: Any = PARAMS,
    **others: Any,
) -> Found:
    return search_widths(
        fn,
        params,
        X,
        folder=folder,
        search=search,
        evaluate=calls,
        recover=lambda plan, params, step: jax.tree.map(
            lambda leaf: leaf * (1.5 + step), params
        ),
        **{
            "score": lambda fn, params: score_by_magnitude(params),
            "budget": 0.5,
            "cost": Cost.PARAMETERS,
            **others,
        },
    )


SEARCHES = [Greedy(step=0.8), Evolution(population=6, generations=3, parents=2)]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: type(s).__name__)
def test_it_meets_the_budget_and_keeps_the_best(tmp_path: Any, search: Any) -> None:
    calls = Calls()
    found = run(tmp_path, calls, search)
    count = static_cost(find_groups(model, PARAMS, X), Cost.PARAMETERS)
    assert count(found.plan) <= 0.5 * count(None)
    assert len(found.log) == calls.count
    best = max(one.metric for one in found.log if one.cost <= 0.5)
    sizes = found.plan.widths
    assert 10 * sizes.get("a:1", 12) + sizes.get("b:1", 8) == best
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [json.loads(line)["metric"] for line in lines[1:]] == [
        one.metric for one in found.log
    ]


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: type(s).__name__)
def test_it_resumes(tmp_path: Any, search: Any, stop: int) -> None:
    whole = Calls()
    want = run(tmp_path / "whole", whole, search)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Calls(stop), search)
    with (tmp_path / "cut" / LOG).open("a") as file:
        file.write('{"step": 0, "siz')
    rest = Calls()
    got = run(tmp_path / "cut", rest, search)
    assert rest.count == whole.count - stop
    assert got.log == want.log
    jax.tree.map(np.testing.assert_array_equal, got.variables, want.variables)
    jax.tree.map(np.testing.assert_array_equal, got.plan, want.plan)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_tree_that_diverged_is_never_the_best(tmp_path: Any, search: Any) -> None:
    class Diverging(Calls):
        def __call__(self, fn: Any, params: Any) -> float:
            value = super().__call__(fn, params)
            return value if self.count % 2 else float("nan")

    found = run(tmp_path / "a", Diverging(), search)
    reached = [one for one in found.log if not np.isnan(one.metric)]
    assert 0 < len(reached) < len(found.log)
    last = [one for one in reached if one.step == reached[-1].step]
    kept = {name: len(units) for name, units in found.plan.kept.items()}
    best = max(last if isinstance(search, Greedy) else reached, key=lambda a: a.metric)
    assert kept.items() <= dict(best.sizes).items()

    class Lost(Calls):
        def __call__(self, fn: Any, params: Any) -> float:
            return float("nan")

    with pytest.raises(
        MismatchError, match=r"gave no number \(NaN\) for any candidate"
    ):
        run(tmp_path / "b", Lost(), search)


def test_wrong_input(tmp_path: Any) -> None:
    with pytest.raises(MismatchError, match=r"0\.01 of parameters cannot be met"):
        run(tmp_path, Calls(), Greedy(), budget=0.01)
    run(tmp_path, Calls(), Greedy(step=0.5))
    with pytest.raises(MismatchError, match="is of another search"):
        run(tmp_path, Calls(), Greedy(step=0.6))
    with pytest.raises(MismatchError, match="no group alone can bring the cost to"):
        run(
            tmp_path / "b",
            Calls(),
            Greedy(step=0.1),
            rules=[(..., Width(minimum=6))],
            budget=0.47,
        )
    lost = jax.tree.map(lambda leaf: leaf * np.float32("nan"), PARAMS)
    with pytest.raises(
        MismatchError, match=r"search_widths: the scores of 12 units .*NaN"
    ):
        run(tmp_path / "d", Calls(), Greedy(), score=lambda fn, params: lost)
    with pytest.raises(ValueError, match=r"step is in \(0, 1\)"):
        Greedy(step=1.0)
    with pytest.raises(ValueError, match="breeds nothing"):
        Evolution(parents=9)
    with pytest.raises(ValueError, match=r"budget is in \(0, 1\)"):
        run(tmp_path / "c", Calls(), Greedy(), budget=jnp.inf)


def test_a_resumed_search_keeps_what_shrank_of_the_results(tmp_path: Any) -> None:
    """A search of several steps, each of which cuts the results of the one before."""
    given = {
        "search": Greedy(step=0.8),
        "fn": ShrinkableAxes(model, outputs={(): [1]}),
        "params": PARAMS | {"c": jax.random.normal(jax.random.key(2), (8, 10))},
    }
    whole = Calls()
    want = run(tmp_path / "whole", whole, **given)
    assert not want.plan.outputs[""][1].all()
    # Stopped where the plan of the steps before is all that is left of them.
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Calls(whole.count - 1), **given)
    got = run(tmp_path / "cut", Calls(), **given)
    jax.tree.map(np.testing.assert_array_equal, got.plan, want.plan)
    jax.tree.map(np.testing.assert_array_equal, got.variables, want.variables)
