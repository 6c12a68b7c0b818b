"""Convolutions and max pools keep integers between them, and the same results.

What is tested: the numbers are those without, but for some that lie in the middle of
two integers up to the rounding of float32; so are gradients; where integers cannot
stand between two of them, floats do; what is rounded for all who read it is what
`fake_quant` makes of it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.calibration import Static
from jcompress.execution import Fusion, compressed, inspect
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerRow,
    Quantize,
    calibrate,
    fake_quant,
    init_ranges,
    quantize,
)
from jcompress.sites import find_sites

Model = Callable[[Any, jax.Array], jax.Array]
STATIC = Activation(range=MovingAverage(decay=0.9))
STORED = "its result in"


def normal(*shape: int, seed: int) -> jax.Array:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers.astype(np.float32)) * np.float32(0.2)


PARAMS = {
    "wide": normal(1, 1, 16, 64, seed=0),
    "each": normal(3, 3, 1, 64, seed=1) * 4,
    "thin": normal(1, 1, 64, 16, seed=2),
    "wide_bias": normal(64, seed=3),
    "each_bias": normal(64, seed=4),
}
X = normal(2, 12, 14, 16, seed=5) * 10


def conv(x: jax.Array, kernel: jax.Array, **given: Any) -> Any:
    given = {"window_strides": (1, 1), "padding": "SAME", **given}
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **given)


def bias(p: Any, name: str) -> Any:
    return p[f"{name}_bias"][None, None, None]


def block(p: Any, x: jax.Array) -> jax.Array:
    """MobileNetV2's: wider, each channel for itself, thinner, added."""
    y = jax.nn.relu6(conv(x, p["wide"]) + bias(p, "wide"))
    y = conv(y, p["each"], feature_group_count=64, window_strides=(1, 1))
    y = jax.nn.relu6(y + bias(p, "each"))
    return x + conv(y, p["thin"])


def small_tree(model: Model, activation: Activation, params: Any = PARAMS) -> Any:
    rules = [(..., Quantize(activation=activation))]
    ranges = None
    if activation.range is not None:
        ranges = init_ranges(model, rules, params, X)
        for image in X:
            _, ranges = calibrate(model, rules)(params, ranges, image[None])
    sites = find_sites(model, params, X)
    return quantize(params, rules, sites=sites, ranges=ranges)


def stored(model: Model, small: Any, x: jax.Array = X) -> list[str]:
    return [use.path for use in inspect(model, small, x) if STORED in use.why]


def both(model: Model) -> tuple[Any, Any]:
    """With integers between convolutions, and with each convolution alone."""
    return compressed(model), compressed(model, without={Fusion.AFTER_PRODUCTS})


def nearly_the_same(got: Any, wanted: Any) -> None:
    """The same but where a number between two integers fell to the other one."""
    scale = float(jnp.abs(wanted).max())
    off = jnp.abs(got - wanted)
    assert jnp.mean(off > 1e-6 * scale) < 0.02
    assert off.max() < 0.05 * scale


@pytest.mark.bits
@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_same_numbers(bits: int, symmetric: bool) -> None:
    format = Int(bits, symmetric=symmetric)
    activation = Activation(format=format, range=MovingAverage(decay=0.9))
    small = small_tree(block, activation)
    assert stored(block, small) == ["wide", "each"]
    chained, alone = both(block)
    got = jax.jit(chained)(small, X)
    nearly_the_same(got, jax.jit(alone)(small, X))
    # Beyond the ranges, too.
    nearly_the_same(chained(small, X * 9), alone(small, X * 9))
    dense = block(PARAMS, X)
    assert jnp.abs(got - dense).max() < jnp.abs(dense).max() * (
        0.02 if bits == 8 else 1
    )


def test_gradients_are_those_of_floats_between() -> None:
    small = small_tree(block, STATIC)

    def gradients(run: Model) -> Any:
        def loss(x: jax.Array, biases: Any) -> jax.Array:
            return jnp.sum(jnp.sin(run({**small, **biases}, x)))

        biases = {name: PARAMS[name] for name in ("wide_bias", "each_bias")}
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(X * 2, biases)

    found = [jax.tree.leaves(gradients(run)) for run in both(block)]
    for got, wanted in zip(*found, strict=True):
        assert jnp.abs(wanted).max() > 0.1
        # A sum over all positions feels each number that fell to the other integer.
        assert jnp.abs(got - wanted).max() < 0.01 * jnp.abs(wanted).max()


