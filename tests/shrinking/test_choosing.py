"""Scores of units, costs of plans and the plan that meets a target."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.allocation import Ranking
from jcompress.errors import MismatchError
from jcompress.pruning.scores import score_by_magnitude, score_by_taylor
from jcompress.shrinking import (
    Cost,
    Plan,
    Width,
    choose,
    find_groups,
    random_scores,
    score_units,
    shrink,
    shrink_in_rounds,
    shrunk,
    static_cost,
)
from jcompress.shrinking.choosing import ALL, resolve_widths
from jcompress.sites import find_sites

pytestmark = pytest.mark.once


def model(p: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(x @ p["a"] + p["bias"][None])
    x = jax.nn.relu(x @ p["b"])
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    y: jax.Array = centred @ p["c"]
    return y


def tree(seed: int = 0) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"a": (6, 16), "b": (16, 12), "bias": (16,), "c": (12, 3)}
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


X = jnp.ones((2, 6))
PARAMS = tree()
GROUPS = find_groups(model, PARAMS, X)
SCORES = score_units(GROUPS, score_by_magnitude(PARAMS))


def test_scores_add_up_the_slices_of_every_leaf() -> None:
    a, b, bias = (np.abs(np.asarray(PARAMS[k], np.float64)) for k in ("a", "b", "bias"))
    np.testing.assert_allclose(SCORES["a:1"], a.sum(0) + b.sum(1) + bias, rtol=1e-6)


def test_taylor_scores_are_the_change_of_the_loss() -> None:
    def loss(p: Any) -> jax.Array:
        # Linear in the weights of the last layer, so that the first order is exact.
        return jnp.sum(model(p, X) * jnp.arange(6.0).reshape(2, 3))

    only = {"c": PARAMS["c"]}
    gradients = jax.grad(lambda c: loss({**PARAMS, **c}))(only)
    elements = jax.tree.map(jnp.zeros_like, PARAMS) | score_by_taylor(only, gradients)
    scores = score_units(GROUPS, elements)
    for unit in range(12):
        without = {**PARAMS, "c": PARAMS["c"].at[unit].set(0.0)}
        np.testing.assert_allclose(
            scores["b:1"][unit], abs(loss(PARAMS) - loss(without)), rtol=1e-3, atol=1e-4
        )


def test_the_lowest_scores_go_and_the_target_is_met() -> None:
    plan = choose(GROUPS, SCORES, target=0.5)
    (kept,) = plan.kept.values()
    assert set(kept) == set(np.argsort(-SCORES["a:1"])[: len(kept)])
    left = sum(leaf.size for leaf in jax.tree.leaves(shrink(PARAMS, plan)))
    whole = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert left <= 0.5 * whole
    one_more = np.argsort(-SCORES["a:1"])[: len(kept) + 1]
    bigger = GROUPS.keep({"a:1": one_more})
    assert static_cost(GROUPS, Cost.PARAMETERS)(bigger) > 0.5 * whole


def test_costs_are_those_of_the_shrunk_function() -> None:
    plan = GROUPS.keep({"a:1": range(5), "b:1": range(7)})
    small = shrink(PARAMS, plan)
    macs = find_sites(shrunk(model, plan), small, X).macs
    assert static_cost(GROUPS, Cost.MULTIPLICATIONS)(plan) == pytest.approx(macs)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(small))
    assert static_cost(GROUPS, Cost.BYTES)(plan) == pytest.approx(stored)
    assert (
        static_cost(GROUPS, Cost.MULTIPLICATIONS)(None)
        == find_sites(model, PARAMS, X).macs
    )


def test_a_measured_cost() -> None:
    def measured(plan: Plan) -> float:
        return float(10 + 2 * len(plan.kept["a:1"]))

    plan = choose(GROUPS, SCORES, target=0.7, cost=measured)
    # The whole is measured with all units but one: 40 of which 28 may be left.
    assert len(plan.kept["a:1"]) == 9


def wide(p: Any, x: jax.Array) -> jax.Array:
    y: jax.Array = jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
    return y


@pytest.mark.parametrize("ranking", list(Ranking))
def test_rankings(ranking: Ranking) -> None:
    groups = find_groups(wide, PARAMS, X)
    scores = {"a:1": np.array([9.0] * 8 + [1.0] * 8), "b:1": np.full(12, 5.0)}
    plan = choose(groups, scores, target=0.6, ranking=ranking)
    a, b = (len(plan.kept[name]) / groups[name].size for name in ("a:1", "b:1"))
    if ranking is Ranking.UNIFORM:
        assert abs(a - b) < 1 / 12
    elif ranking is Ranking.GLOBAL:
        # The weak half of the first layer goes before any unit of the second.
        assert a == 0.5
        assert b == 1
        assert set(plan.kept["a:1"]) <= set(range(8))


def test_isomorphic_groups_compete_only_among_themselves() -> None:
    def two(p: Any, x: jax.Array) -> jax.Array:
        y = wide({k: p[k] for k in "abc"}, x)
        return y + jax.nn.relu(x @ p["d"] + p["e"][None]) @ p["f"]

    params = {**PARAMS, "d": jnp.ones((6, 8)), "e": jnp.ones(8), "f": jnp.ones((8, 3))}
    groups = find_groups(two, params, X)
    scores = {"a:1": np.arange(1.0, 17.0), "b:1": np.arange(1.0, 13.0)}
    scores["d:1"] = np.arange(1.0, 9.0)
    plan = choose(groups, scores, target=0.6, ranking=Ranking.ISOMORPHIC)
    fraction = len(plan.kept["d:1"]) / 8
    assert 0 < fraction < 1
    assert abs(len(plan.kept["a:1"]) / 16 - fraction) <= 1 / 8


def test_multiples_minimum_and_exclusions() -> None:
    groups = find_groups(wide, PARAMS, X)
    scores = random_scores(groups, seed=0)
    plan = choose(groups, scores, [("a", Width(multiple=8)), ("c", None)], target=0.6)
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"a:1": 8}
    plan = choose(groups, scores, [(..., Width(minimum=5))], target=0.35)
    assert min(map(len, plan.kept.values())) >= 5


def test_channels_are_rounded_to_multiples_of_eight_but_no_heads() -> None:
    def heads(p: Any, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"])
        h = jax.nn.relu(jnp.einsum("nd,dhk->nhk", x, p["q"]))
        out: jax.Array = y @ p["c"] + jnp.einsum("nhk,hkd->nd", h, p["o"])
        return out

    shapes = {"a": (6, 44), "b": (44, 31), "c": (31, 3), "q": (6, 32, 2)}
    shapes["o"] = (32, 2, 3)
    groups = find_groups(heads, {k: jnp.ones(s) for k, s in shapes.items()}, X)
    widths = resolve_widths(groups, ALL)
    assert widths.pop("a:1").multiple == 8
    assert {"b:1", "q:1"} <= set(widths)
    assert {width.multiple for width in widths.values()} == {1}
    scores = random_scores(groups, seed=0)
    assert len(choose(groups, scores, target=0.5).kept["a:1"]) % 8 == 0
    exact = choose(groups, scores, [("a", Width(multiple=1))], target=0.5)
    assert len(exact.kept["a:1"]) % 8 != 0


def test_a_group_that_is_reduced_over_has_to_be_asked_for() -> None:
    with pytest.raises(MismatchError, match="over which reduce_sum reduces; Width"):
        choose(GROUPS, SCORES, [("c", Width())], target=0.9)
    plan = choose(GROUPS, SCORES, [("c", Width(reduced=True))], target=0.9)
    assert "b:1" in plan.kept
    # The mean is then over what is left: the function of the small model itself.
    small = shrink(PARAMS, plan)
    np.testing.assert_allclose(
        shrunk(model, plan)(small, X), model(small, X), rtol=1e-5, atol=1e-5
    )


def test_in_rounds() -> None:
    calls: list[tuple[int, tuple[int, ...]]] = []

    def recover(plan: Any, params: Any, number: int) -> Any:
        assert plan.widths["a:1"] == params["a"].shape[1]
        calls.append((number, params["a"].shape))
        return jax.tree.map(lambda leaf: 2 * leaf, params)

    plan, small = shrink_in_rounds(
        wide,
        PARAMS,
        X,
        target=0.25,
        rounds=2,
        score=lambda fn, params: score_by_magnitude(params),
        recover=recover,
    )
    assert [number for number, _ in calls] == [0, 1]
    assert calls[0][1][1] > calls[1][1][1]
    left = sum(leaf.size for leaf in jax.tree.leaves(small))
    assert left <= 0.25 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    # Both rounds together are one plan for the whole tree.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 4 * b, rtol=1e-6),
        small,
        shrink(PARAMS, plan),
    )
    assert np.isfinite(shrunk(wide, plan)(small, X)).all()


@pytest.mark.parametrize("target", [0.0, 1.0, math.nan])
def test_targets(target: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose(GROUPS, SCORES, target=target)


def test_wrong_input() -> None:
    with pytest.raises(
        MismatchError, match=r"0\.01 of parameters cannot be met.* 0\.\d+"
    ):
        choose(GROUPS, SCORES, target=0.01)
    with pytest.raises(MismatchError, match=r"rule 0 .'nothing'. matches no group"):
        choose(GROUPS, SCORES, [("nothing", Width())], target=0.5)
    with pytest.raises(TypeError, match="rule 0 carries 3"):
        choose(GROUPS, SCORES, [(..., 3)], target=0.5)  # type: ignore[list-item]
    with pytest.raises(MismatchError, match="the group 'a:1' has no scores"):
        choose(GROUPS, {}, target=0.5)
    broken = {name: np.array(units, np.float32) for name, units in SCORES.items()}
    broken["a:1"][2] = np.nan
    with pytest.raises(
        MismatchError, match=r"1 units of the group 'a:1', the first.* 2"
    ):
        choose(GROUPS, broken, target=0.5)
    with pytest.raises(MismatchError, match=r"'a:1' have the shape \[2\], and it has"):
        choose(GROUPS, {**SCORES, "a:1": np.ones(2)}, target=0.5)
    with pytest.raises(MismatchError, match="no leaf of the group 'a:1' has scores"):
        score_units(GROUPS, {"c": jnp.ones((12, 3))})
    with pytest.raises(MismatchError, match=r"scores of 'c' have the shape \[2\]"):
        score_units(GROUPS, {"c": jnp.ones(2)})
    with pytest.raises(ValueError, match="at least 1"):
        Width(multiple=0)
