"""Weights that go and come back, against loops in NumPy."""

import functools
import itertools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mask_oracle import LEAVES, sites_of

from jcompress.allocation import Ranking
from jcompress.errors import MismatchError
from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Prune,
    Unstructured,
    apply_masks,
    make_masks,
    prune,
    summarize,
)
from jcompress.pruning.regrowth import (
    AlternateDense,
    Growth,
    Regrow,
    ac_dc,
    rigl,
    sparse_evolution,
)
from jcompress.pruning.schedules import linear_schedule
from jcompress.pruning.scores import TrainingScore
from jcompress.pruning.thresholds import Threshold

TREE = {"conv": LEAVES["conv"], "dense": LEAVES["dense"]}
SITES = sites_of(**TREE)
STEPS = 7


def tree_of(seed):
    random = np.random.default_rng(seed)
    shapes = {name: leaf[0] for name, leaf in TREE.items()} | {"bias": (5,)}
    return {name: np.float32(random.normal(size=s)) for name, s in shapes.items()}


def rules(pattern=None, **fields):
    return [(..., Prune(pattern=pattern or Unstructured(), sparsity=0.5, **fields))]


def train(optimizer, params, steps=STEPS):
    """The parameters and the state before and after every step."""
    params = jax.tree.map(jnp.asarray, params)
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    seen = [(params, state)]
    for step in range(steps):
        updates, state = update(tree_of(100 + step), state, params)
        params = optax.apply_updates(params, updates)
        seen.append((params, state))
    assert update._cache_size() == 1
    return seen


def momentum():
    return optax.sgd(0.1, momentum=0.9)


@functools.cache
def trained(by):
    spec = Regrow(fraction=0.3, every=2, stop=5, by=by, seed=3)
    return train(prune(momentum(), rules(), sites=SITES, regrow=spec), tree_of(0))


def exchanged(weights, gradients, mask, fraction):
    """RigL for one leaf: the smallest kept go, the largest gradients grow."""
    size, kept = mask.size, int(mask.sum())
    assert kept == size - round(0.5 * size)
    # As many go as the sparsity after the drop says.
    staying = size - round(
        float(np.float32(1 - 0.5 * (1 - np.float32(fraction)))) * size
    )
    order = sorted(range(size), key=lambda i: (mask.flat[i], abs(weights.flat[i]), i))
    stay = set(order[size - staying :])
    others = [i for i in range(size) if i not in stay]
    others.sort(key=lambda i: (abs(gradients.flat[i]), i))
    grown = others[len(others) - (kept - staying) :]
    new = np.zeros(size, bool)
    new[list(stay) + grown] = True
    return new.reshape(mask.shape)


