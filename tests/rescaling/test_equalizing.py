"""Cross-layer equalisation: equal ranges, the same function, less error per tensor."""

from typing import Any

import jax
import numpy as np
import pytest
import rescaling_models as models

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import PerTensor, Quantize, Weights, quantize
from jcompress.rescaling import equalize
from jcompress.sites import find_sites


def test_one_pair_in_closed_form() -> None:
    params = models.mlp_params()
    x = models.normal(4, models.WIDTH)
    made = equalize(models.mlp, params, x)
    first = np.abs(np.asarray(params["up"])).max(0)
    second = np.abs(np.asarray(params["down"])).max(1)
    factor = np.sqrt(first / second)
    np.testing.assert_allclose(made.factors["down"], factor, rtol=1e-5)
    np.testing.assert_allclose(
        made.params["bias"], np.asarray(params["bias"]) / factor, rtol=1e-5
    )
    both = np.sqrt(first * second)
    np.testing.assert_allclose(np.abs(made.params["up"]).max(0), both, rtol=1e-5)
    np.testing.assert_allclose(np.abs(made.params["down"]).max(1), both, rtol=1e-5)


def test_convolutions_settle_at_equal_ranges_and_round_with_less_error() -> None:
    params, x = models.convolution_params(), models.images()
    made = equalize(models.convolutions, params, x)
    (group,) = made.scaled
    assert set(group.producers) == {"first", "bias", "deep"}
    first, deep = (
        np.abs(np.asarray(made.params[name])).max((0, 1, 2))
        for name in ("first", "deep")
    )
    last = np.abs(np.asarray(made.params["last"])).max((0, 1, 3))
    np.testing.assert_allclose(first, last, rtol=1e-3)
    np.testing.assert_allclose(deep, last, rtol=1e-3)
    rules = [(..., Quantize(weights=Weights(format=Int(8), granularity=PerTensor())))]
    expected = models.convolutions(params, x)

    @jax.jit
    def run(tree: Any) -> Any:
        return compressed(models.convolutions)(tree, x)

    def error(tree: Any) -> float:
        sites = find_sites(models.convolutions, tree, x)
        return models.relative(run(quantize(tree, rules, sites=sites)), expected)

    assert error(made.params) < error(params) / 2


def test_chains_converge() -> None:
    def chain(p: Any, x: jax.Array) -> jax.Array:
        for name in "abc":
            x = jax.nn.relu(x @ p[name])
        return x @ p["d"]

    sizes = np.exp2(np.arange(8) - 4)[None].astype(np.float32)
    params = {
        name: models.normal(8, 8, seed=n) * sizes for n, name in enumerate("abcd")
    }
    made = equalize(chain, params, models.normal(3, 8))
    for before, behind in ("ab", "bc", "cd"):
        np.testing.assert_allclose(
            np.abs(made.params[before]).max(0),
            np.abs(made.params[behind]).max(1),
            rtol=1e-3,
        )


def test_a_norm_is_no_neighbour() -> None:
    x = models.normal(2, 4, models.WIDTH)
    made = equalize(models.llama_block, models.block_params(), x)
    assert {group.name for group in made.scaled} == {"down", "o"}
    assert made.skipped["q"] == "no product stands before it, only norm1"
    with pytest.raises(MismatchError, match=r"no weight.*only scale"):
        equalize(
            lambda p, x: models.rms_norm(x, p["scale"]) @ p["w"],
            {"scale": models.normal(4), "w": models.normal(4, 4)},
            models.normal(2, 4),
        )
    with pytest.raises(ValueError, match="iterations=0"):
        equalize(models.mlp, models.mlp_params(), x, iterations=0)
