"""Learned scales: gradients against NumPy, starts, and that what was trained runs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Float8, Int
from jcompress.qat import Clip, LearnedScales, Lsq, Pact, Step, init_scales
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
    quantize,
)
from jcompress.rounding import Gptq
from jcompress.sites import find_sites

rng = np.random.default_rng(0)
W = rng.normal(size=(6, 4)).astype(np.float32)
X = rng.normal(size=(5, 6)).astype(np.float32)
G = rng.normal(size=(5, 4)).astype(np.float32)


def layer(params: Any, x: jax.Array) -> jax.Array:
    out: jax.Array = x @ params["w"]
    return out


def lsq(
    x: np.ndarray, s: np.ndarray, low: int, high: int, zero: Any = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, derivative to x and to s: Esser et al. 2019, equations 1 to 5."""
    v = x / s + zero
    inside = (low < v) & (v < high)
    q = np.rint(np.clip(v, low, high))
    slope = np.where(inside, q - v, np.where(v >= high, high - zero, low - zero))
    return (q - zero) * s, inside, slope


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(3)])
def test_the_gradient_of_weight_scales_is_that_of_lsq(granularity: Any) -> None:
    spec = Weights(format=Int(3), granularity=granularity, range=Lsq())
    rules = [("w", Quantize(weights=spec))]
    scales = init_scales(layer, rules, {"w": jnp.asarray(W)}, X)
    # Group by group: [4 channels, groups, inputs of a group].
    size = {PerGroup(3): 3}.get(granularity, 6)
    numbers = W.T.reshape(4, -1, size)
    over = (0, 1, 2) if granularity == PerTensor() else (2,)
    start = 2 * np.abs(numbers).mean(over, keepdims=True) / np.sqrt(3)
    shared = np.prod([numbers.shape[axis] for axis in over])
    got = scales["w"].weights.scale
    np.testing.assert_allclose(got, start[..., 0], rtol=1e-6)
    scales = jax.tree.map(lambda part: part * np.float32(0.6), scales)
    start = start * np.float32(0.6)

    def loss(params: Any, scales: Any) -> jax.Array:
        return jnp.sum(G * fake_quant(layer, rules, scales=scales)(params, X))

    params = {"w": jnp.asarray(W)}
    to_params, to_scales = jax.jit(jax.grad(loss, (0, 1)))(params, scales)
    fake, inside, slope = lsq(numbers, start, -3, 3)
    assert 0 < inside.sum() < inside.size
    dense = fake.reshape(4, 6).T
    np.testing.assert_allclose(loss(params, scales), np.sum(G * (X @ dense)), rtol=1e-5)
    upstream = (X.T @ G).T.reshape(numbers.shape)
    np.testing.assert_allclose(
        to_params["w"], (upstream * inside).reshape(4, 6).T, rtol=1e-5, atol=1e-6
    )
    by_scale = (upstream * slope).sum(over, keepdims=True) / np.sqrt(shared * 3)
    np.testing.assert_allclose(
        to_scales["w"].weights.scale, by_scale[..., 0], rtol=1e-4, atol=1e-6
    )


def input_gradients(spec: Activation, learned: Any) -> tuple[Any, Any, Any]:
    rules = [("w", Quantize(weights=None, activation=spec))]

    def loss(x: Any, learned: Any) -> jax.Array:
        scales = {"w": LearnedScales(None, (learned,))}
        return jnp.sum(G * fake_quant(layer, rules, scales=scales)({"w": W}, x))

    value, grads = jax.value_and_grad(loss, (0, 1))(jnp.asarray(X), learned)
    return value, *grads


