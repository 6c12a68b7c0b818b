"""Straight-through training, penalties, gates and rounds, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mask_oracle import LEAVES, oracle, sites_of

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
)
from jcompress.pruning.scores import score_by_magnitude
from jcompress.pruning.training import (
    HardConcrete,
    Lasso,
    add_l1,
    l0_gates,
    proximal,
    prune_in_rounds,
    sr_ste,
    straight_through,
    top_kast,
)

TREE = {"conv": LEAVES["conv"], "dense": LEAVES["dense"]}
SITES = sites_of(**TREE)


def tree_of(seed, dtype=np.float32):
    random = np.random.default_rng(seed)
    shapes = {name: leaf[0] for name, leaf in TREE.items()} | {"bias": (5,)}
    return {
        name: jnp.asarray(random.normal(size=s), dtype) for name, s in shapes.items()
    }


def rules(sparsity=0.5, pattern=None):
    return [(..., Prune(pattern=pattern or Unstructured(), sparsity=sparsity))]


def weighted(tree, weights):
    return sum(jnp.sum(tree[name] * weights[name]) for name in tree)


class TestStraightThrough:
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_value_is_masked_and_gradient_is_not(self, dtype):
        params, weights = tree_of(0, dtype), tree_of(1, dtype)
        masks = make_masks(score_by_magnitude(params), rules(), sites=SITES)
        some = make_masks(score_by_magnitude(params), rules(0.25), sites=SITES)

        @jax.jit
        def both(params):
            used = straight_through(params, masks)
            part = straight_through(params, masks, backward=some)
            return (
                used,
                [
                    jax.grad(lambda p: weighted(straight_through(p, masks), weights))(
                        params
                    ),
                    jax.grad(
                        lambda p: weighted(
                            straight_through(p, masks, backward=some), weights
                        )
                    )(params),
                ],
                part,
            )

        used, (full, partial), part = both(params)
        applied = apply_masks(params, masks)
        for name in params:
            assert used[name].dtype == dtype
            np.testing.assert_array_equal(used[name], applied[name])
            np.testing.assert_array_equal(part[name], applied[name])
            np.testing.assert_array_equal(full[name], weights[name])
            wanted = weights[name]
            if name in TREE:
                wanted = np.where(some[name], wanted, 0)
            np.testing.assert_array_equal(partial[name], wanted)

    def test_infinite_weights_do_not_spoil_the_rest(self):
        params = {"w": jnp.array([jnp.inf, 1.0])}
        used = straight_through(params, {"w": jnp.array([False, True])})
        assert used["w"].tolist() == [0, 1]

    def test_sr_ste(self):
        params, weights = tree_of(0), tree_of(1)

        def loss(params):
            small = sr_ste(params, rules(None, NM(2, 4)), sites=SITES)
            return weighted(small.params, weights) + 0.1 * small.penalty, small.masks

        (value, masks), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            params
        )
        wanted = 0.0
        for name, leaf in TREE.items():
            mask = oracle(np.asarray(params[name]), NM(2, 4), leaf, 0.5)
            np.testing.assert_array_equal(masks[name], mask)
            gone = np.where(mask, 0, params[name])
            np.testing.assert_allclose(
                gradient[name], weights[name] + 0.1 * gone, rtol=1e-5, atol=1e-6
            )
            kept = np.where(mask, params[name], 0)
            wanted += np.sum(kept * weights[name]) + 0.05 * np.sum(gone**2)
        wanted += np.sum(params["bias"] * weights["bias"])
        np.testing.assert_allclose(value, wanted, rtol=1e-5)

    def test_top_kast(self):
        params, weights = tree_of(0), tree_of(1)
        names = list(TREE)

        def loss(params):
            small = top_kast(params, rules(0.75), sites=SITES, backward=0.5)
            return weighted(small.params, weights) + 0.1 * small.penalty

        gradient = jax.jit(jax.grad(loss))(params)
        for name in names:
            weight = np.asarray(params[name])
            used = oracle(weight, Unstructured(), TREE[name], 0.75)
            learning = oracle(weight, Unstructured(), TREE[name], 0.5)
            pull = np.where(used, 1.0, np.where(learning, 1 / used.mean(), 0))
            wanted = np.where(learning, weights[name], 0) + 0.2 * pull * weight
            np.testing.assert_allclose(gradient[name], wanted, rtol=1e-5, atol=1e-6)

    def test_bad_input(self):
        params = tree_of(0)
        masks = make_masks(score_by_magnitude(params), rules(), sites=SITES)
        with pytest.raises(MismatchError, match="holds no mask"):
            straight_through(params, dict.fromkeys(params))
        with pytest.raises(MismatchError, match="'dense' has a mask for one"):
            straight_through(params, masks, backward=masks | {"dense": None})
        with pytest.raises(MismatchError, match="'conv'"):
            straight_through({"dense": params["dense"]}, masks)
        with pytest.raises(MismatchError, match=r"rule 0 .* removes only 0.5"):
            top_kast(params, rules(0.5), sites=SITES, backward=0.75)


class TestProximal:
    @pytest.mark.parametrize("pattern", [Unstructured(), Channels(), Block((2, 4))])
    def test_against_numpy(self, pattern):
        params = tree_of(0)
        optimizer = proximal(
            optax.sgd(0.1, momentum=0.9),
            [(..., Lasso(strength=0.9, pattern=pattern))],
            sites=SITES,
            learning_rate=0.1,
        )
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        now = {name: np.asarray(value, np.float64) for name, value in params.items()}
        moments = {name: np.zeros_like(value) for name, value in now.items()}
        for step in range(4):
            gradients = tree_of(10 + step)
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            for name in now:
                moments[name] = 0.9 * moments[name] + np.asarray(gradients[name])
                now[name] = now[name] - 0.1 * moments[name]
                if name in TREE:
                    now[name] = moved_to_zero(now[name], pattern, TREE[name], 0.09)
                np.testing.assert_allclose(params[name], now[name], atol=2e-5)
        assert update._cache_size() == 1
        zeros = {name: np.asarray(params[name]) == 0 for name in TREE}
        np.testing.assert_array_equal(zeros["conv"], now["conv"] == 0)
        if pattern == Unstructured():
            assert 0.05 < zeros["conv"].mean() < 0.95

    def test_removes_the_units_that_nothing_needs(self):
        x = jax.random.normal(jax.random.key(0), (64, 8))
        y = x @ jnp.zeros((8, 6)).at[:, :2].set(1.0)
        params = {"dense": jax.random.normal(jax.random.key(1), (8, 6)) * 0.3}
        sites = sites_of(dense=LEAVES["dense"])
        rule = Lasso(strength=0.05, pattern=Channels())
        optimizer = proximal(
            optax.sgd(0.1), [(..., rule)], sites=sites, learning_rate=0.1
        )

        @jax.jit
        def step(params, state):
            slope = jax.grad(lambda p: jnp.mean((x @ p["dense"] - y) ** 2))(params)
            updates, state = optimizer.update(slope, state, params)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(150):
            params, state = step(params, state)
        alive = np.any(np.asarray(params["dense"]) != 0, axis=0)
        assert alive.tolist() == [True, True, False, False, False, False]

    def test_add_l1(self):
        params = {"bn": {"scale": jnp.array([1.0, -2.0]), "bias": jnp.ones(2)}}
        optimizer = optax.chain(add_l1(0.25, "**/scale"), optax.sgd(1.0))
        state = optimizer.init(params)
        updates, _ = optimizer.update(
            jax.tree.map(jnp.zeros_like, params), state, params
        )
        assert updates["bn"]["scale"].tolist() == [-0.25, 0.25]
        assert updates["bn"]["bias"].tolist() == [0, 0]
        with pytest.raises(MismatchError, match=r"no leaf is named '\*\*/gamma'.*bn/"):
            add_l1(0.25, "**/gamma").init(params)

    def test_bad_values(self):
        with pytest.raises(ValueError, match="strength is above 0, not -1"):
            Lasso(strength=-1)
        with pytest.raises(ValueError, match=r"Lasso: NM\(2, 4\)"):
            Lasso(strength=1, pattern=NM(2, 4))
        with pytest.raises(ValueError, match="add_l1: strength is above 0"):
            add_l1(0, "**")


def moved_to_zero(weight, pattern, leaf, distance):
    """The proximal step by loops over groups, in float64."""
    shape, _, outputs, inputs = leaf
    order = outputs + inputs
    back = np.argsort(order)
    sizes = [shape[axis] for axis in order]
    matrix = weight.transpose(order).reshape(
        int(np.prod([shape[axis] for axis in outputs])), -1
    )
    high, wide = {
        Unstructured(): (1, 1),
        Channels(): (1, matrix.shape[1]),
    }.get(pattern) or pattern.shape
    out = np.zeros_like(matrix)
    for i in range(0, matrix.shape[0], high):
        for j in range(0, matrix.shape[1], wide):
            group = matrix[i : i + high, j : j + wide]
            norm = np.sqrt(np.sum(group**2))
            factor = max(0.0, 1 - distance * np.sqrt(group.size) / norm)
            out[i : i + high, j : j + wide] = factor * group
    return out.reshape(sizes).transpose(back)


class TestGates:
    def test_against_the_equations(self):
        params = tree_of(0)
        spec = HardConcrete(pattern=Channels(), keep=0.8)
        l0 = l0_gates([("dense", spec)], sites=SITES)
        gates = l0.init(params)
        assert gates["conv"] is None
        assert gates["dense"].shape == (1, 6)
        np.testing.assert_allclose(l0.kept(gates), 0.8 * 48, rtol=1e-6)
        logits = np.linspace(-4, 4, 6)[None]
        gates = gates | {"dense": jnp.asarray(logits, jnp.float32)}
        usual = np.clip(1.2 / (1 + np.exp(-logits)) - 0.1, 0, 1)
        assert usual.min() == 0
        assert usual.max() == 1
        np.testing.assert_allclose(
            l0.apply(params, gates)["dense"], params["dense"] * usual, atol=1e-6
        )
        np.testing.assert_array_equal(
            l0.masks(params, gates)["dense"], np.broadcast_to(usual > 0, (8, 6))
        )
        # The share of draws that are not zero is the probability that `kept` adds up.
        keys = jax.random.split(jax.random.key(0), 4000)
        drawn = jax.jit(jax.vmap(lambda key: l0.apply(params, gates, key)["dense"][0]))(
            keys
        )
        share = np.mean(np.asarray(drawn) != 0, axis=0)
        shift = -2 / 3 * np.log(0.1 / 1.1)
        chance = 1 / (1 + np.exp(-(logits[0] + shift)))
        np.testing.assert_allclose(share, chance, atol=0.03)
        np.testing.assert_allclose(l0.kept(gates), 8 * chance.sum(), rtol=1e-5)

    def test_learns_which_units_matter(self):
        x = jax.random.normal(jax.random.key(0), (64, 8))
        params = {"dense": jnp.ones((8, 6))}
        need = jnp.array([[1.0, 0, 1, 0, 0, 0]])
        sites = sites_of(dense=LEAVES["dense"])
        rule = HardConcrete(pattern=Channels())
        l0 = l0_gates([(..., rule)], sites=sites)
        optimizer = optax.sgd(3.0)

        def loss(gates, key):
            out = (x @ l0.apply(params, gates, key)["dense"]) * need
            error = jnp.mean((out - x.sum(1, keepdims=True) * need) ** 2)
            return error + 0.02 * l0.kept(gates)

        @jax.jit
        def step(gates, state, key):
            updates, state = optimizer.update(jax.grad(loss)(gates, key), state)
            return optax.apply_updates(gates, updates), state

        gates = l0.init(params)
        state = optimizer.init(gates)
        for key in jax.random.split(jax.random.key(2), 150):
            gates, state = step(gates, state, key)
        mask = np.asarray(l0.masks(params, gates)["dense"])[0]
        assert mask.tolist() == need[0].astype(bool).tolist()

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"keep is in \(0, 1\)"):
            HardConcrete(keep=1.0)
        with pytest.raises(ValueError, match="stretch goes from below 0"):
            HardConcrete(stretch=(0.0, 1.1))
        with pytest.raises(ValueError, match=r"HardConcrete: NM\(2, 4\)"):
            HardConcrete(pattern=NM(2, 4))
        l0 = l0_gates([("dense", HardConcrete())], sites=SITES)
        with pytest.raises(MismatchError, match="gates are for dense, made by init"):
            l0.apply(tree_of(0), {"dense": None})


class TestRounds:
    def test_sparsity_by_rounds_and_what_is_gone_stays(self):
        seen = []

        def recover(masks, params, number):
            for name in TREE:
                assert np.all(np.asarray(params[name])[~np.asarray(masks[name])] == 0)
            seen.append(masks)
            # Something that moves every weight.
            return jax.tree.map(lambda p, g: p + 0.3 * g, params, tree_of(20 + number))

        params, masks = prune_in_rounds(
            tree_of(0), rules(0.875), sites=SITES, rounds=3, recover=recover
        )
        kept = [int(np.sum(m["dense"])) for m in seen]
        assert kept == [24, 12, 6]
        for early, late in itertools.pairwise(seen):
            assert not np.any(~np.asarray(early["conv"]) & np.asarray(late["conv"]))
        np.testing.assert_array_equal(np.asarray(params["dense"]) != 0, masks["dense"])
        again = prune_in_rounds(
            params_after(seen[:2]),
            rules(0.875),
            sites=SITES,
            rounds=3,
            recover=lambda masks, params, number: params,
            masks=seen[1],
            first=2,
        )
        assert int(np.sum(again[1]["dense"])) == 6

    def test_tickets_begin_with_early_weights(self):
        early = tree_of(7)
        begun = []

        def recover(masks, params, number):
            begun.append((masks, params))
            return jax.tree.map(lambda p: p * 2, params)

        prune_in_rounds(
            tree_of(0),
            rules(0.75),
            sites=SITES,
            rounds=2,
            recover=recover,
            rewind=early,
        )
        for masks, params in begun:
            wanted = np.where(masks["conv"], early["conv"], 0)
            np.testing.assert_array_equal(params["conv"], wanted)

    def test_trains_with_prune(self):
        def recover(masks, params, number):
            optimizer = prune(optax.sgd(0.1), rules(0.5), sites=SITES, masks=masks)
            state = optimizer.init(params)
            updates, state = optimizer.update(tree_of(3), state, params)
            return optax.apply_updates(params, updates)

        params, masks = prune_in_rounds(
            tree_of(0), rules(0.5), sites=SITES, rounds=1, recover=recover
        )
        wanted = np.where(
            masks["conv"], tree_of(0)["conv"] - 0.1 * tree_of(3)["conv"], 0
        )
        np.testing.assert_allclose(params["conv"], wanted, rtol=1e-6, atol=1e-7)

    def test_bad_input(self):
        fields = {"sites": SITES, "recover": lambda masks, params, number: params}
        with pytest.raises(ValueError, match="at least one round, not 0"):
            prune_in_rounds(tree_of(0), rules(), rounds=0, **fields)
        with pytest.raises(ValueError, match="1 and no masks"):
            prune_in_rounds(tree_of(0), rules(), rounds=2, first=1, **fields)
        with pytest.raises(ValueError, match="a number as its sparsity"):
            prune_in_rounds(tree_of(0), rules(None), rounds=2, **fields)


def params_after(seen):
    return apply_masks(tree_of(0), seen[-1])
