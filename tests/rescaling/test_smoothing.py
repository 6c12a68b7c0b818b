"""SmoothQuant: its factors, the same function, less error of quantized products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rescaling_models as models

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import Activation, Quantize, Weights, quantize
from jcompress.rescaling import smooth
from jcompress.sites import find_sites
from jcompress.statistics import AbsoluteMax, SecondMoments, observe

X = models.normal(4, 32, models.WIDTH)
BLOCK = models.with_outliers(models.block_params())
ALL: Any = [(..., True)]


def maxima_of(fn: Any, params: Any, x: Any) -> Any:
    return observe(fn, ALL, AbsoluteMax())(params, x)[1]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_factors_are_those_of_the_paper(strength: float) -> None:
    params = models.mlp_params()
    x = np.asarray(X)
    hidden = np.maximum(x @ np.asarray(params["up"]) + np.asarray(params["bias"]), 0)
    data = np.abs(hidden).max((0, 1))
    weight = np.abs(np.asarray(params["down"])).max(1)
    expected = data**strength / weight ** (1 - strength)

    made = smooth(
        models.mlp, params, maxima_of(models.mlp, params, X), X, strength=strength
    )
    np.testing.assert_allclose(made.factors["down"], expected, rtol=1e-5)
    for name, factor in (
        ("down", expected[:, None]),
        ("up", 1 / expected[None]),
        ("bias", 1 / expected),
    ):
        np.testing.assert_allclose(
            made.params[name], np.asarray(params[name]) * factor, rtol=1e-5
        )
    assert made.error < 1e-6
    assert "reads an argument" in made.skipped["up"]
    assert "up stays: " in str(made)
    assert "factors" in str(made)


def test_weights_with_the_same_inputs_have_the_largest_of_their_columns() -> None:
    maxima = maxima_of(models.llama_block, BLOCK, X)
    made = smooth(models.llama_block, BLOCK, maxima, X)
    weight = np.max(
        [np.abs(np.asarray(BLOCK[name])).max((1, 2)) for name in "qkv"], axis=0
    )
    expected = np.sqrt(np.asarray(maxima["q"]) / weight)
    for name in "qkv":
        np.testing.assert_allclose(made.factors[name], expected, rtol=1e-5)
    np.testing.assert_allclose(
        made.params["norm1"], np.asarray(BLOCK["norm1"]) / expected, rtol=1e-5
    )


def test_statistics_follow_without_new_data() -> None:
    statistic = SecondMoments()
    maxima = maxima_of(models.llama_block, BLOCK, X)
    moments = observe(models.llama_block, ALL, statistic)(BLOCK, X)[1]
    made = smooth(models.llama_block, BLOCK, maxima, X)
    now = observe(models.llama_block, ALL, statistic)(made.params, X)[1]
    largest = maxima_of(models.llama_block, made.params, X)
    assert set(made.moments(moments)) == set(now)
    for name, value in made.moments(moments).items():
        np.testing.assert_allclose(value, now[name], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(made.maxima(maxima)[name], largest[name], rtol=1e-3)


def test_each_layer_of_a_scan_has_its_own_factors() -> None:
    params = models.with_outliers(models.block_params(2))
    made = smooth(models.layers, params, maxima_of(models.layers, params, X), X)
    assert made.factors["down"].shape == (2, models.HIDDEN)
    maxima = maxima_of(models.layers, params, X)
    weight = np.abs(np.asarray(params["down"])).max(-1)
    expected = np.sqrt(np.asarray(maxima["down"]) / weight)
    np.testing.assert_allclose(made.factors["down"], expected, rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_planted_outliers_spoil_less_than_half(bits: int) -> None:
    """8-bit activations; channels that are forty times as large as the others."""
    rules = [
        (..., Quantize(weights=Weights(format=Int(bits)), activation=Activation()))
    ]
    made = smooth(models.llama_block, BLOCK, maxima_of(models.llama_block, BLOCK, X), X)
    expected = models.llama_block(BLOCK, X)

    @jax.jit
    def run(params: Any) -> Any:
        return compressed(models.llama_block)(params, X)

    def error(params: Any) -> float:
        sites = find_sites(models.llama_block, params, X)
        return models.relative(run(quantize(params, rules, sites=sites)), expected)

    assert error(made.params) < error(BLOCK) / 2


def test_only_what_has_maxima_decides() -> None:
    maxima = {"down": maxima_of(models.llama_block, BLOCK, X)["down"]}
    made = smooth(models.llama_block, BLOCK, maxima, X)
    assert [group.name for group in made.scaled] == ["down"]
    assert made.skipped["q"] == "maxima has none of it"


def test_what_does_not_fit_raises() -> None:
    params = models.mlp_params()
    maxima = dict(maxima_of(models.mlp, params, X))
    with pytest.raises(ValueError, match="strength=2"):
        smooth(models.mlp, params, maxima, X, strength=2)
    with pytest.raises(MismatchError, match=r"'nothing', which is no weight"):
        smooth(models.mlp, params, {"nothing": maxima["down"]}, X)
    with pytest.raises(MismatchError, match=r"'down' are \[3\], not \[32\]"):
        smooth(models.mlp, params, {"down": jnp.ones(3)}, X)
    with pytest.raises(ValueError, match="not finite"):
        smooth(models.mlp, params, {"down": maxima["down"] * jnp.nan}, X)
    with pytest.raises(MismatchError, match=r"nothing to scale.*an argument"):
        smooth(models.mlp, params, {"up": maxima["up"]}, X)
    with pytest.raises(ValueError, match="an argument has no values"):
        smooth(models.mlp, params, maxima, jax.ShapeDtypeStruct(X.shape, X.dtype))


def test_a_function_that_would_change_raises_and_says_by_how_much() -> None:
    """Beyond what the numbers of a dtype hold, the same function is another one."""

    def model(p: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ p["up"]) @ p["down"]

    params = {"up": jnp.full((2, 2), 1e-30), "down": jnp.full((2, 2), 1e30)}
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match=r"smooth: the outputs (differ by|are)"):
        smooth(model, params, {"down": jnp.array([1e38, 1.0])}, x, strength=1.0)
