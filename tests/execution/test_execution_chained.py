"""Convolutions that follow each other keep integers between them, and the same results.

What is tested: the numbers are those without, bit for bit; so are gradients; and where
integers cannot stand between two of them, floats do.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import Fusion, compressed, inspect
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerRow,
    Quantize,
    calibrate,
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
    np.testing.assert_array_equal(got, jax.jit(alone)(small, X))
    # Beyond the ranges, too.
    np.testing.assert_array_equal(chained(small, X * 9), alone(small, X * 9))
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
        np.testing.assert_allclose(
            got, wanted, atol=1e-6 * float(jnp.abs(wanted).max())
        )


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
