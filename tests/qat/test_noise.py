"""Stochastic rounding, quantization noise, and a start in mid-training."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Int
from jcompress.qat import Lsq, QuantNoise, StochasticRounding, init_scales
from jcompress.quantization import (
    Activation,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
)

W = jnp.linspace(-1, 1, 24).reshape(6, 4)
SPEC = Weights(format=Int(3), granularity=PerTensor())


def weights_of(params: Any, x: jax.Array) -> jax.Array:
    """What the function meets: the weights themselves."""
    out: jax.Array = x @ params["w"]
    return out


def seen(spec: Weights, noise: Any, scales: Any = None) -> jax.Array:
    fn = fake_quant(
        weights_of, [("w", Quantize(weights=spec))], noise=noise, scales=scales
    )
    return fn({"w": W}, jnp.eye(6))


@pytest.mark.parametrize("learned", [False, True])
def test_stochastic_rounding_is_right_on_average(learned: bool) -> None:
    spec, scales = SPEC, None
    if learned:
        spec = Weights(format=Int(3), granularity=PerTensor(), range=Lsq())
        rules = [("w", Quantize(weights=spec))]
        scales = init_scales(weights_of, rules, {"w": W}, jnp.eye(6))
        scales = jax.tree.map(lambda s: jnp.full_like(s, 1 / 3), scales)
    keys = jax.random.split(jax.random.key(0), 4000)
    many = jax.jit(
        jax.vmap(lambda key: seen(spec, StochasticRounding(key=key), scales))
    )(keys)
    steps = np.asarray(many, np.float64) * 3
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-5)
    exact = np.asarray(W, np.float64) * 3
    assert (np.floor(exact - 1e-6) <= steps + 1e-5).all()
    assert (steps - 1e-5 <= np.ceil(exact + 1e-6)).all()
    # The mean of 4000 draws of standard deviation 1 / 2 at most, five times that.
    error = np.abs(steps.mean(axis=0) - exact)
    assert error.max() < 5 * 0.5 / np.sqrt(4000)
    nearest = np.abs(np.asarray(seen(spec, None, scales)) * 3 - exact)
    assert nearest.max() > 5 * 0.5 / np.sqrt(4000)  # which rounding to nearest is not
    two = np.asarray(many[:, 0, 1] * 3), np.asarray(many[:, 0, 2] * 3)
    assert abs(np.corrcoef(*two)[0, 1]) < 0.1  # neighbours are rounded apart


def test_quantization_noise_takes_its_share() -> None:
    keys = jax.random.split(jax.random.key(1), 500)
    many = np.asarray(
        jax.jit(jax.vmap(lambda key: seen(SPEC, QuantNoise(key=key, share=0.3))))(keys)
    )
    full = np.asarray(seen(SPEC, None))
    moved = full != np.asarray(W)
    quantized = (many == full) & moved
    assert ((many == np.asarray(W)) | (many == full)).all()
    share = quantized.sum() / (500 * moved.sum())
    assert abs(share - 0.3) < 5 * 0.5 / np.sqrt(500 * moved.sum())
    assert (seen(SPEC, QuantNoise(key=keys[0], share=0.0)) == W).all()
    assert (seen(SPEC, QuantNoise(key=keys[0], share=1.0)) == full).all()
    with pytest.raises(ValueError, match=r"share is in \[0, 1\]"):
        QuantNoise(key=keys[0], share=1.5)


def test_gradients_pass_straight_through_what_is_left_alone() -> None:
    spec = Weights(format=Int(3), granularity=PerTensor(), range=Lsq())
    rules = [("w", Quantize(weights=spec))]
    scales = init_scales(weights_of, rules, {"w": W}, jnp.eye(6))
    scales = jax.tree.map(lambda s: s / 2, scales)  # half of the weights is clipped

    def loss(params: Any, noise: Any) -> jax.Array:
        fn = fake_quant(weights_of, rules, scales=scales, noise=noise)
        return fn(params, jnp.eye(6)).sum()

    noise = QuantNoise(key=jax.random.key(3))
    grad = jax.grad(loss)({"w": W}, noise)["w"]
    alone = seen(spec, noise, scales) == W
    clipped = jax.grad(loss)({"w": W}, None)["w"] == 0
    assert alone.any()
    assert (clipped & alone).any()
    np.testing.assert_array_equal(grad, (alone | ~clipped).astype(jnp.float32))


def test_a_step_that_is_traced_starts_the_quantization() -> None:
    activation = Activation(format=Int(3))
    rules = [("w", Quantize(weights=SPEC, activation=activation))]
    x = jax.random.normal(jax.random.key(0), (5, 6))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = fake_quant(weights_of, rules, active=count >= 2)({"w": W}, x)
            return jnp.sum(jnp.square(out)), out

        grads, out = jax.grad(loss, has_aux=True)(x)
        return out, grads

    plain, quantized = weights_of({"w": W}, x), fake_quant(weights_of, rules)
    for count, expected in ((0, plain), (1, plain), (2, quantized({"w": W}, x))):
        out, grads = step(jnp.int32(count))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
        if count < 2:
            np.testing.assert_allclose(grads, 2 * plain @ W.T, rtol=1e-5, atol=1e-6)
    assert jnp.abs(out - plain).max() > 0.05
