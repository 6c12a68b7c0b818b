"""Pruning layer by layer on what the layers before give; Wanda's scores of trees."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.pruning import NM, Prune, make_masks
from jcompress.pruning.one_shot import (
    Magnitude,
    OneShot,
    by_layers,
    prune_by_layers,
    prune_weights,
    sparsegpt,
)
from jcompress.pruning.scores import score_by_wanda
from jcompress.quantization import Weights
from jcompress.sites import find_sites
from jcompress.statistics import DiagonalMoments, SecondMoments, observe
from jcompress.tensors import QTensor

RNG = np.random.default_rng(0)
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(16, 12)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(12, 12)), jnp.float32),
    "c": jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32),
    "table": jnp.asarray(RNG.normal(size=(7, 16)), jnp.float32),
}


def model(params: Any, rows: jax.Array) -> jax.Array:
    """A lookup and three products."""
    h = jnp.tanh(params["table"][rows] @ params["a"])
    return jnp.tanh(h @ params["b"]) @ params["c"]


BATCHES = [(jnp.asarray(RNG.integers(7, size=40)),) for _ in range(2)]
RULES = [
    ("table", OneShot(method=Magnitude(), sparsity=0.2)),
    ("b", sparsegpt(NM(2, 4), weights=Weights(format=Int(8)))),
    (..., sparsegpt(sparsity=0.5)),
]


def test_each_leaf_learns_from_the_pruned_ones_before_it() -> None:
    seen: list[Any] = []
    small = prune_by_layers(model, PARAMS, RULES, BATCHES, on_leaf=seen.append)
    assert [leaf.path for leaf in seen] == ["table", "a", "b", "c"]
    assert (seen[-1].done, seen[-1].total, seen[-1].seconds_left) == (4, 4, 0)
    assert isinstance(small["b"], QTensor)
    # The same by hand, with statistics of the tree before.
    sites = find_sites(model, PARAMS, *BATCHES[0])
    tree = seen[2].params
    dense = {**tree, "b": tree["b"].dense()}
    run = jax.jit(observe(model, [("c", True)], SecondMoments()))
    moments = run(dense, *BATCHES[0])[1] + run(dense, *BATCHES[1])[1]
    wanted = prune_weights(
        dense, [("c", sparsegpt(sparsity=0.5))], sites=sites, moments=moments
    )
    np.testing.assert_allclose(small["c"], wanted["c"], atol=1e-4)

    again: list[str] = []
    names = [leaf.path for leaf in seen[:2]]
    rest = prune_by_layers(
        model,
        seen[1].params,
        RULES,
        BATCHES,
        done=names,
        on_leaf=lambda leaf: again.append(leaf.path),
    )
    assert again == ["b", "c"]
    np.testing.assert_array_equal(rest["c"], small["c"])
    np.testing.assert_array_equal(rest["a"], small["a"])


def test_what_cannot_be_pruned_by_layers() -> None:
    with pytest.raises(ValueError, match="prune_by_layers: batches is empty"):
        prune_by_layers(model, PARAMS, RULES, [])
    with pytest.raises(ValueError, match="done has 'd', which no rule prunes"):
        prune_by_layers(model, PARAMS, RULES, BATCHES, done=["d"])
    rules = [(..., sparsegpt(sparsity=0.5))]
    with pytest.raises(MismatchError, match="prune_by_layers: 'table' is only looked"):
        prune_by_layers(model, PARAMS, rules, BATCHES)


def test_scores_of_wanda() -> None:
    sites = find_sites(model, PARAMS, *BATCHES[0])
    rules = [("a", True), ("c", True)]
    _, squares = observe(model, rules, DiagonalMoments())(PARAMS, *BATCHES[0])
    scores = score_by_wanda(PARAMS, squares, sites=sites)
    inputs = np.asarray(PARAMS["table"])[np.asarray(BATCHES[0][0])]
    sizes = np.sqrt(np.square(inputs).sum(0))
    wanted = np.abs(np.asarray(PARAMS["a"])) * sizes[:, None]
    np.testing.assert_allclose(scores["a"], wanted, rtol=1e-5)
    assert scores["b"] is None
    _, whole = observe(model, rules, SecondMoments())(PARAMS, *BATCHES[0])
    again = score_by_wanda(PARAMS, whole, sites=sites)
    np.testing.assert_allclose(again["a"], scores["a"], rtol=1e-5)
    masks = make_masks(scores, [("a", Prune(pattern=NM(1, 4)))], sites=sites)
    groups = np.asarray(masks["a"]).T.reshape(12, 4, 4)
    best = wanted.T.reshape(12, 4, 4).argmax(-1)
    np.testing.assert_array_equal(groups.argmax(-1), best)
    assert (groups.sum(-1) == 1).all()

    for moments, message in (
        ({"a": jnp.ones(3)}, r"are \[3\], not \[16\] or \[16, 16\]"),
        ({"table": jnp.ones(3)}, "'table', which is the weight of no product"),
        ({"d": jnp.ones(3)}, "'d', which is the weight of no product"),
    ):
        with pytest.raises(MismatchError, match=message):
            score_by_wanda(PARAMS, moments, sites=sites)
    with pytest.raises(ValueError, match="'a' hold numbers that are negative or not"):
        score_by_wanda(PARAMS, {"a": jnp.full(16, jnp.nan)}, sites=sites)


def test_the_examples_run() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(by_layers)
    assert attempted
    assert not failed