def test_composes() -> None:
    small = small_tree(block, STATIC)
    chained, _ = both(block)
    wanted = chained(small, X)
    mapped = jax.jit(jax.vmap(lambda x: chained(small, x[None])[0]))(X)
    np.testing.assert_allclose(mapped, wanted, atol=1e-5)
    kept = jax.jit(jax.checkpoint(chained))(small, X)
    np.testing.assert_allclose(kept, wanted, atol=1e-5)


def scanned(p: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (jnp.tanh(block(p, x)), None), x, length=2)[0]


def test_within_a_scan() -> None:
    small = small_tree(scanned, STATIC)
    assert stored(scanned, small) == ["wide", "each"]
    chained, alone = both(scanned)
    np.testing.assert_allclose(chained(small, X), alone(small, X), atol=1e-5)


def twice_read(p: Any, x: jax.Array) -> jax.Array:
    y = jax.nn.relu(conv(x, p["wide"]))
    return conv(y, p["thin"]) + y[..., :16]


def pooled(p: Any, x: jax.Array) -> jax.Array:
    y = jax.nn.relu(conv(x, p["wide"]))
    y = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    return conv(y, p["thin"])


def returned(p: Any, x: jax.Array) -> Any:
    y = conv(x, p["wide"])
    return y, conv(y, p["thin"])


def half(p: Any, x: jax.Array) -> jax.Array:
    y = conv(x.astype(jnp.bfloat16), p["wide"].astype(jnp.bfloat16))
    return conv(y, p["thin"].astype(jnp.bfloat16))


@pytest.mark.parametrize("model", [twice_read, pooled, returned, half])
def test_floats_where_others_read_the_result(model: Any) -> None:
    leaves = {name: PARAMS[name] for name in ("wide", "thin")}
    small = small_tree(model, STATIC, leaves)
    assert stored(model, small) == []
    results = [jax.tree.leaves(run(small, X)) for run in both(model)]
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-2 if model is half else 1e-5)


@pytest.mark.parametrize(
    "activation",
    [Activation(granularity=PerRow()), Activation(format=Int(16)), None],
)
def test_floats_where_no_range_is_known(activation: Activation | None) -> None:
    rules = [(..., Quantize(activation=activation))]
    small = quantize(PARAMS, rules, sites=find_sites(block, PARAMS, X))
    assert stored(block, small) == []


def test_weights_of_the_first_alone() -> None:
    """A convolution of floats can store integers for one that takes them."""
    rules: Any = [
        ("wide", Quantize()),
        (..., Quantize(activation=STATIC)),
    ]
    ranges = init_ranges(block, rules, PARAMS, X)
    _, ranges = calibrate(block, rules)(PARAMS, ranges, X)
    sites = find_sites(block, PARAMS, X)
    small = quantize(PARAMS, rules, sites=sites, ranges=ranges)
    chained, alone = both(block)
    np.testing.assert_allclose(chained(small, X), alone(small, X), atol=1e-5)


def max_pooled(p: Any, x: jax.Array) -> jax.Array:
    """Two pools, one of a convolution that the next one reads, one of an output."""
    y = jax.nn.relu(conv(x, p["wide"]) + bias(p, "wide"))
    y = nn.max_pool(y, (3, 3), (2, 2), "SAME")
    y = nn.max_pool(y, (2, 2), (1, 1))
    y = jax.nn.relu6(conv(y, p["each"], feature_group_count=64) + bias(p, "each"))
    return nn.max_pool(conv(y, p["thin"]), (2, 2), (2, 2))


def residual(p: Any, x: jax.Array) -> jax.Array:
    """ResNet's: a stem, a pool, a block, and one with a shortcut."""
    x = jax.nn.relu(conv(x, p["wide"]) + bias(p, "wide"))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    y = jax.nn.relu(conv(x, p["thin"]))
    x = jax.nn.relu(x + conv(y, p["wide"]))
    y = conv(x, p["each"], feature_group_count=64) + bias(p, "each")
    x = jax.nn.relu(conv(x, p["square"]) + y)
    return conv(x, p["thin"])


