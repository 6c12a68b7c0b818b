"""Bias correction: the means of all layers come back, whatever holds the bias."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.correction import biases, correct_biases
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import PerTensor, Quantize, Weights, quantize
from jcompress.sites import find_sites
from jcompress.statistics import Output, tap

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def model(p: Any, x: Any) -> Any:
    """A convolution, a product with several output axes, one that is scaled first."""
    y = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.nn.relu(y + p["b"].reshape(1, 1, 1, 4)).reshape(len(x), -1)
    y = jax.nn.relu(jnp.einsum("bk,khd->bhd", y, p["heads"]) - p["h"][None])
    y = 3 * (y.reshape(len(x), -1) @ p["last"]) + p["c"][None]
    return y @ p["none"]


PARAMS = {
    "conv": normal(3, 3, 2, 4) / 4,
    "b": normal(4),
    "heads": normal(64, 2, 3) / 8,
    "h": normal(2, 3),
    "last": normal(6, 5),
    "c": normal(5),
    "none": normal(5, 2),
}
BATCHES = [(1 + normal(16, 4, 4, 2),) for _ in range(2)]
RULES = [(..., Quantize(weights=Weights(format=Int(2), granularity=PerTensor())))]


def test_the_means_after_each_bias_come_back() -> None:
    sites = find_sites(model, PARAMS, *BATCHES[0])
    small = quantize(PARAMS, RULES, sites=sites)
    made = correct_biases(model, PARAMS, small, BATCHES)
    changed = [n for n in PARAMS if made[n] is not small[n]]
    assert sorted(changed) == ["b", "c", "h"]
    places = [Output(name) for name in "bhc"]
    run = jax.jit(tap(model, places))
    runs = jax.jit(compressed(tap(model, places)))

    def means(run: Any, params: Any) -> list[Any]:
        values = [run(params, *batch)[1] for batch in BATCHES]
        both = jax.tree.map(lambda *x: jnp.concatenate(x), *values)
        each = [next(iter(place.values())) for place in both]
        return [np.asarray(x).mean(tuple(range(x.ndim - k))) for x, k in
                zip(each, (1, 2, 1), strict=True)]  # fmt: skip

    wanted, before, after = (
        means(*given) for given in ((run, PARAMS), (runs, small), (runs, made))
    )
    for one, two, three in zip(wanted, before, after, strict=True):
        assert np.abs(one - two).max() > 0.02
        np.testing.assert_allclose(three, one, atol=1e-4)


def test_what_has_no_bias_is_told() -> None:
    def plain(p: Any, x: Any) -> Any:
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, p["stack"])
        return x @ p["w"] + p["b"][None] * p["s"][None]

    params = {
        "stack": normal(2, 4, 4),
        "w": normal(4, 3),
        "b": normal(3),
        "s": normal(3),
    }
    x = normal(5, 4)
    sites = find_sites(plain, params, x)
    small = quantize(params, RULES, sites=sites)
    with pytest.raises(MismatchError, match=r"stack: it is in .* a loop.*w: no leaf"):
        correct_biases(plain, params, small, [(x,)])
    with pytest.raises(MismatchError, match="No leaf of `small` is compressed"):
        correct_biases(plain, params, params, [(x,)])
    with pytest.raises(ValueError, match="batches is empty"):
        correct_biases(plain, params, small, [])


def test_the_example_runs() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(biases)
    assert attempted
    assert not failed
