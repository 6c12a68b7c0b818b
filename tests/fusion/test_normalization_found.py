"""Layer and RMS normalisation are found however they are written, and nothing else."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import Fusion, fused
from jcompress.fusion import find_fusions
from jcompress.tracing.trace import trace

WIDTH = 24
EPSILON = np.float32(1e-5)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers.astype(np.float32))


PARAMS = {"scale": normal(WIDTH, seed=1), "bias": normal(WIDTH, seed=2)}
X = normal(2, 5, WIDTH)


def found(fn: Any, params: Any, *args: Any) -> int:
    traced = trace(fn, params, args, {}, write_out_calls=True)
    return len(find_fusions(traced.body, {Fusion.NORMALIZATION}))


def check(fn: Any, params: Any, *args: Any, count: int = 1) -> None:
    assert found(fn, params, *args) == count
    got, expected = jax.jit(fused(fn))(params, *args), jax.jit(fn)(params, *args)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        top = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * top)


def by_hand(p: Any, x: jax.Array) -> Any:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    spread = jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + EPSILON)
    return (x - mean) / spread * p["scale"][None, None] + p["bias"][None, None]


def two_steps(p: Any, x: jax.Array) -> Any:
    left = x - x.mean(axis=-1, keepdims=True)
    square = (left * left).mean(axis=-1, keepdims=True)
    return p["scale"][None, None] * (left * jax.lax.rsqrt(square + EPSILON))


def root_mean_square(p: Any, x: jax.Array) -> Any:
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + EPSILON) * p["scale"][None, None]


def one_more(p: Any, x: jax.Array) -> Any:
    square = jnp.mean(x**2, axis=-1, keepdims=True)
    scale = np.float32(1) + p["scale"][None, None]
    return x * jax.lax.rsqrt(square + EPSILON) * scale


def power(p: Any, x: jax.Array) -> Any:
    square = jnp.mean(x**2, axis=-1, keepdims=True)
    return x * jnp.power(square + EPSILON, np.float32(-0.5)) + p["bias"][None, None]


FORMS = [by_hand, two_steps, root_mean_square, one_more, power]


@pytest.mark.parametrize("fn", FORMS)
def test_ways_to_write_it(fn: Callable[..., Any]) -> None:
    check(fn, PARAMS, X)


@pytest.mark.parametrize("fn", FORMS)
def test_small_rows_show_the_epsilon(fn: Callable[..., Any]) -> None:
    check(fn, PARAMS, X * np.float32(1e-3))


@pytest.mark.parametrize(
    "model",
    [
        nn.LayerNorm(),
        nn.LayerNorm(epsilon=1e-12),
        nn.LayerNorm(use_fast_variance=False),
        nn.LayerNorm(use_bias=False),
        nn.RMSNorm(),
    ],
)
def test_of_flax(model: Any) -> None:
    params = model.init(jax.random.key(0), X)
    params = jax.tree.map(lambda p: p + normal(*p.shape), params)
    check(model.apply, params, X)
    check(model.apply, params, X[:1, :1])


def test_residuals_are_added_in_the_same_pass() -> None:
    def two(p: Any, x: jax.Array) -> Any:
        total = x + jnp.sin(x)
        return total + by_hand(p, total)

    check(two, PARAMS, X)


def test_a_sum_that_nothing_else_needs() -> None:
    check(lambda p, x: by_hand(p, x + jnp.sin(x)), PARAMS, X)


# ---- What is left alone ----


def over_rows(p: Any, x: jax.Array) -> Any:
    square = jnp.mean(x**2, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(square + EPSILON) * p["scale"][None, None]


def one_less(p: Any, x: jax.Array) -> Any:
    left = x - x.mean(axis=-1, keepdims=True)
    spread = jnp.sqrt(jnp.var(x, axis=-1, ddof=1, keepdims=True) + EPSILON)
    return left / spread * p["scale"][None, None]


def epsilon_outside(p: Any, x: jax.Array) -> Any:
    spread = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)) + np.float32(0.01)
    return x / spread * p["scale"][None, None]


def largest(p: Any, x: jax.Array) -> Any:
    top = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(top + EPSILON) * p["scale"][None, None]


def spread_returned(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    root = jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPSILON)
    return x * root * p["scale"][None, None], root


@pytest.mark.parametrize(
    "fn", [over_rows, one_less, epsilon_outside, largest, spread_returned]
)
def test_other_things_are_left_alone(fn: Callable[..., Any]) -> None:
    assert found(fn, PARAMS, X) == 0


@pytest.mark.parametrize("model", [nn.GroupNorm(num_groups=4), nn.InstanceNorm()])
def test_other_normalisations_are_left_alone(model: Any) -> None:
    x = normal(2, 3, 3, 8)
    assert found(model.apply, model.init(jax.random.key(0), x), x) == 0


def test_batch_normalisation_is_left_alone() -> None:
    model = nn.BatchNorm(use_running_average=True)
    params = model.init(jax.random.key(0), X)
    assert found(model.apply, params, X) == 0


def test_other_dtypes_are_left_alone() -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, X))

    def fn(p: Any, x: jax.Array) -> Any:
        square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(square) * p["scale"][None, None]

    assert found(fn, *half) == 0
