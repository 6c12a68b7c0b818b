"""Scores from activations against NumPy, on dense, convolved and scanned weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.pruning import Channels, Prune, make_masks
from jcompress.pruning.scores import (
    score_by_activations,
    score_by_norm_scale,
    score_by_permutation,
    score_by_positive_share,
)
from jcompress.shrinking import find_groups, score_units, spread_units
from jcompress.sites import find_sites
from jcompress.statistics import (
    AbsoluteMax,
    Count,
    DiagonalMoments,
    Histogram,
    Means,
    Several,
    Zeros,
    observe,
)

rng = np.random.default_rng(0)
W1 = rng.normal(size=(3, 6)).astype(np.float32)
W2 = rng.normal(size=(6, 2, 2)).astype(np.float32)
X = rng.normal(size=(40, 3)).astype(np.float32)
PARAMS = {"a": jnp.asarray(W1), "b": jnp.asarray(W2), "bias": jnp.ones(6) / 4}


def model(params, x):
    hidden = jax.nn.relu(x @ params["a"] + params["bias"][None])
    return jnp.einsum("bi,ihd->bhd", hidden, params["b"])


SITES = find_sites(model, PARAMS, jnp.asarray(X))
HIDDEN = np.maximum(X @ W1 + 0.25, 0)


def seen(statistic, *, outputs=False, leaf="b"):
    observed = observe(model, [(leaf, True)], statistic, outputs=outputs)
    half = len(X) // 2
    return (
        observed(PARAMS, jnp.asarray(X[:half]))[1]
        + observed(PARAMS, jnp.asarray(X[half:]))[1]
    )


def entropy(column, low, high, bins):
    counts = np.zeros(bins)
    for x in column:
        place = int(np.floor((x - low) * bins / (high - low)))
        counts[min(max(place, 0), bins - 1)] += 1
    shares = counts[counts > 0] / counts.sum()
    return -np.sum(shares * np.log(shares))


@pytest.mark.parametrize(
    ("statistic", "wanted"),
    [
        (Means(), lambda h: h.mean(0)),
        (Means(absolute=True), lambda h: np.abs(h).mean(0)),
        (AbsoluteMax(), lambda h: np.abs(h).max(0)),
        (Several(Means(), DiagonalMoments()), lambda h: h.var(0)),
        (Zeros(), lambda h: np.mean(h != 0, axis=0)),
        (Zeros(below=0.5), lambda h: np.mean(np.abs(h) > 0.5, axis=0)),
        (
            Histogram(low=0, high=2, bins=8, each=True),
            lambda h: [entropy(column, 0, 2, 8) for column in h.T],
        ),
    ],
)
def test_activations_of_the_units_that_a_leaf_reads(statistic, wanted):
    scored = score_by_activations(seen(statistic), PARAMS, sites=SITES)
    assert scored["a"] is None
    assert scored["b"].dtype == jnp.float32
    spread = np.broadcast_to(np.reshape(wanted(HIDDEN), (6, 1, 1)), (6, 2, 2))
    np.testing.assert_allclose(scored["b"], spread, rtol=1e-4, atol=1e-6)


def test_activations_of_the_units_that_a_leaf_makes():
    observed = seen(Means(), outputs=True, leaf="a")
    scored = score_by_activations(observed, PARAMS, sites=SITES, outputs=True)
    spread = np.broadcast_to((X @ W1).mean(0)[None], (3, 6))
    np.testing.assert_allclose(scored["a"], spread, rtol=1e-4, atol=1e-6)
    with pytest.raises(MismatchError, match=r"'a' is \[6\], not \[3\]; pass outputs"):
        score_by_activations(observed, PARAMS, sites=SITES)


def test_unit_scores_are_the_activations_and_go_back_to_the_makers():
    scored = score_by_activations(seen(Means()), PARAMS, sites=SITES)
    groups = find_groups(model, PARAMS, jnp.asarray(X))
    units = score_units(groups, scored, mean=True)
    (name,) = units
    np.testing.assert_allclose(units[name], HIDDEN.mean(0), rtol=1e-5)
    spread = spread_units(groups, units)
    assert list(spread) == ["a"]
    np.testing.assert_allclose(
        spread["a"], np.broadcast_to(HIDDEN.mean(0), (3, 6)), rtol=1e-5
    )
    rules = [("a", Prune(pattern=Channels(), sparsity=0.5))]
    mask = make_masks(spread, rules, sites=SITES)["a"]
    least = np.argsort(HIDDEN.mean(0), kind="stable")[:3]
    np.testing.assert_array_equal(
        ~mask, np.isin(np.arange(6), least)[None].repeat(3, 0)
    )
    with pytest.raises(MismatchError, match=r"6 units and scores of the shape \[2\]"):
        spread_units(groups, {name: np.ones(2)})
    with pytest.raises(MismatchError, match="no weight makes the units of no group"):
        spread_units(groups, {})


def test_scales_of_a_norm_choose_channels():
    params = {"w": jnp.ones((3, 4)), "scale": jnp.array([3.0, -1.0, 2.0, 0.5])}
    params["out"] = jnp.ones((4, 2))

    def normed(params, x):
        return (x @ params["w"] * params["scale"][None]) @ params["out"]

    groups = find_groups(normed, params, jnp.ones((2, 3)))
    units = score_units(groups, score_by_norm_scale(params, scales="scale"))
    spread = spread_units(groups, units)["w"]
    np.testing.assert_array_equal(spread, np.float32([[3, 1, 2, 0.5]]).repeat(3, 0))


def conv(params, x):
    return jax.lax.conv_general_dilated(
        x,
        params["k"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=params["k"].shape[3] // 3
        if params["k"].shape[2] == 1
        else 1,
    )


def test_patches_of_a_grouped_convolution():
    kernel = rng.normal(size=(2, 2, 1, 6)).astype(np.float32)
    data = rng.normal(size=(2, 3, 3, 2)).astype(np.float32)
    params = {"k": jnp.asarray(kernel)}
    sites = find_sites(conv, params, jnp.asarray(data))
    observed = observe(conv, [(..., True)], Means())(params, jnp.asarray(data))[1]
    scored = score_by_activations(observed, params, sites=sites)["k"]
    for i, j, _, n in np.ndindex(kernel.shape):
        wanted = data[:, i : i + 2, j : j + 2, n // 3].mean()
        np.testing.assert_allclose(scored[i, j, 0, n], wanted, rtol=1e-4)


def test_share_of_the_positive_input():
    both = Several(Means(), Means(absolute=True))
    for leaf, data, weights in (("a", X, W1), ("b", HIDDEN, W2.reshape(6, 4))):
        scored = score_by_positive_share(
            PARAMS,
            inputs=seen(both, leaf=leaf),
            outputs=seen(both, leaf=leaf, outputs=True),
            sites=SITES,
        )[leaf].reshape(weights.shape)
        for j, i in np.ndindex(weights.shape):
            part = sum(max(weights[j, i] * x[j], 0) for x in data)
            whole = sum(max(x @ weights[:, i], 0) for x in data)
            wanted = part / whole if whole else 0
            np.testing.assert_allclose(scored[j, i], wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(MismatchError, match="observe both with the same rules"):
        score_by_positive_share(
            PARAMS,
            inputs=seen(both, leaf="a"),
            outputs=seen(both, outputs=True),
            sites=SITES,
        )
    turned = {"a": PARAMS["a"].astype(jnp.complex64)}
    with pytest.raises(MismatchError, match="'a' holds complex numbers"):
        score_by_positive_share(
            turned,
            inputs=seen(both, leaf="a"),
            outputs=seen(both, leaf="a", outputs=True),
            sites=SITES,
        )
    with pytest.raises(TypeError, match="inputs is Means"):
        score_by_positive_share(
            PARAMS, inputs=seen(Means()), outputs=seen(Means()), sites=SITES
        )


def test_what_was_observed_is_no_score():
    with pytest.raises(TypeError, match=r"Count\(\) is no score of a unit"):
        score_by_activations(seen(Count()), PARAMS, sites=SITES)
    with pytest.raises(MismatchError, match="'b' was observed and is not in the tree"):
        score_by_activations(seen(Means()), {"a": PARAMS["a"]}, sites=SITES)


class TestPermutation:
    """The metric is minus the squared error, so that NumPy can shuffle by itself."""

    @staticmethod
    def metric(params, x, y):
        return -jnp.mean(jnp.square(model(params, x) - y))

    def test_drop_and_spread_of_every_unit(self):
        wanted = np.einsum("bi,ihd->bhd", HIDDEN, W2)
        key, repeats = jax.random.key(3), 4
        drop, spread = score_by_permutation(
            self.metric,
            [("b", True)],
            PARAMS,
            jnp.asarray(X),
            jnp.asarray(wanted),
            key=key,
            repeats=repeats,
        )
        assert drop["a"] is None
        keys = jax.random.split(jax.random.fold_in(key, 0), repeats)
        orders = [np.asarray(jax.random.permutation(k, len(X))) for k in keys]
        for unit in range(6):
            drops = []
            for order in orders:
                shuffled = HIDDEN.copy()
                shuffled[:, unit] = shuffled[order, unit]
                got = np.einsum("bi,ihd->bhd", shuffled, W2)
                drops.append(np.mean((got - wanted) ** 2))
            np.testing.assert_allclose(drop["b"][unit], np.mean(drops), rtol=1e-3)
            np.testing.assert_allclose(spread["b"][unit], np.std(drops), rtol=1e-3)

    def test_a_unit_without_weights_changes_nothing_in_any_layer(self):
        weights = rng.normal(size=(3, 4, 4)).astype(np.float32)
        weights[1, 2] = 0

        def scanned(params, x):
            out, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])
            return -jnp.sum(jnp.square(out - x))

        params = {"w": jnp.asarray(weights)}
        x = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
        drop, _ = score_by_permutation(
            scanned, [(..., True)], params, x, key=jax.random.key(0), repeats=2
        )
        silent = np.abs(drop["w"]) < 1e-6
        np.testing.assert_array_equal(silent, weights == 0)

    def test_channels_of_a_convolution_and_inputs_in_two_axes(self):
        kernel = rng.normal(size=(2, 2, 3, 2)).astype(np.float32)
        kernel[:, :, 1] = 0
        out = rng.normal(size=(2, 2, 5)).astype(np.float32)
        out[1, 0] = 0
        params = {"k": jnp.asarray(kernel), "out": jnp.asarray(out)}

        def attention(params, x):
            heads = jnp.square(x.reshape(6, 2, 2))
            return -jnp.sum(jnp.square(jnp.einsum("bhd,hdo->bo", heads, params["out"])))

        x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
        drop, _ = score_by_permutation(
            attention, [("out", True)], params, x, key=jax.random.key(0), repeats=2
        )
        np.testing.assert_array_equal(np.abs(drop["out"]) < 1e-6, out == 0)
        x = jnp.asarray(rng.normal(size=(6, 3, 3, 3)), jnp.float32)
        drop, _ = score_by_permutation(
            lambda p, x: -jnp.sum(jnp.square(jnp.square(conv(p, x)).mean((1, 2)))),
            [("k", True)],
            params,
            x,
            key=jax.random.key(0),
            repeats=2,
        )
        np.testing.assert_array_equal(np.abs(drop["k"]) < 1e-6, kernel == 0)

    def test_what_cannot_be_shuffled(self):
        params, x = {"k": jnp.ones((2, 2, 1, 6))}, jnp.ones((2, 3, 3, 2))
        rules = [(..., True)]
        with pytest.raises(MismatchError, match=r"'k' reads .*: it is a grouped"):
            score_by_permutation(
                lambda p, x: conv(p, x).sum(), rules, params, x, key=jax.random.key(0)
            )
        with pytest.raises(MismatchError, match="metric gives one number"):
            score_by_permutation(
                model, [("b", True)], PARAMS, jnp.asarray(X), key=jax.random.key(0)
            )
        with pytest.raises(ValueError, match="repeats is at least 1"):
            score_by_permutation(
                model, rules, PARAMS, jnp.asarray(X), key=jax.random.key(0), repeats=0
            )