def test_rigl_against_a_loop():
    params = tree_of(0)
    masks = {n: np.ones(params[n].shape, bool) for n in TREE}
    for name, mask in masks.items():
        order = np.argsort(np.abs(params[name]), axis=None, kind="stable")
        mask.flat[order[: mask.size // 2]] = False
    moments = {name: np.zeros_like(value) for name, value in params.items()}
    for step, (after, state) in enumerate(trained(Growth.GRADIENT)[1:]):
        gradients = tree_of(100 + step)
        for name in params:
            grown = np.zeros(params[name].shape, bool)
            if name in masks:
                if step in (2, 4):
                    new = exchanged(params[name], gradients[name], masks[name], 0.3)
                    grown = new & ~masks[name]
                    assert grown.sum() > 2
                    masks[name] = new
                gradients[name] = np.where(masks[name], gradients[name], 0)
            moments[name] = np.where(grown, 0, moments[name])
            moments[name] = np.float32(0.9) * moments[name] + gradients[name]
            params[name] = params[name] - np.float32(0.1) * moments[name]
            if name in masks:
                params[name] = np.where(masks[name], params[name], 0)
                np.testing.assert_array_equal(state.masks[name], masks[name])
            np.testing.assert_allclose(after[name], params[name], rtol=1e-5, atol=1e-6)
            trace = state.inner[0].trace[name]
            np.testing.assert_allclose(trace, moments[name], rtol=1e-5, atol=1e-6)
    assert int(state.returned) == 0


def test_set_grows_by_chance_and_keeps_the_count():
    seen = trained(Growth.RANDOM)
    changed = []
    for (before, old), (after, new) in itertools.pairwise(seen):
        for name in TREE:
            kept = np.asarray(new.masks[name])
            assert kept.sum() == kept.size - kept.size // 2
            assert np.all(np.asarray(after[name])[~kept] == 0)
            grown = kept & ~np.asarray(old.masks[name])
            changed.append(int(grown.sum()))
            # What grows was 0, and its momentum begins anew with this gradient.
            assert np.all(np.asarray(before[name])[grown] == 0)
            trace = np.asarray(new.inner[0].trace[name])
            gradient = tree_of(100 + int(old.step))[name]
            np.testing.assert_allclose(trace[grown], gradient[grown], rtol=1e-6)
    places = np.flatnonzero(changed)
    assert set(places // len(TREE)) == {2, 4}
    other = train(
        prune(
            momentum(),
            rules(),
            sites=SITES,
            regrow=Regrow(every=2, by=Growth.RANDOM, seed=4),
        ),
        tree_of(0),
        3,
    )
    assert np.any(other[-1][1].masks["conv"] != seen[3][1].masks["conv"])


@pytest.mark.parametrize(
    ("pattern", "fields"),
    [
        (Channels(), {}),
        (Block((2, 4)), {}),
        (Unstructured(), {"ranking": Ranking.GLOBAL}),
    ],
    ids=str,
)
def test_groups_go_and_grow_as_wholes(pattern, fields):
    spec = rules(pattern, **fields)
    optimizer = prune(
        optax.adam(0.1), spec, sites=SITES, regrow=Regrow(fraction=0.4, every=1)
    )
    with jax.numpy_dtype_promotion("standard"):
        seen = train(optimizer, tree_of(0), 3)
    totals = [sum(int(np.sum(state.masks[name])) for name in TREE) for _, state in seen]
    assert len(set(totals)) == 1
    assert np.any(seen[-1][1].masks["conv"] != seen[0][1].masks["conv"])
    if pattern == Channels():
        for name, (shape, _, (axis,), _) in TREE.items():
            mask = np.moveaxis(np.asarray(seen[-1][1].masks[name]), axis, 0)
            units = mask.reshape(shape[axis], -1)
            assert np.all(units.all(1) | ~units.any(1))
    table = summarize(seen[-1][0], seen[-1][1], spec, sites=SITES)
    assert abs(table.sparsity - 0.5) < 1e-6


def test_a_rising_sparsity_is_followed():
    spec = Prune(
        pattern=Unstructured(), sparsity=linear_schedule(final_sparsity=0.8, steps=4)
    )
    seen = train(
        prune(momentum(), [(..., spec)], sites=SITES, regrow=rigl(every=2, stop=6)),
        tree_of(0),
    )
    removed = [1 - np.mean(state.masks["conv"]) for _, state in seen[1:]]
    np.testing.assert_allclose(removed, [0, 0, 0.4, 0.4, 0.8, 0.8, 0.8], atol=0.004)


def test_phases_of_ac_dc():
    spec = ac_dc(begin=1, phase=2, steps=8)
    assert spec == AlternateDense(begin=1, sparse=2, dense=2, stop=5)
    seen = train(prune(momentum(), rules(), sites=SITES, regrow=spec), tree_of(0), 8)
    kept = [float(np.mean(state.masks["dense"])) for _, state in seen[1:]]
    assert kept == [1, 0.5, 0.5, 1, 1, 0.5, 0.5, 0.5]
    # The sparse phase keeps what was largest when it began.
    weights, mask = (
        np.asarray(seen[1][0]["dense"]),
        np.asarray(seen[2][1].masks["dense"]),
    )
    assert np.abs(weights[mask]).min() > np.abs(weights[~mask]).max()
    # In the dense phase all train, those that come back without momentum.
    back = ~np.asarray(seen[3][1].masks["dense"])
    trace = np.asarray(seen[4][1].inner[0].trace["dense"])
    np.testing.assert_allclose(trace[back], tree_of(103)["dense"][back], rtol=1e-6)
    assert np.all(np.asarray(seen[4][0]["dense"])[back] != 0)
    assert int(seen[-1][1].returned) == 0


def test_begins_with_masks_of_other_scores():
    params = jax.tree.map(jnp.asarray, tree_of(0))
    masks = make_masks(tree_of(5), rules(), sites=SITES)
    optimizer = prune(momentum(), rules(), sites=SITES, masks=masks)
    seen = train(optimizer, params, 2)
    for name in TREE:
        np.testing.assert_array_equal(seen[-1][1].masks[name], masks[name])
    by_magnitude = train(prune(momentum(), rules(), sites=SITES), params, 1)
    assert np.any(by_magnitude[-1][1].masks["conv"] != masks["conv"])
    whole = jax.eval_shape(optimizer.init, params)
    assert jax.tree.structure(whole) == jax.tree.structure(seen[0][1])
    odd = {"conv": masks["conv"], "dense": None, "bias": None}
    with pytest.raises(MismatchError, match="'dense' has a rule but no mask"):
        prune(momentum(), rules(), sites=SITES, masks=odd)
    odd = masks | {"dense": masks["dense"].T}
    with pytest.raises(MismatchError, match=r"'dense' is bool \[6, 8\]"):
        prune(momentum(), rules(), sites=SITES, masks=odd)


def test_the_first_state_can_be_donated():
    params = jax.tree.map(jnp.asarray, tree_of(0))
    masks = make_masks(tree_of(5), rules(), sites=SITES)
    optimizer = prune(momentum(), rules(), sites=SITES, masks=masks, regrow=rigl())
    update = jax.jit(optimizer.update, donate_argnums=1)
    _, state = update(tree_of(1), optimizer.init(params), params)
    _, state = update(tree_of(2), state, params)
    assert int(state.step) == 2
    assert int(jnp.sum(masks["dense"])) == 24


def test_scores_gathered_while_training():
    running = TrainingScore(
        init=lambda params: jax.tree.map(jnp.zeros_like, dict(params)),
        update=lambda gradients, state, params: {
            name: state[name] + jnp.abs(gradients[name] * params[name])
            for name in state
        },
        score=lambda state, params: state,
    )
    from_third = Prune(
        pattern=Unstructured(),
        sparsity=lambda step: jnp.where(step >= 2, jnp.float32(0.5), 0),
    )
    seen = train(
        prune(momentum(), [(..., from_third)], sites=SITES, score=running), tree_of(0)
    )
    assert all(np.all(state.masks["conv"]) for _, state in seen[:3])
    total = sum(
        np.abs(tree_of(100 + step)["conv"] * np.asarray(seen[step][0]["conv"]))
        for step in range(3)
    )
    mask = np.asarray(seen[3][1].masks["conv"])
    assert mask.sum() == mask.size - mask.size // 2
    assert total[mask].min() > total[~mask].max()
    for _, state in seen[3:]:
        np.testing.assert_array_equal(state.masks["conv"], mask)
    applied = apply_masks(seen[-1][0], seen[-1][1].masks)
    np.testing.assert_array_equal(applied["conv"], seen[-1][0]["conv"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regrow(fraction=1.0), r"fraction is in \(0, 1\), not 1.0"),
        (lambda: Regrow(every=0), "every is an int from 1 on, not 0"),
        (lambda: sparse_evolution(stop=0), "stop is an int from 1 on"),
        (lambda: ac_dc(begin=5, phase=2, steps=8), "do not fit into 8 steps"),
        (
            lambda: AlternateDense(begin=3, sparse=1, dense=1, stop=2),
            "stop is not before begin",
        ),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


ALIASES = (
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw"),
    *("adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam"),
    *("noisy_sgd", "novograd", "optimistic_gradient_descent", "radam", "rmsprop"),
    *("rprop", "sgd", "sign_sgd", "sm3", "yogi"),
)


@pytest.mark.parametrize("alias", ALIASES)
def test_composes_with_every_optimizer(alias):
    fields = {"momentum": 0.9} if alias in ("sgd", "rmsprop", "sm3") else {}
    if alias == "noisy_sgd":
        fields = {"key": 0}
    optimizer = prune(
        getattr(optax, alias)(learning_rate=0.1, **fields),
        [("dense", rules()[0][1])],
        sites=sites_of(dense=TREE["dense"]),
        regrow=rigl(every=1),
    )
    params = {name: jnp.asarray(tree_of(0)[name]) for name in ("dense", "bias")}
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for step in range(3):
            masks = state.masks
            gradients = {name: tree_of(100 + step)[name] for name in params}
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            kept = np.asarray(state.masks["dense"])
            assert kept.sum() == 24
            assert np.all(np.asarray(params["dense"])[~kept] == 0)
            assert np.all(np.isfinite(params["dense"]))
            assert bool(np.any(kept != masks["dense"])) == (step > 0)
    assert update._cache_size() == 1
    # Keys of random numbers have no bytes there.
    state = state._replace(inner=None) if alias == "noisy_sgd" else state
    stored = flax.serialization.to_bytes(state)
    back = flax.serialization.from_bytes(state, stored)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)


def test_moments_begin_anew_inside_wrappers():
    """What grows has no history, whatever wraps the optimizer."""
    labels = {"conv": "a", "dense": "b", "bias": "b"}
    inner = optax.multi_transform({"a": optax.sgd(0.1), "b": momentum()}, labels)
    optimizer = prune(inner, rules(), sites=SITES, regrow=Regrow(every=2))
    seen = train(optimizer, tree_of(0), 3)
    before, after = seen[-2][1], seen[-1][1]
    grown = np.asarray(after.masks["dense"] & ~before.masks["dense"])
    assert grown.sum() > 2
    traces = [
        leaf
        for leaf in jax.tree.leaves(after.inner)
        if getattr(leaf, "shape", None) == (8, 6)
    ]
    assert len(traces) == 1
    np.testing.assert_allclose(
        np.asarray(traces[0])[grown], tree_of(102)["dense"][grown], rtol=1e-6
    )


def test_regrowth_refuses_groups_without_room():
    spec = [(..., Prune(pattern=NM(2, 4)))]
    with pytest.raises(MismatchError, match=r"'conv' has the pattern NM\(2, 4\)"):
        prune(momentum(), spec, sites=SITES, regrow=rigl())
    spec = [(..., Prune(pattern=Unstructured(), threshold=Threshold(0.1)))]
    with pytest.raises(MismatchError, match="how many weights are to grow"):
        prune(momentum(), spec, sites=SITES, regrow=rigl())
