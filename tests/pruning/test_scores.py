"""Scores of weights against NumPy: from weights, gradients and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.pruning import Prune, Unstructured, make_masks
from jcompress.pruning.scores import (
    average_fisher,
    average_scores,
    movement,
    score_at_random,
    score_by_fisher,
    score_by_geometric_median,
    score_by_grasp,
    score_by_hessian,
    score_by_magnitude,
    score_by_norm_scale,
    score_by_snip,
    score_by_synflow,
    score_by_taylor,
)
from jcompress.sites import find_sites

rng = np.random.default_rng(0)
W1, W2 = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
X, Y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
PARAMS = {
    "a": {"w": jnp.asarray(W1, jnp.float32), "steps": jnp.array(3)},
    "b": jnp.asarray(W2, jnp.float32),
}


def arrays(*xs):
    return tuple(jnp.asarray(x, jnp.float32) for x in xs)


def model(params, x):
    return (x @ params["a"]["w"]) @ params["b"]


def loss(params, x, y):
    return jnp.sum(jnp.square(model(params, x) - y)) / 2


def gradients(w1, w2, x=X, y=Y):
    """By hand: of |x w1 w2 - y|^2 / 2."""
    error = x @ w1 @ w2 - y
    return x.T @ error @ w2.T, (x @ w1).T @ error


def hessian_times(w1, w2, v1, v2, x=X, y=Y):
    """By hand: the derivative of the gradients along (v1, v2)."""
    error = x @ w1 @ w2 - y
    more = x @ v1 @ w2 + x @ w1 @ v2
    return (
        x.T @ (more @ w2.T + error @ v2.T),
        (x @ v1).T @ error + (x @ w1).T @ more,
    )


G1, G2 = gradients(W1, W2)
GRADS = {"a": {"w": jnp.asarray(G1, jnp.float32)}, "b": jnp.asarray(G2, jnp.float32)}


def check(scores, first, second, rtol=1e-5):
    assert scores["a"].get("steps") is None
    assert scores["a"]["w"].dtype == scores["b"].dtype == jnp.float32
    scale = np.abs(first).max()
    np.testing.assert_allclose(scores["a"]["w"], first, rtol, rtol * scale)
    scale = np.abs(second).max()
    np.testing.assert_allclose(scores["b"], second, rtol, rtol * scale)


def test_scores_from_weights_and_gradients():
    check(score_by_magnitude(PARAMS), np.abs(W1), np.abs(W2))
    check(score_by_magnitude(PARAMS, power=2), W1**2, W2**2)
    check(score_by_magnitude(GRADS), np.abs(G1), np.abs(G2))
    check(score_by_taylor(PARAMS, GRADS), W1 * G1, W2 * G2)
    total = np.abs(W1 * G1).sum() + np.abs(W2 * G2).sum()
    wanted = np.abs(W1 * G1) / total, np.abs(W2 * G2) / total
    check(score_by_snip(PARAMS, GRADS), *wanted)
    check(jax.jit(score_by_snip)(PARAMS, GRADS), *wanted)


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient():
    h1, h2 = hessian_times(W1, W2, G1, G2)
    scored = score_by_grasp(loss, PARAMS, *arrays(X, Y))
    check(scored, W1 * h1, W2 * h2, 1e-4)


def test_fisher_takes_examples_one_by_one():
    squares = [np.zeros_like(W1), np.zeros_like(W2)]
    for x, y in zip(X, Y, strict=True):
        for square, gradient in zip(
            squares, gradients(W1, W2, x[None], y[None]), strict=True
        ):
            square += gradient**2 / len(X)
    scored = score_by_fisher(
        lambda params, example: loss(params, *example), PARAMS, arrays(X, Y)
    )
    check(scored, W1**2 * squares[0] / 2, W2**2 * squares[1] / 2)
    with pytest.raises(MismatchError, match="one leading axis of examples"):
        score_by_fisher(loss, PARAMS, (jnp.ones((2, 3)), jnp.ones((3, 3))))


def test_hessian_is_exact_where_it_is_diagonal_and_near_elsewhere():
    curves = {"w": jnp.array([1.0, -2.0, 3.0])}
    weights = {"w": jnp.array([1.0, 2.0, -1.0])}

    def bowl(params):
        return jnp.sum(curves["w"] * jnp.square(params["w"])) / 2

    scored = score_by_hessian(bowl, weights, key=jax.random.key(0), draws=1)
    np.testing.assert_allclose(scored["w"], [0.5, -4.0, 1.5], rtol=1e-6)

    diagonal = [np.zeros_like(W1), np.zeros_like(W2)]
    for which, weight in enumerate((W1, W2)):
        for place in np.ndindex(*weight.shape):
            along = [np.zeros_like(W1), np.zeros_like(W2)]
            along[which][place] = 1
            diagonal[which][place] = hessian_times(W1, W2, *along)[which][place]
    draws = jax.jit(
        lambda key: score_by_hessian(loss, PARAMS, *arrays(X, Y), key=key, draws=2000)
    )(jax.random.key(1))
    check(draws, W1**2 * diagonal[0] / 2, W2**2 * diagonal[1] / 2, 0.2)
    with pytest.raises(ValueError, match="draws is at least 1"):
        score_by_hessian(bowl, weights, key=jax.random.key(0), draws=0)


def test_synflow_counts_the_paths_through_each_weight():
    first, second = np.abs(W1), np.abs(W2)
    wanted1 = np.zeros_like(first)
    wanted2 = np.zeros_like(second)
    for i in range(3):
        for j in range(4):
            for k in range(2):
                path = first[i, j] * second[j, k]
                wanted1[i, j] += path
                wanted2[j, k] += path
    x = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    check(score_by_synflow(model, PARAMS, x), wanted1, wanted2)
    with pytest.raises(MismatchError, match="not finite"):
        score_by_synflow(model, {**PARAMS, "b": jnp.full((4, 2), 3e38)}, x)
    with pytest.raises(MismatchError, match="hold no floats"):
        score_by_synflow(lambda p, x: jnp.argmax(model(p, x)), PARAMS, x)


def test_random_scores_have_a_key_and_differ_by_leaf():
    tree = {"a": jnp.zeros((4, 4)), "b": jnp.zeros((4, 4)), "n": jnp.arange(2)}
    scored = score_at_random(tree, key=jax.random.key(0))
    again = score_at_random(tree, key=jax.random.key(0))
    other = score_at_random(tree, key=jax.random.key(1))
    np.testing.assert_array_equal(scored["a"], again["a"])
    assert not np.any(np.isin(scored["a"], np.asarray(other["a"])))
    assert not np.any(np.isin(scored["a"], np.asarray(scored["b"])))
    assert scored["n"] is None
    assert 0 <= scored["a"].min() < scored["a"].max() < 1


def test_geometric_median_sums_the_distances_between_channels():
    kernel = rng.normal(size=(2, 2, 3, 5)).astype(np.float32)
    kernel[..., 4] = kernel[..., 0]

    def conv(params, x):
        return jax.lax.conv_general_dilated(
            x, params["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    params = {"k": jnp.asarray(kernel), "bias": jnp.ones(5)}
    sites = find_sites(conv, params, jnp.ones((1, 4, 4, 3)))
    scored = score_by_geometric_median(params, sites=sites)
    assert scored["bias"] is None
    for channel in range(5):
        wanted = sum(
            np.sqrt(np.sum((kernel[..., channel] - kernel[..., other]) ** 2))
            for other in range(5)
        )
        np.testing.assert_allclose(scored["k"][..., channel], wanted, rtol=1e-3)
    with pytest.raises(MismatchError, match="holds no weight of the sites"):
        score_by_geometric_median({"v": jnp.ones(3)}, sites=sites)


def test_norm_scales_have_a_say_by_name():
    params = {"norm": {"scale": jnp.array([-2.0, 0.5]), "bias": jnp.ones(2)}}
    scored = score_by_norm_scale(params)
    assert scored["norm"]["scale"].tolist() == [2.0, 0.5]
    assert scored["norm"]["bias"] is None
    scored = score_by_norm_scale(params, scales="norm/b*")
    assert scored["norm"]["scale"] is None
    with pytest.raises(
        MismatchError, match="no leaf of floats is named '\\*\\*/gamma'"
    ):
        score_by_norm_scale(params, scales="**/gamma")


def test_scores_of_a_training_follow_their_equations():
    weights = {"w": np.array([1.0, -2.0, 0.5]), "v": np.array([[3.0]])}
    steps = [{"w": rng.normal(size=3), "v": rng.normal(size=(1, 1))} for _ in range(3)]
    scores = {
        "movement": movement(),
        "taylor": average_scores(score_by_snip, decay=0.5),
        "fisher": average_fisher(decay=0.5),
    }
    params = {name: jnp.asarray(w, jnp.float32) for name, w in weights.items()}
    states = {name: score.init(params) for name, score in scores.items()}
    wanted = {
        name: {n: np.zeros_like(w) for n, w in weights.items()} for name in scores
    }
    for grads in steps:
        given = {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}
        total = sum(np.abs(weights[n] * grads[n]).sum() for n in weights)
        for name, score in scores.items():
            states[name] = jax.jit(score.update)(given, states[name], params)
        for n, g in grads.items():
            w = weights[n]
            wanted["movement"][n] -= w * g
            share = np.abs(w * g) / total
            wanted["taylor"][n] = wanted["taylor"][n] / 2 + share / 2
            wanted["fisher"][n] = wanted["fisher"][n] / 2 + g**2 / 2
    for n, w in weights.items():
        wanted["fisher"][n] = wanted["fisher"][n] * w**2 / 2
        for name, score in scores.items():
            got = score.score(states[name], params)[n]
            np.testing.assert_allclose(got, wanted[name][n], rtol=1e-5)
    with pytest.raises(ValueError, match=r"decay is in \[0, 1\)"):
        average_scores(score_by_snip, decay=1.0)


def test_any_function_of_ones_own_is_a_score():
    sites = find_sites(model, PARAMS, jnp.ones((1, 3)))
    rules = [("b", Prune(pattern=Unstructured(), sparsity=0.5))]
    scores = jax.tree.map(lambda w: jnp.sin(w.astype(jnp.float32)), PARAMS)
    mask = make_masks(scores, rules, sites=sites)["b"]
    order = np.argsort(np.sin(W2.astype(np.float32)).reshape(-1), kind="stable")
    np.testing.assert_array_equal(
        np.asarray(mask).reshape(-1)[order], np.arange(8) >= 4
    )


def test_scores_without_their_data():
    with pytest.raises(MismatchError, match="score_by_taylor: 'b' has no gradient"):
        score_by_taylor(PARAMS, {"a": GRADS["a"]})
    with pytest.raises(MismatchError, match=r"'b' is \[4, 2\] in the parameters and"):
        score_by_snip(PARAMS, {**GRADS, "b": jnp.ones((2, 4))})
    with pytest.raises(MismatchError, match="holds no array of floats"):
        score_at_random({"n": jnp.arange(3)}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="power is 1 or 2, not 3"):
        score_by_magnitude(PARAMS, power=3)