def looped(p: Any, x: jax.Array) -> jax.Array:
    """What leaves a group comes back to it by another way."""
    x = jax.nn.relu(conv(x, p["wide"]))
    gate = jax.nn.sigmoid(x.mean(axis=(1, 2), keepdims=True))
    y = conv(x * gate, p["square"])
    return conv(jax.nn.relu(x + conv(y, p["square"])), p["thin"])


DEEP = {**PARAMS, "square": normal(1, 1, 64, 64, seed=6)}


def test_pools_between() -> None:
    small = small_tree(max_pooled, STATIC)
    assert stored(max_pooled, small) == ["wide", "each"]
    pools = [
        one for one in inspect(max_pooled, small, X) if one.operation == "max pool"
    ]
    assert len(pools) == 2
    assert all("8 bits" in one.why for one in pools)
    grouped, alone = both(max_pooled)
    got, wanted = (jax.jit(run)(small, X) for run in (grouped, alone))
    nearly_the_same(got, wanted)


@pytest.mark.parametrize("model", [residual, looped])
def test_residuals_stay_floats_unless_shared(model: Model) -> None:
    small = small_tree(model, STATIC, DEEP)
    grouped, alone = both(model)
    np.testing.assert_allclose(grouped(small, X), alone(small, X), atol=2e-5)


@pytest.mark.bits
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("model", [block, residual, looped])
def test_shared_rounding_is_that_of_fake_quant(model: Model, symmetric: bool) -> None:
    format = Int(8, symmetric=symmetric)
    activation = Activation(format=format, range=MovingAverage(decay=0.9), shared=True)
    rules = [(..., Quantize(activation=activation))]
    ranges = init_ranges(model, rules, DEEP, X)
    for _ in range(2):
        _, ranges = calibrate(model, rules, simulate=True)(DEEP, ranges, X)
    sites = find_sites(model, DEEP, X)
    small = quantize(DEEP, rules, sites=sites, ranges=ranges)
    faked = fake_quant(model, rules, ranges=ranges)
    wanted = faked(DEEP, X)
    scale = float(jnp.abs(wanted).max())
    for run in both(model):
        np.testing.assert_allclose(run(small, X), wanted, atol=2e-5 * scale)
    plain = small_tree(model, STATIC, DEEP)
    assert jnp.abs(compressed(model)(plain, X) - wanted).max() > 1e-3 * scale

    def slope(run: Any) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(jnp.sin(run(x))))(X)

    want = slope(lambda x: faked(DEEP, x))
    for run in both(model):
        got = slope(lambda x, run=run: run(small, x))
        # A number at the edge of two integers may fall to either side.
        off = jnp.abs(got - want) > 1e-3 * jnp.abs(want).max()
        assert jnp.mean(off) < 0.01


def test_a_shared_value_is_stored_for_all() -> None:
    activation = Activation(range=MovingAverage(decay=0.9), shared=True)
    small = small_tree(residual, activation, DEEP)
    # All but the last one, and the one that another adds before the activation.
    assert stored(residual, small) == ["wide", "thin", "wide", "each"]


def test_training_sees_what_was_there_before_it_was_rounded() -> None:
    activation = Activation(range=MovingAverage(decay=0.5), shared=True)
    rules = [(..., Quantize(activation=activation))]
    ranges = init_ranges(block, rules, PARAMS, X)
    run = jax.jit(calibrate(block, rules, simulate=True))
    _, first = run(PARAMS, ranges, X)
    _, second = run(PARAMS, first, X * 4)
    wanted = 0.5 * X.max() + 0.5 * (X * 4).max()
    np.testing.assert_allclose(second["wide"][0].high, wanted, rtol=1e-6)


def test_only_known_ranges_are_shared() -> None:
    with pytest.raises(ValueError, match="known before"):
        Activation(shared=True)
    assert Activation(range=Static(), shared=True).shared