def test_the_gradients_of_symmetric_inputs_are_those_of_lsq() -> None:
    spec = Activation(format=Int(4), range=Lsq())
    value, to_x, to_step = input_gradients(spec, Step(jnp.float32(0.2)))
    fake, inside, slope = lsq(X, np.float32(0.2), -7, 7)
    upstream = G @ W.T
    np.testing.assert_allclose(value, np.sum(G * (fake @ W)), rtol=1e-5)
    np.testing.assert_allclose(to_x, upstream * inside, rtol=1e-5)
    # One row has 6 features.
    want = np.sum(upstream * slope) / np.sqrt(6 * 7)
    np.testing.assert_allclose(to_step.scale, want, rtol=1e-5)


def test_the_gradients_of_asymmetric_inputs_are_those_of_lsq_plus() -> None:
    spec = Activation(format=Int(4, symmetric=False), range=Lsq())
    step = Step(jnp.float32(0.15), jnp.float32(-0.9))
    value, to_x, to_step = input_gradients(spec, step)
    zero = np.rint(-8 + 0.9 / 0.15)
    v = X / np.float32(0.15) + zero
    inside = (v > -8) & (v < 7)
    q = np.rint(np.clip(v, -8, 7))
    upstream = G @ W.T
    np.testing.assert_allclose(value, np.sum(G * ((q - zero) * 0.15 @ W)), rtol=1e-5)
    np.testing.assert_allclose(to_x, upstream * inside, rtol=1e-5)
    # Of the unsigned numbers 0 to 15 of the paper, q + 8.
    slope = np.where(inside, q - v, np.where(v >= 7, 15, 0))
    factor = 1 / np.sqrt(6 * 15)
    np.testing.assert_allclose(
        to_step.scale, np.sum(upstream * slope) * factor, rtol=1e-4
    )
    np.testing.assert_allclose(
        to_step.offset, np.sum(upstream * ~inside) * factor, rtol=1e-4
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_pact_learns_from_what_it_clips_only(symmetric: bool) -> None:
    spec = Activation(format=Int(4, symmetric=symmetric), range=Pact())
    value, to_x, to_clip = input_gradients(spec, Clip(jnp.float32(0.8)))
    low, top = (-0.8, 7) if symmetric else (0, 15)
    clipped = np.clip(X, low, 0.8)
    fake = np.rint(clipped * (top / 0.8)) * (0.8 / top)
    upstream = G @ W.T
    np.testing.assert_allclose(value, np.sum(G * (fake @ W)), rtol=1e-4)
    np.testing.assert_allclose(to_x, upstream * (clipped == X), rtol=1e-5)
    want = np.sum(upstream * (X >= 0.8))
    want -= np.sum(upstream * (X <= -0.8)) if symmetric else 0
    np.testing.assert_allclose(to_clip.high, want, rtol=1e-5)


def scanned(params: Any, x: jax.Array) -> jax.Array:
    """Stacked weights, a convolution, and one leaf in two products."""

    @jax.checkpoint
    def block(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.relu(x @ w), None

    x, _ = jax.lax.scan(block, x, params["stack"])
    x = jax.lax.conv_general_dilated(
        x[:, :, None],
        params["conv"],
        (1,),
        "SAME",
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    x = jax.nn.relu(x).mean(-1) @ params["twice"]
    return x @ params["twice"]


def scanned_params() -> dict[str, jax.Array]:
    sizes = {"stack": (3, 8, 8), "conv": (3, 1, 4), "twice": (8, 8)}
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        name: jax.random.normal(key, sizes[name]) / 2
        for name, key in zip(sizes, keys, strict=True)
    }


FORMS = {
    "lsq": Quantize(
        weights=Weights(format=Int(4), range=Lsq()),
        activation=Activation(format=Int(8), range=Lsq()),
    ),
    "lsq+": Quantize(
        weights=Weights(
            format=Int(3, symmetric=False), granularity=PerTensor(), range=Lsq()
        ),
        activation=Activation(format=Int(4, symmetric=False), range=Lsq()),
    ),
}
PACT = Quantize(weights=Weights(format=Int(8)), activation=Activation(range=Pact()))


@pytest.mark.parametrize("form", FORMS)
def test_what_was_trained_is_what_runs(form: str, tmp_path: Any) -> None:
    rules = [("conv", PACT), (..., FORMS[form])]
    params = scanned_params()
    x = jax.random.normal(jax.random.key(2), (16, 8))
    target = scanned(params, x)
    scales = init_scales(scanned, rules, params, x)

    @jax.jit
    def step(trained: Any) -> Any:
        def loss(trained: Any) -> Any:
            out = fake_quant(scanned, rules, scales=trained[1])(trained[0], x)
            decay = sum(jnp.sum(jnp.square(s)) for s in jax.tree.leaves(trained[1]))
            error = jnp.mean(jnp.square(out - target))
            return error + np.float32(1e-3) * decay, out

        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        rate = np.float32(0.05)
        return jax.tree.map(lambda p, g: p - rate * g, trained, grads), value, out

    before, losses = (params, scales), []
    for _ in range(5):
        trained, (before, value, simulated) = before, step(before)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), trained[1], scales)
    assert all(jax.tree.leaves(moved))

    checkpoint.save(tmp_path / "scales", trained[1])
    learned = checkpoint.load(tmp_path / "scales", like=scales)
    sites = find_sites(scanned, params, x)
    small = quantize(trained[0], rules, sites=sites, scales=learned)
    checkpoint.save(tmp_path / "small", small)
    run = jax.jit(compressed(scanned))
    served = run(checkpoint.load(tmp_path / "small"), x)
    size = float(jnp.abs(simulated).max())
    # Where a sum comes out a little differently an input may round the other way.
    apart = np.quantile(np.abs(served - simulated), 0.5)
    assert apart < 2e-5 * size
    # Control: with other scales than those of the training it is another function.
    learned = jax.tree.map(lambda scale: scale * np.float32(0.9), learned)
    wrong = run(quantize(trained[0], rules, sites=sites, scales=learned), x)
    assert np.quantile(np.abs(wrong - simulated), 0.5) > 1e-3 * size


