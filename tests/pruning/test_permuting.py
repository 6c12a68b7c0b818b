"""Hidden units in an order in which patterns keep more: the function stays the same."""

import doctest
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Prune,
    apply_masks,
    make_masks,
    permute_inputs,
    permuting,
)
from jcompress.pruning.scores import score_by_magnitude
from jcompress.sites import find_sites

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    # Columns of different sizes: which stand together decides what is kept.
    sizes = np.exp(RNG.normal(size=shape))
    return jnp.asarray(RNG.normal(size=shape) * sizes, jnp.float32)


PARAMS = {
    "conv": normal(3, 3, 2, 8),
    "next": normal(3, 3, 8, 12),
    "up": normal(12, 32),
    "gate": normal(12, 32),
    "bias": normal(32),
    "down": normal(32, 4),
}


def model(params: Any, x: jax.Array) -> jax.Array:
    for name in ("conv", "next"):
        x = jax.lax.conv_general_dilated(
            x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(x)
    h = x.mean((1, 2))
    h = jax.nn.silu(h @ params["gate"]) * (h @ params["up"] + params["bias"][None])
    return h @ params["down"]


X = jnp.asarray(RNG.normal(size=(2, 5, 5, 2)), jnp.float32)
SITES = find_sites(model, PARAMS, X)
KEY = jax.random.key(0)


def kept(tree: Any, rules: Any, name: str) -> float:
    """The magnitude that a pattern leaves in a leaf."""
    masks = make_masks(score_by_magnitude(tree), rules, sites=SITES)
    return float(jnp.abs(apply_masks(tree, masks)[name]).sum())


def test_patterns_keep_more_and_the_function_is_the_same() -> None:
    patterns = {"next": NM(2, 4), "up": NM(2, 4), "gate": NM(2, 4)}
    patterns["down"] = Block((1, 4))
    rules = list(patterns.items())
    found = permute_inputs(model, PARAMS, rules, X, key=KEY)
    assert not found.left
    np.testing.assert_allclose(model(found.params, X), model(PARAMS, X), rtol=2e-5)
    for name, pattern in rules:
        sparsity = None if isinstance(pattern, NM) else 0.5
        prune = [(name, Prune(pattern=pattern, sparsity=sparsity))]
        ratio = kept(found.params, prune, name) / kept(PARAMS, prune, name)
        if isinstance(pattern, NM):
            assert found.gains[name] == pytest.approx(ratio, rel=1e-4)
        if name not in ("up", "gate"):  # which share one order
            assert ratio > (1.01 if name == "down" else 1.002)
        moved = np.sort(np.asarray(found.params[name]).ravel())
        np.testing.assert_array_equal(moved, np.sort(np.asarray(PARAMS[name]).ravel()))
    # Both together keep more.
    both = [((lambda s: s.path in ("up", "gate")), Prune(pattern=NM(2, 4)))]
    now, then = (
        sum(kept(tree, both, name) for name in ("up", "gate"))
        for tree in (found.params, PARAMS)
    )
    assert now > 1.005 * then


def test_small_ones_get_the_best_order_there_is() -> None:
    """Eight units, two groups of four: against all orders."""
    params = {"a": normal(3, 8), "b": normal(8, 5)}

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["a"]) @ params["b"]

    found = permute_inputs(fn, params, [("b", NM(2, 4))], jnp.ones((1, 3)), key=KEY)
    b = np.abs(np.asarray(params["b"]))

    def value(units: Any) -> float:
        return float(np.sort(b[list(units)], axis=0)[-2:].sum())

    best = max(
        value(half) + value(set(range(8)) - set(half))
        for half in itertools.combinations(range(8), 4)
    )
    start = value(range(4)) + value(range(4, 8))
    assert found.gains["b"] >= 1 + 0.9 * (best / start - 1)


def test_scores_of_the_users_and_what_stays() -> None:
    scores = dict.fromkeys(PARAMS, None) | {"down": jnp.square(PARAMS["down"])}
    rules: Any = [("down", NM(1, 4))]
    found = permute_inputs(model, PARAMS, rules, X, key=KEY, scores=scores)
    assert list(found.gains) == ["down"]
    rules = [("down", NM(1, 4)), ("conv", NM(1, 2))]
    found = permute_inputs(model, PARAMS, rules, X, key=KEY, sweeps=2)
    assert "argument" in found.left["conv"] or "axis 2" in found.left["conv"]
    with pytest.raises(MismatchError, match=r"inputs of no leaf can be permuted: conv"):
        permute_inputs(model, PARAMS, rules[1:], X, key=KEY)
    with pytest.raises(MismatchError, match=r"scores has none of 'up' \[12, 32\]"):
        permute_inputs(model, PARAMS, [("up", NM(2, 4))], X, key=KEY, scores=scores)
    rules = [("up", NM(2, 4)), ("gate", NM(1, 4))]
    with pytest.raises(MismatchError, match="have the same inputs, and so one order"):
        permute_inputs(model, PARAMS, rules, X, key=KEY)
    with pytest.raises(MismatchError, match=r"permute_inputs: 'up' .* 12 inputs"):
        permute_inputs(model, PARAMS, [("up", NM(2, 5))], X, key=KEY)
    with pytest.raises(TypeError, match=r"a rule carries NM\(n, m\) or Block"):
        permute_inputs(model, PARAMS, [("up", Channels())], X, key=KEY)
    with pytest.raises(ValueError, match="sweeps is a positive int, not 0"):
        permute_inputs(model, PARAMS, [("up", NM(2, 4))], X, key=KEY, sweeps=0)


def test_the_examples_run() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(permuting)
    assert attempted
    assert not failed
