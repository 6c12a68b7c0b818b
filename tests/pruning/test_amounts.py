"""How much goes: thresholds, shares by shape and by sensitivity, rounds; in NumPy."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mask_oracle import LEAVES, rows_of, sites_of, weights_of

from jcompress.allocation import Ranking
from jcompress.errors import MismatchError
from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Layers,
    Prune,
    Unstructured,
    amounts,
    apply_masks,
    make_masks,
    prune,
    thresholds,
)
from jcompress.pruning.amounts import share_by_sensitivity, share_by_shape
from jcompress.pruning.schedules import cubic_schedule
from jcompress.pruning.scores import score_by_synflow
from jcompress.pruning.thresholds import Relative, Threshold
from jcompress.pruning.training import prune_in_rounds
from jcompress.sites import find_sites

pytestmark = pytest.mark.once

TREE = {name: LEAVES[name] for name in ("conv", "dense", "layers")}
SITES = sites_of(**TREE)


def above(weights, pattern, leaves, value, relative, *, together):
    """The masks of several leaves by loops: what is not below the threshold."""
    masks = {path: np.zeros(w.shape, bool) for path, w in weights.items()}
    rows = {
        path: [
            [np.mean([abs(weights[path][i]) for i in group]) for group in row]
            for row in rows_of(pattern, leaf)
        ]
        for path, leaf in leaves.items()
    }
    sets = [list(leaves)] if together else [[path] for path in leaves]
    for paths in sets:
        every = np.concatenate([np.ravel(rows[path]) for path in paths])
        unit = {
            Relative.ONE: 1.0,
            Relative.DEVIATION: np.sqrt(np.mean(every**2)),
            Relative.MAXIMUM: every.max(),
        }[relative]
        for path in paths:
            pairs = zip(rows[path], rows_of(pattern, leaves[path]), strict=True)
            for scores, groups in pairs:
                stays = [score >= value * unit for score in scores]
                if len(paths) == 1 and not any(stays):
                    stays[max(range(len(scores)), key=lambda g: (scores[g], g))] = True
                for group, stay in zip(groups, stays, strict=True):
                    for i in group:
                        masks[path][i] = stay
    return masks


@pytest.mark.parametrize("relative", list(Relative))
@pytest.mark.parametrize("pattern", [Unstructured(), Block((2, 4)), Channels()])
@pytest.mark.parametrize("ranking", [Ranking.UNIFORM, Ranking.GLOBAL])
def test_thresholds_equal_the_oracle(relative, pattern, ranking):
    weights = {name: weights_of(leaf[0], "distinct") for name, leaf in TREE.items()}
    weights["dense"] = weights_of(TREE["dense"][0], "ties")
    scores = {n: jnp.asarray(np.abs(w), jnp.float32) for n, w in weights.items()}
    everything = np.concatenate([np.ravel(w) for w in weights.values()])
    unit = {Relative.ONE: np.abs(everything).max()}.get(relative, 1.0)
    schedule = optax.linear_schedule(0.0, float(unit), 4)

    def spec(value):
        threshold = Threshold(value, relative_to=relative)
        return [(..., Prune(pattern=pattern, threshold=threshold, ranking=ranking))]

    traced = jax.jit(
        lambda scores, step: make_masks(scores, spec(schedule), sites=SITES, step=step)
    )
    for step in range(5):
        value = unit * step / 4
        wanted = above(
            weights,
            pattern,
            TREE,
            value,
            relative,
            together=ranking is Ranking.GLOBAL,
        )
        eager = make_masks(scores, spec(float(value)), sites=SITES)
        compiled = traced(scores, step)
        for path in TREE:
            np.testing.assert_array_equal(eager[path], wanted[path])
            np.testing.assert_array_equal(compiled[path], wanted[path])


def test_a_threshold_of_the_deviation_is_the_same_in_every_program():
    """On random weights, where a sum in another order would decide otherwise."""
    rng = np.random.default_rng(0)
    leaves = {"a": ((1001, 3), (), (1,), (0,)), "b": ((77, 5), (), (1,), (0,))}
    scores = {
        n: jnp.asarray(np.abs(rng.normal(size=leaf[0])), jnp.float32)
        for n, leaf in leaves.items()
    }
    sites = sites_of(**leaves)
    unit = Threshold(1.0, relative_to=Relative.DEVIATION).unit
    for parts in (["a"], ["a", "b"]):
        rows = [np.asarray(scores[n]) for n in parts]
        host = unit(rows)
        assert host == jax.jit(lambda *rows: unit(list(rows)))(*map(jnp.asarray, rows))
        flat = np.concatenate([r.ravel() for r in rows])
        np.testing.assert_allclose(host, np.sqrt(np.mean(flat**2)), rtol=1e-6)
    threshold = Threshold(0.5, relative_to=Relative.DEVIATION)
    spec = Prune(pattern=Unstructured(), threshold=threshold)
    make = functools.partial(make_masks, rules=[(..., spec)], sites=sites)
    chosen, traced = make(scores), jax.jit(make)(scores)
    for name, score in scores.items():
        np.testing.assert_array_equal(chosen[name], traced[name])
        assert 0.3 < np.mean(np.asarray(chosen[name])) < 0.75, score.shape


def test_a_training_with_a_threshold():
    params = {"w": jnp.asarray(weights_of((8, 6), "distinct"), jnp.float32)}
    sites = sites_of(w=LEAVES["dense"])
    fixed = [(..., Prune(pattern=Unstructured(), threshold=Threshold(3.0)))]
    optimizer = prune(optax.sgd(0.1), fixed, sites=sites)
    state = optimizer.init(params)
    np.testing.assert_array_equal(state.masks["w"], np.abs(params["w"]) >= 3)
    rising = Threshold(
        optax.linear_schedule(0.0, 1.0, 2), relative_to=Relative.DEVIATION
    )
    rules = [(..., Prune(pattern=Unstructured(), threshold=rising))]
    optimizer = prune(optax.sgd(0.0), rules, sites=sites)
    state = optimizer.init(params)
    kept = np.ones((8, 6), bool)
    update = jax.jit(optimizer.update)
    for step in range(3):
        live = np.where(kept, np.abs(params["w"]), 0)
        kept &= live >= step / 2 * np.sqrt(np.mean(live**2))
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(state.masks["w"], kept)
    assert 0 < kept.sum() < 40


class TestBadThresholds:
    @pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
    def test_values(self, value):
        with pytest.raises(ValueError, match="finite number from 0 on") as caught:
            Threshold(value)
        assert not isinstance(caught.value, MismatchError)

    def test_kinds(self):
        with pytest.raises(TypeError, match="the value is '1'"):
            Threshold("1")
        with pytest.raises(TypeError, match="relative_to is 'std'"):
            Threshold(1.0, relative_to="std")
        with pytest.raises(ValueError, match="at most 1"):
            Threshold(1.5, relative_to=Relative.MAXIMUM)
        with pytest.raises(TypeError, match=r"the threshold is 0\.1; use Threshold"):
            Prune(pattern=Unstructured(), threshold=0.1)

    def test_beside_others(self):
        with pytest.raises(ValueError, match="leave one out"):
            Prune(pattern=Unstructured(), sparsity=0.5, threshold=Threshold(0.1))
        with pytest.raises(ValueError, match="leave the threshold out"):
            Prune(pattern=NM(2, 4), threshold=Threshold(0.1))

    def test_schedule_without_step(self):
        spec = Prune(pattern=Unstructured(), threshold=Threshold(lambda step: 0.1))
        with pytest.raises(MismatchError, match="say at which step="):
            make_masks(
                {"w": jnp.ones((8, 6))},
                [(..., spec)],
                sites=sites_of(w=LEAVES["dense"]),
            )


def shape_shares(leaves, sparsity):
    """Erdos-Renyi by removing leaves that would be dense, one after the other."""
    raw, sizes = {}, {}
    for path, (shape, stack, outputs, inputs) in leaves.items():
        window = inputs[:-1] if path == "conv" else ()
        dims = [shape[axis] for axis in window]
        dims.append(np.prod([shape[a] for a in inputs if a not in window]))
        dims.append(np.prod([shape[a] for a in outputs]))
        raw[path], sizes[path] = sum(dims) / np.prod(dims), np.prod(shape)
        del stack
    dense = set()
    while True:
        left = (1 - sparsity) * sum(sizes.values()) - sum(sizes[p] for p in dense)
        eps = left / sum(raw[p] * sizes[p] for p in leaves if p not in dense)
        over = [p for p in leaves if p not in dense and eps * raw[p] > 1]
        if not over:
            break
        dense |= set(over)
    return {p: 0.0 if p in dense else 1 - eps * raw[p] for p in leaves}


LARGE = {
    "big": ((64, 48), (), (1,), (0,)),
    "layers": ((3, 24, 16), (0,), (2,), (1,)),
    "head": ((48, 4), (), (1,), (0,)),
}


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_shares_by_shape_follow_the_equation(sparsity):
    sites = sites_of(**LARGE)
    spec = Prune(pattern=Unstructured())
    shared = share_by_shape([(..., spec)], sites=sites, sparsity=sparsity)
    wanted = shape_shares(LARGE, sparsity)
    assert (wanted["head"] == 0) == (sparsity < 0.9)
    found = {path: one for path, (_, one) in zip(LARGE, shared, strict=True)}
    for path, one in found.items():
        got = 0.0 if one is None else one.sparsity
        np.testing.assert_allclose(got, wanted[path], atol=1e-9)
    scores = {
        p: jnp.asarray(weights_of(leaf[0], "distinct")) for p, leaf in LARGE.items()
    }
    masks = make_masks(
        {p: jnp.abs(s).astype(jnp.float32) for p, s in scores.items()},
        shared,
        sites=sites,
    )
    kept = sum(
        np.prod(LARGE[p][0]) if m is None else int(np.sum(m)) for p, m in masks.items()
    )
    total = sum(np.prod(leaf[0]) for leaf in LARGE.values())
    assert abs(kept - (1 - sparsity) * total) <= 1.5


def test_windows_count_by_themselves():
    def model(params, x):
        y = jax.lax.conv_general_dilated(
            x, params["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.reshape(1, -1) @ params["w"]

    params = {"k": jnp.ones((3, 3, 8, 16)), "w": jnp.ones((16, 40))}
    sites = find_sites(model, params, jnp.ones((1, 3, 3, 8)))
    spec = Prune(pattern=Unstructured(), sparsity=0.7)
    shared = share_by_shape([(..., spec)], sites=sites)
    raw = np.array([(3 + 3 + 8 + 16) / (9 * 8 * 16), (16 + 40) / (16 * 40)])
    sizes = np.array([9 * 8 * 16, 16 * 40])
    eps = 0.3 * sizes.sum() / (raw * sizes).sum()
    np.testing.assert_allclose([one.sparsity for _, one in shared], 1 - eps * raw)


def test_shares_of_a_schedule_add_up_at_each_step():
    schedule = cubic_schedule(final_sparsity=0.9, steps=4)
    sites = sites_of(**LARGE)
    spec = Prune(pattern=Unstructured(), sparsity=schedule)
    shared = share_by_shape([(..., spec)], sites=sites)
    for step in range(6):
        wanted = (
            shape_shares(LARGE, float(schedule(step)))
            if step
            else dict.fromkeys(LARGE, 0.0)
        )
        for path, (_, one) in zip(LARGE, shared, strict=True):
            np.testing.assert_allclose(one.sparsity(step), wanted[path], atol=1e-5)


def test_what_cannot_be_shared_out():
    sites = sites_of(**TREE)
    share = functools.partial(share_by_shape, sites=sites, sparsity=0.5)
    rules = [
        ("conv", Prune(pattern=Unstructured())),
        ("dense", Prune(pattern=NM(2, 4))),
    ]
    with pytest.raises(MismatchError, match=r"rule 1 \('dense'\) has NM\(2, 4\)"):
        share(rules)
    everything = Prune(pattern=Unstructured(), ranking=Ranking.GLOBAL)
    with pytest.raises(MismatchError, match=r"Ranking.GLOBAL, which shares out"):
        share([(..., everything)])
    with pytest.raises(MismatchError, match="there is no total"):
        share([(..., Prune(pattern=Unstructured(), threshold=Threshold(0.1)))])
    with pytest.raises(MismatchError, match="has an array as sparsity"):
        share_by_shape(
            [(..., Prune(pattern=Unstructured()))],
            sites=sites,
            sparsity=jnp.asarray(0.5),
        )


class TestSensitivity:
    """A loss that is told by hand: so much for each weight that went from a leaf."""

    def share(self, prices, sparsity, **options):
        leaves = {"a": ((10, 8), (), (1,), (0,)), "b": ((10, 4), (), (1,), (0,))}
        params = {name: np.ones(leaf[0], np.float32) for name, leaf in leaves.items()}

        def loss(params):
            gone = {name: float(np.sum(params[name] == 0)) for name in prices}
            return sum(price * gone[name] for name, price in prices.items())

        rules = [(..., Prune(pattern=Unstructured(), sparsity=sparsity))]
        shared = share_by_sensitivity(
            loss, params, rules, sites=sites_of(**leaves), **options
        )
        return [0.0 if one is None else one.sparsity for _, one in shared]

    def test_the_cheaper_leaf_gives_first(self):
        levels = (0.25, 0.5, 0.75)
        # 30 of 120: all from the leaf whose weights cost less.
        assert self.share({"a": 1, "b": 100}, 0.25, levels=levels) == [0.5, 0.0]
        assert self.share({"a": 100, "b": 1}, 0.25, levels=levels) == [0.0, 0.75]
        assert self.share({"a": 1, "b": 100}, 0.6, levels=levels) == [0.75, 0.5]

    def test_infeasible_and_bad(self):
        with pytest.raises(MismatchError, match=r"removes 0.8, more than the highest"):
            self.share({"a": 1}, 0.8, levels=(0.5,))
        with pytest.raises(ValueError, match=r"levels are in \[0, 1\)"):
            self.share({"a": 1}, 0.5, levels=(1.0,))
        with pytest.raises(ValueError, match="the loss is nan"):
            self.share({"a": float("nan")}, 0.5)
        with pytest.raises(MismatchError, match="is a schedule; give a number"):
            self.share({"a": 1}, lambda step: 0.5)


ROUNDS = {
    "a": np.float32([[3, 1], [2, 5]]),
    "b": np.float32([[0.01, 0.02], [0.04, 0.03]]),
}


class TestRounds:
    @staticmethod
    def model(params, x):
        return x @ params["a"] @ params["b"]

    def test_rounds_of_synflow_by_hand(self):
        params = {name: jnp.asarray(w) for name, w in ROUNDS.items()}
        x = jnp.ones((1, 2))
        sites = find_sites(self.model, params, x)
        spec = Prune(pattern=Unstructured(), sparsity=0.5, ranking=Ranking.GLOBAL)
        _, masks = prune_in_rounds(
            params,
            [(..., spec)],
            sites=sites,
            rounds=4,
            score=lambda p: score_by_synflow(self.model, p, x),
        )
        kept = {name: np.ones((2, 2), bool) for name in params}
        for number in range(1, 5):
            a, b = (np.where(kept[n], ROUNDS[n], 0) for n in "ab")
            flows = {
                "a": a * b.sum(1)[None, :],
                "b": b * a.sum(0)[:, None],
            }
            line = [
                (flows[n][i] if kept[n][i] else -np.inf, n, i)
                for n in "ab"
                for i in np.ndindex(2, 2)
            ]
            gone = round((1 - 0.5 ** (number / 4)) * 8)
            order = sorted(range(8), key=lambda g: (line[g][0], g))
            for g in order[:gone]:
                kept[line[g][1]][line[g][2]] = False
        for name in params:
            np.testing.assert_array_equal(masks[name], kept[name])
        assert sum(int(np.sum(m)) for m in masks.values()) == 4
        assert all(np.any(m) for m in masks.values())

    def test_what_rounds_need(self):
        params = {name: jnp.asarray(w) for name, w in ROUNDS.items()}
        sites = find_sites(self.model, params, jnp.ones((1, 2)))
        make = functools.partial(prune_in_rounds, params, sites=sites)
        with pytest.raises(ValueError, match="at least one round, not 0"):
            make([(..., Prune(pattern=Unstructured(), sparsity=0.5))], rounds=0)
        with pytest.raises(ValueError, match=r"its sparsity, not Threshold\("):
            make(
                [(..., Prune(pattern=Unstructured(), threshold=Threshold(1.0)))],
                rounds=2,
            )
        with pytest.raises(MismatchError, match="'a'"):
            make(
                [(..., Prune(pattern=Unstructured(), sparsity=0.5))],
                rounds=2,
                score=lambda p: {"b": p["b"]},
            )
        _, masks = make([(..., Prune(pattern=NM(1, 2)))], rounds=2)
        assert [int(np.sum(m)) for m in jax.tree.leaves(masks)] == [2, 2]


def test_nan_weights_and_masks_of_another_kind():
    params = {"w": jnp.ones((8, 6)).at[3, 2].set(jnp.nan)}
    sites = sites_of(w=LEAVES["dense"])
    for pattern in (Unstructured(), Channels()):
        rules = [(..., Prune(pattern=pattern, sparsity=0.5))]
        optimizer = prune(optax.sgd(0.1), rules, sites=sites)
        with pytest.raises(MismatchError, match="prune: the weights of 'w' hold a NaN"):
            optimizer.init(params)
    with pytest.raises(MismatchError, match="the mask of 'w' is float32; masks are"):
        apply_masks(params, {"w": jnp.ones((8, 6))})
    with pytest.raises(MismatchError, match="has 1 stacked layer"):
        make_masks(
            {"w": jnp.ones((8, 6))},
            [(..., Prune(pattern=Layers(), sparsity=0.5))],
            sites=sites,
        )


@pytest.mark.parametrize("module", [amounts, thresholds])
def test_the_examples_run(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
