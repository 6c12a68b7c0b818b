"""8-bit floats from rules to products: `compressed` equals the simulation."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Float8, Int
from jcompress.low_rank import Lora, Svd, add_adapters, factorize, quantize_factors
from jcompress.pruning import NM, to_sparse
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerChannel,
    PerGroup,
    PerRow,
    PerTensor,
    Quantize,
    Weights,
    calibrate,
    fake_quant,
    init_ranges,
    quantize,
)
from jcompress.report.sizes import sizes
from jcompress.sites import find_sites

TOLERANCE = 2e-5
"""Of the largest output: float32 sums in another order."""
ROUNDED_AGAIN = 2e-2
"""The same where such a sum may round to another of 254 numbers in the next layer."""


def normal(*shape: int, seed: int = 0) -> jax.Array:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(drawn, jnp.float32)


def check(got: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    top = float(jnp.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * top)


def model(params: Any, x: jax.Array) -> jax.Array:
    """A lookup, a product, a scan over layers and a product with biases."""
    x = jnp.tanh(jnp.take(params["table"], x, axis=0) @ params["a"])

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x @ params["b"]


PARAMS = {
    "table": normal(20, 32, seed=1),
    "a": normal(32, 96, seed=2),
    "layers": normal(3, 96, 96, seed=3) * np.float32(0.1),
    "b": normal(96, 64, seed=4),
}
INDICES = jnp.asarray([3, 0, 19, 7, 7])
SITES = find_sites(model, PARAMS, INDICES)


def test_weights_only() -> None:
    kinds = {"a": PerTensor(), "layers": PerGroup(16), "table": PerChannel()}
    rules = [
        (name, Quantize(weights=Weights(format=Float8(), granularity=kind)))
        for name, kind in kinds.items()
    ]
    rules += [(..., Quantize(weights=Weights(format=Float8())))]
    tree = quantize(PARAMS, rules, sites=SITES)
    assert all(tree[name].format == Float8() for name in PARAMS)
    expected = jax.jit(fake_quant(model, rules))(PARAMS, INDICES)
    check(jax.jit(compressed(model))(tree, INDICES), expected)
    plain = model(PARAMS, INDICES)
    assert 0 < float(jnp.abs(expected - plain).max() / jnp.abs(plain).max()) < 0.2
    ran = {run.path: run.how for run in inspect(model, tree, INDICES)}
    assert ran["a"] == ran["layers"] == ran["b"] == How.WEIGHT_ONLY
    assert ran["table"] == How.ROWS
    elements = sum(leaf.size for leaf in PARAMS.values())
    scales = sum(tree[name].scales.nbytes for name in PARAMS)
    assert sizes(model, tree, INDICES).bytes == elements + scales


@pytest.mark.parametrize("granularity", [PerTensor(), PerRow()])
def test_weights_and_activations(granularity: Any) -> None:
    spec = Quantize(
        weights=Weights(format=Float8()),
        activation=Activation(format=Float8(), granularity=granularity),
    )
    rules = [(name, spec) for name in ("a", "layers", "b")]
    tree = quantize(PARAMS, rules, sites=SITES)
    found = [run.how for run in inspect(model, tree, INDICES)]
    assert found == [How.FLOAT8] * 3
    expected = jax.jit(fake_quant(model, rules))(PARAMS, INDICES)
    check(jax.jit(compressed(model))(tree, INDICES), expected, ROUNDED_AGAIN)


def test_moving_averages() -> None:
    spec = Quantize(
        weights=Weights(format=Float8()),
        activation=Activation(format=Float8(), range=MovingAverage()),
    )
    rules = [(name, spec) for name in ("a", "layers", "b")]
    ranges = init_ranges(model, rules, PARAMS, INDICES)
    _, ranges = calibrate(model, rules)(PARAMS, ranges, INDICES)
    tree = quantize(PARAMS, rules, sites=SITES, ranges=ranges)
    other = jnp.asarray([1, 2, 12])
    expected = jax.jit(fake_quant(model, rules, ranges=ranges))(PARAMS, other)
    check(jax.jit(compressed(model))(tree, other), expected, ROUNDED_AGAIN)


def test_checkpoint(tmp_path: pathlib.Path) -> None:
    rules = [(..., Quantize(weights=Weights(format=Float8()), activation=FLOATS))]
    tree = quantize(W, rules, sites=AT_LAYER)
    checkpoint.save(tmp_path / "tree", tree)
    again = checkpoint.load(tmp_path / "tree")
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert again["w"].activation == FLOATS
    np.testing.assert_array_equal(again["w"].dense(), tree["w"].dense())


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


W = {"w": normal(64, 96, seed=5)}
X = normal(5, 64, seed=6)
AT_LAYER = find_sites(layer, W, X)
FLOATS = Activation(format=Float8(), granularity=PerRow())
INTEGERS = Activation(format=Int(8), granularity=PerRow())


@pytest.mark.parametrize(
    ("weights", "activation", "how"),
    [
        (Weights(format=Float8()), FLOATS, How.FLOAT8),
        (Weights(format=Float8(), granularity=PerGroup(16)), FLOATS, How.WEIGHT_ONLY),
        (Weights(format=Float8()), INTEGERS, How.WEIGHT_ONLY),
        (Weights(format=Int(4)), FLOATS, How.WEIGHT_ONLY),
    ],
)
def test_formats_that_meet(weights: Weights, activation: Activation, how: How) -> None:
    """Where one of two is floating, the data is rounded first."""
    rules = [("w", Quantize(weights=weights, activation=activation))]
    tree = quantize(W, rules, sites=AT_LAYER)
    (run,) = inspect(layer, tree, X)
    assert run.how is how
    expected = jax.jit(fake_quant(layer, rules))(W, X)
    check(jax.jit(compressed(layer))(tree, X), expected)
    if how is How.FLOAT8:
        gradient = jax.jit(jax.grad(lambda x: compressed(layer)(tree, x).sum()))(X)
        check(gradient, jnp.broadcast_to(tree["w"].dense().sum(1), X.shape), 1e-4)


def convolution(size: int) -> Any:
    def run(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return run, {"w": normal(size, size, 8, 16, seed=7)}, normal(2, 5, 5, 8, seed=8)


@pytest.mark.parametrize(
    ("size", "weights", "activation", "how", "why"),
    [
        (3, Weights(format=Float8()), FLOATS, How.DENSE, "float8 weights"),
        (3, Weights(format=Int(4)), FLOATS, How.DENSE, "faster in floats"),
        (1, Weights(format=Float8()), FLOATS, How.FLOAT8, ""),
    ],
)
def test_convolutions(
    size: int, weights: Any, activation: Any, how: How, why: str
) -> None:
    fn, params, x = convolution(size)
    rules = [("w", Quantize(weights=weights, activation=activation))]
    tree = quantize(params, rules, sites=find_sites(fn, params, x))
    (run,) = inspect(fn, tree, x)
    assert run.how is how
    assert why in run.why
    expected = jax.jit(fake_quant(fn, rules))(params, x)
    check(jax.jit(compressed(fn))(tree, x), expected)


def test_factors_and_adapters() -> None:
    spec = Weights(format=Float8())
    thin = factorize(W, [("w", Svd(rank=8))], sites=AT_LAYER)
    small = quantize_factors(thin, [("w", spec)], sites=AT_LAYER)
    assert all(factor.format == Float8() for factor in small["w"].factors)
    check(jax.jit(compressed(layer))(small, X), X @ small["w"].dense())
    base = quantize(W, [("w", Quantize(weights=spec))], sites=AT_LAYER)
    lora = [("w", Lora(rank=2))]
    tree = add_adapters(base, lora, sites=AT_LAYER, key=jax.random.key(0), original=W)
    check(jax.jit(compressed(layer))(tree, X), X @ tree["w"].dense())


def test_no_sparse_leaf_of_float8() -> None:
    tree = quantize(
        W, [("w", Quantize(weights=Weights(format=Float8())))], sites=AT_LAYER
    )
    with pytest.raises(MismatchError, match=r"'w' is stored as float8; .*Int\(8\)"):
        to_sparse(tree, [("w", NM(2, 4))], sites=AT_LAYER)