def test_what_does_not_fit_raises() -> None:
    params, sites = {"w": W}, find_sites(layer, {"w": W}, X)
    rules = [("w", Quantize(weights=Weights(range=Lsq())))]
    scales = init_scales(layer, rules, params, X)
    with pytest.raises(MismatchError, match="fake_quant: the scales of w are learned"):
        fake_quant(layer, rules)(params, X)
    both = [("w", dataclasses.replace(rules[0][1], activation=Activation(range=Lsq())))]
    with pytest.raises(MismatchError, match="not those of its rule"):
        fake_quant(layer, both, scales=scales)(params, X)
    with pytest.raises(MismatchError, match="quantize: the scales of w are learned"):
        quantize(params, rules, sites=sites)
    bad = {"w": LearnedScales(Step(jnp.ones((4, 2))), ())}
    with pytest.raises(MismatchError, match=r"has shape \[4, 2\], not \[4, 1\]"):
        fake_quant(layer, rules, scales=bad)(params, X)
    with pytest.raises(MismatchError, match="not those of its rule"):
        quantize(params, both, sites=sites, scales=scales)
    with pytest.raises(MismatchError, match="no rule has range"):
        init_scales(layer, [("w", Quantize())], params, X)
    learned = dataclasses.replace(rules[0][1], rounding=Gptq())
    with pytest.raises(MismatchError, match="are learned for"):
        quantize(params, [("w", learned)], sites=sites, scales=scales)
    with pytest.raises(TypeError, match="learns the scale of integers"):
        Weights(format=Float8(), range=Lsq())
    with pytest.raises(TypeError, match="FullRange"):
        Weights(range=Pact())
    with pytest.raises(ValueError, match="PerRow"):
        Activation(granularity=PerRow(), range=Lsq())
    with pytest.raises(MismatchError, match="no rule has an Activation"):
        calibrate(layer, both)(params, {}, X)
    assert Activation(range=MovingAverage()).granularity == PerTensor()
