"""Parts of a compressed leaf run compressed, or `inspect` says why not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.quantization import PerTensor, Quantize, Weights, fake_quant, quantize
from jcompress.sites import find_sites
from jcompress.tensors.parts import part_of

rng = np.random.default_rng(3)
W = jnp.asarray(rng.normal(size=(32, 136)).astype(np.float32))
S = jnp.asarray(rng.normal(size=(2, 32, 136)).astype(np.float32))
X = jnp.asarray(rng.normal(size=(5, 32)).astype(np.float32))


def qkv(w: jax.Array, x: jax.Array) -> jax.Array:
    q, k = jnp.split(jax.device_put(w), 2, axis=1)
    return (x @ q) * (x @ k)


def layers(w: jax.Array, x: jax.Array) -> jax.Array:
    for i in range(2):
        x = jnp.tanh(x @ w[i].T[:32].T)
    return x


def halves(w: jax.Array, x: jax.Array) -> jax.Array:
    return x[:, :16] @ w[:16] - x[:, 16:] @ w[16:, ::-1]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("fn", "w"), [(qkv, W), (layers, S), (halves, W)])
def test_parts_run_compressed(fn: Callable[..., Any], w: jax.Array, bits: int) -> None:
    weights = Weights(format=Int(bits, symmetric=False))
    rules = [(..., Quantize(weights=weights))]
    small = quantize(w, rules, sites=find_sites(fn, w, X))
    assert {use.how for use in inspect(fn, small, X)} == {How.WEIGHT_ONLY}
    got, wanted = compressed(fn)(small, X), fake_quant(fn, rules)(w, X)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * abs(wanted).max())


def test_a_part_stands_for_that_part() -> None:
    for bits in (3, 8):
        for granularity in (PerTensor(), Weights().granularity):
            weights = Weights(
                format=Int(bits, symmetric=False), granularity=granularity
            )
            fn = lambda w, x: x @ w  # noqa: E731
            rules = [(..., Quantize(weights=weights))]
            small = quantize(S, rules, sites=find_sites(fn, S, X[None]))
            dense = small.dense()
            for axis, where in ((0, slice(1, 2, 1)), (2, slice(9, 40, 3))):
                part = part_of(small, axis, where)
                assert part is not None
                wanted = dense[(slice(None),) * axis + (where,)]
                np.testing.assert_array_equal(part.dense(), wanted)
            inner = part_of(small, 1, slice(8, 24, 1))
            assert inner is not None
            np.testing.assert_array_equal(inner.dense(), dense[:, 8:24])
            assert (part_of(small, 1, slice(3, 32, 1)) is None) == (bits == 3)


@jax.custom_vjp
def own_gradient(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w


own_gradient.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: kept)


@pytest.mark.parametrize(
    ("fn", "operation", "why"),
    [
        (lambda w, x: x @ (w / jnp.sum(w)), "div", "computes something else"),
        (lambda w, x: x @ w[::-1], "rev", "cannot be cut out"),
        (lambda w, x: x @ jnp.concatenate([w, w]).T[:32], "concatenate", "joins it"),
        (lambda w, x: (x @ w) @ (w.T @ w), "dot_general", "another parameter"),
        (lambda w, x: (x @ w, w), "returned", "function returns it"),
        (
            lambda w, x: x @ w + (x[..., None] * w[None]).max(1),
            "mul",
            "element by element",
        ),
        (own_gradient, "custom_vjp_call", "gradient"),
    ],
)
def test_what_is_made_dense_says_why(
    fn: Callable[..., Any], operation: str, why: str
) -> None:
    rules = [(..., Quantize(weights=Weights(format=Int(4))))]
    small = quantize(W, rules, sites=find_sites(fn, W, X))
    dense = [use for use in inspect(fn, small, X) if use.how is How.DENSE]
    assert (operation, True) in [(use.operation, why in use.why) for use in dense]
