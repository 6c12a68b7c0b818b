"""AWQ: the exponent of least error, the same function, less error after rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rescaling_models as models

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    LeastError,
    PerGroup,
    Quantize,
    Weights,
    quantize,
)
from jcompress.rescaling import awq
from jcompress.sites import find_sites
from jcompress.statistics import Means, SecondMoments, observe

X = models.normal(4, 16, models.WIDTH)


def rules_of(bits: int, **more: Any) -> Any:
    return [(..., Quantize(weights=Weights(format=Int(bits), **more)))]


def rounded(weight: np.ndarray, bits: int) -> np.ndarray:
    """To the nearest of symmetric integers, a scale for each output [N, K]."""
    most = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(1, keepdims=True) / most
    return np.clip(np.round(weight / scale), -most, most) * scale


def test_the_exponent_is_that_of_least_error() -> None:
    params, bits, steps = models.mlp_params(), 3, 5
    rules = [("down", rules_of(bits)[0][1])]
    moments = observe(models.mlp, rules, SecondMoments())(params, X)[1]
    means = observe(models.mlp, rules, Means(absolute=True))(params, X)[1]
    means = {path: value.mean for path, value in means.items()}
    weight = np.asarray(params["down"], np.float64).T
    second = np.asarray(moments["down"], np.float64)
    tried = []
    for exponent in np.linspace(0, 1, steps + 1):
        s = np.asarray(means["down"], np.float64) ** exponent
        s = s / np.sqrt(s.max() * s.min())
        error = weight - rounded(weight * s, bits) / s
        tried.append((np.trace(error @ second @ error.T), s))
    expected = min(tried, key=lambda pair: pair[0])[1]
    assert not np.allclose(expected, 1)
    made = awq(models.mlp, params, rules, moments, X, means=means, steps=steps)
    np.testing.assert_allclose(made.factors["down"], expected, rtol=1e-4)
    # The roots of the mean squares are nearly the means.
    near = awq(models.mlp, params, rules, moments, X, steps=steps)
    assert models.relative(near.factors["down"], expected) < 0.5


@pytest.mark.parametrize("bits", [4, 3])
def test_anisotropic_inputs_are_rounded_with_less_error(bits: int) -> None:
    params = models.with_outliers(models.block_params(2))
    rules = rules_of(bits)
    moments = observe(models.layers, rules, SecondMoments())(params, X)[1]
    made = awq(models.layers, params, rules, moments, X, steps=6)
    assert made.factors["q"].shape == (2, models.WIDTH)
    expected = models.layers(params, X)

    @jax.jit
    def run(tree: Any) -> Any:
        return compressed(models.layers)(tree, X)

    def error(tree: Any) -> float:
        sites = find_sites(models.layers, tree, X)
        return models.relative(run(quantize(tree, rules, sites=sites)), expected)

    assert error(made.params) < 0.8 * error(params)


def test_formats_with_groups_have_less_error_on_the_new_moments() -> None:
    params = models.mlp_params()
    rules = rules_of(3, granularity=PerGroup(8))
    moments = observe(models.mlp, rules, SecondMoments())(params, X)[1]
    made = awq(models.mlp, params, rules, moments, X, steps=4)
    sites = find_sites(models.mlp, params, X)

    def error(tree: Any, second: Any) -> float:
        small = quantize(tree, rules, sites=sites)
        error = np.asarray(tree["down"] - small["down"].dense(), np.float64).T
        return float(np.trace(error @ np.asarray(second["down"]) @ error.T))

    now = made.moments(moments)
    assert error(made.params, now) < 0.8 * error(params, moments)


def test_ranges_of_least_error_clip_what_awq_scaled() -> None:
    """On data not seen, and after a search that took the clipping into account."""
    tails = np.random.default_rng(0).standard_t(3, size=(models.WIDTH, models.HIDDEN))
    params = models.with_outliers(models.block_params(2))
    params["up"] = params["up"] * jnp.asarray(1 + np.abs(tails), jnp.float32)[None]
    mix = models.normal(models.WIDTH, models.WIDTH, seed=4) / 4
    x, unseen = (models.normal(8, 16, models.WIDTH, seed=n) @ mix for n in (1, 2))
    sites, errors = find_sites(models.layers, params, x), []
    expected = models.layers(params, unseen)
    for more in ({}, {"range": LeastError()}):
        rules = rules_of(3, granularity=PerGroup(16), **more)
        moments = observe(models.layers, rules, SecondMoments())(params, x)[1]
        made = awq(models.layers, params, rules, moments, x, steps=6)
        small = quantize(made.params, rules, sites=sites, moments=made.moments(moments))
        found = compressed(models.layers)(small, unseen)
        errors.append(models.relative(found, expected))
    assert errors[1] < 0.93 * errors[0]


def test_what_does_not_fit_raises() -> None:
    params = models.mlp_params()
    rules = rules_of(4)
    moments = dict(observe(models.mlp, rules, SecondMoments())(params, X)[1])
    with pytest.raises(ValueError, match="steps=0"):
        awq(models.mlp, params, rules, moments, X, steps=0)
    with pytest.raises(MismatchError, match="moments has none of 'down'"):
        awq(models.mlp, params, rules, {"up": moments["up"]}, X)
    with pytest.raises(MismatchError, match=r"no weight that the rules take.*argument"):
        awq(models.mlp, params, [("up", rules[0][1])], moments, X)
    with pytest.raises(MismatchError, match="means has none of down"):
        awq(models.mlp, params, rules, moments, X, means={"up": jnp.ones(16)})
    with pytest.raises(TypeError, match=r"of 'down' is Quantize"):
        awq(models.mlp, params, [("down", 4)], moments, X)  # type: ignore[list-item]
    only = [(..., Quantize(weights=None, activation=Activation()))]
    with pytest.raises(MismatchError, match="no weight that the rules take"):
        awq(models.mlp, params, only, moments, X)
