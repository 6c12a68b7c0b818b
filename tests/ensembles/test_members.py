"""Ensembles of functions: stacked, compressed, of other architectures, trained."""

import doctest
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress.ensembles import (
    RankOne,
    ensemble,
    fit_stacker,
    majority_vote,
    mean_logits,
    mean_probabilities,
    rank_one,
    rank_one_members,
    stack,
    unstack,
    with_factors,
)
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import PerGroup, Quantize, Weights, quantize
from jcompress.sites import find_sites

X = jax.random.normal(jax.random.key(9), (6, 8))


def model(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def make(key: jax.Array, width: int = 16) -> Any:
    first, second = jax.random.split(key)
    return {
        "up": jax.random.normal(first, (8, width)) / 3,
        "down": jax.random.normal(second, (width, 3)) / 4,
    }


TREES = [make(key) for key in jax.random.split(jax.random.key(0), 4)]


@pytest.mark.parametrize("combine", [mean_probabilities, mean_logits, majority_vote])
def test_side_by_side_is_in_turn(combine: Any) -> None:
    wanted = combine(jnp.stack([model(tree, X) for tree in TREES]))
    side = jax.jit(ensemble(model, combine))(stack(TREES), X)
    turn = jax.jit(ensemble([model] * 4, combine))(tuple(TREES), X)
    np.testing.assert_allclose(side, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(turn, wanted, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, unstack(stack(TREES)), TREES)


def test_one_program_for_all_members_and_no_retrace() -> None:
    run = jax.jit(chex.assert_max_traces(ensemble(model), n=1))
    chex.clear_trace_counter()
    run(stack(TREES), X)
    run(stack(TREES[::-1]), -X)
    text = str(jax.make_jaxpr(ensemble(model))(stack(TREES), X))
    assert text.count("dot_general[") == 2


def test_compressed_members() -> None:
    weights = Weights(format=Int(4), granularity=PerGroup(8))
    rules = [(..., Quantize(weights=weights))]
    sites = find_sites(model, TREES[0], X)
    small = [quantize(tree, rules, sites=sites) for tree in TREES]
    run = compressed(model)
    wanted = mean_probabilities(jnp.stack([run(tree, X) for tree in small]))
    side = jax.jit(ensemble(run))(stack(small), X)
    turn = jax.jit(ensemble([run] * 4))(tuple(small), X)
    np.testing.assert_allclose(side, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(turn, wanted, rtol=1e-4, atol=1e-5)
    # Or all members at once: they are copies of each weight.
    together = stack(TREES)
    sites = find_sites(ensemble(model), together, X)
    stored = quantize(together, rules, sites=sites)
    found = jax.jit(compressed(ensemble(model)))(stored, X)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_other_architectures_and_a_learned_combiner() -> None:
    narrow = make(jax.random.key(5), width=4)
    linear = {"w": jnp.ones((8, 3), jnp.bfloat16)}
    functions = [model, model, lambda p, x: x.astype(jnp.bfloat16) @ p["w"]]
    params = (TREES[0], narrow, linear)
    outputs = ensemble(functions, None)(params, X)
    assert outputs.shape == (3, 6, 3)
    assert outputs.dtype == jnp.float32
    stacker = fit_stacker(outputs, jnp.arange(6) % 3, steps=5)
    found = jax.jit(ensemble(functions, stacker))(params, X)
    np.testing.assert_allclose(found, stacker(outputs), rtol=1e-4, atol=1e-5)
    weighted = functools.partial(mean_logits, weights=jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(
        ensemble(functions, weighted)(params, X), model(TREES[0], X), rtol=1e-5
    )


def test_members_are_trained_side_by_side_as_alone() -> None:
    """Each with a seed, an order of the data and a loss of its own."""
    optimizer = optax.sgd(1e-1, momentum=0.9)
    labels = jnp.arange(6) % 3
    smoothing = jnp.array([0.0, 0.1, 0.2])

    def start(key: jax.Array) -> Any:
        params = make(key)
        return params, optimizer.init(params)

    def step(carry: Any, order: jax.Array, smooth: jax.Array) -> Any:
        params, state = carry

        def loss(params: Any) -> jax.Array:
            wanted = jax.nn.one_hot(labels[order], 3) * (1 - smooth) + smooth / 3
            out = model(params, X[order])
            return optax.softmax_cross_entropy(out, wanted).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    keys = jax.random.split(jax.random.key(1), 3)
    orders = jax.vmap(lambda key: jax.random.permutation(key, 6)[:4])(keys)
    together, many = jax.vmap(start)(keys), jax.jit(jax.vmap(step))
    for _ in range(3):
        together = many(together, orders, smoothing)
    for number, tree in enumerate(unstack(together[0])):
        alone = start(keys[number])
        for _ in range(3):
            alone = step(alone, orders[number], smoothing[number])
        chex.assert_trees_all_close(tree, alone[0], atol=1e-5)


def test_members_that_share_all_but_two_vectors() -> None:
    def network(params: Any, x: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            x[:, :, None],
            params["conv"],
            (1,),
            "SAME",
            dimension_numbers=("NHC", "HIO", "NHC"),
        )
        return jax.nn.relu(x).mean(1) @ params["out"]

    params = {
        "conv": jax.random.normal(jax.random.key(0), (3, 1, 4)),
        "out": jax.random.normal(jax.random.key(1), (4, 3), jnp.bfloat16),
    }
    run_one = lambda params, x: network(  # noqa: E731
        {**params, "out": params["out"].astype(jnp.float32)}, x
    )
    sites = find_sites(run_one, params, X)
    rules = [("conv", RankOne()), ("out", RankOne(deviation=0.5))]
    key = jax.random.key(2)
    vectors = rank_one_members(params, rules, sites=sites, members=5, key=key)
    assert vectors["conv"].inputs.shape == (5, 3, 1, 1)
    assert set(np.unique(vectors["conv"].outputs).tolist()) == {-1, 1}
    run = ensemble(lambda v, x: run_one(with_factors(params, v), x), None)
    found = jax.jit(run)(vectors, X)
    for e in range(5):
        member = {
            name: (
                np.asarray(leaf, np.float32)
                * np.asarray(vectors[name].inputs[e])
                * np.asarray(vectors[name].outputs[e])
            ).astype(leaf.dtype)
            for name, leaf in params.items()
        }
        np.testing.assert_allclose(found[e], run_one(member, X), rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(found[0] - found[1]).max()) > 0.01
    grads = jax.grad(lambda v: run(v, X).sum())(vectors)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads))
    with pytest.raises(MismatchError, match="give those of one member"):
        with_factors(params, vectors)
    with pytest.raises(ValueError, match="members is an int of 1 or more, not 0"):
        rank_one_members(params, rules, sites=sites, members=0, key=key)
    with pytest.raises(ValueError, match="deviation is None, 0 or more"):
        RankOne(deviation=-1)
    assert doctest.testmod(rank_one).failed == 0


def test_members_that_do_not_fit() -> None:
    with pytest.raises(MismatchError, match="there are no members"):
        stack([])
    with pytest.raises(
        MismatchError, match="'down' is in member 0 and not in member 1"
    ):
        stack([TREES[0], {"up": TREES[0]["up"]}])
    with pytest.raises(MismatchError, match=r"'down' is float32 \[16, 3\] in member 0"):
        stack([TREES[0], make(jax.random.key(0), width=4)])
    with pytest.raises(MismatchError, match="led by one axis of one length"):
        unstack({"a": jnp.ones((2, 3)), "b": jnp.ones(3)})
    with pytest.raises(TypeError, match="fn is a function or a list"):
        ensemble("model")  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="there is no function"):
        ensemble([])
    with pytest.raises(MismatchError, match="2 functions and 1 trees"):
        ensemble([model, model])(TREES[:1], X)
    odd = lambda params, x: model(params, x)[:2]  # noqa: E731
    with pytest.raises(MismatchError, match=r"member 0 returns \(6, 3\), and member 1"):
        ensemble([model, odd])(TREES[:2], X)
