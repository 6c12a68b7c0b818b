"""Rounded data that is made once: the values and gradients of data made anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Int
from jcompress.qat import Lsq, init_scales
from jcompress.quantization import Activation, Quantize, Weights, fake_quant
from jcompress.tensors.once import once


def model(p: Any, x: jax.Array) -> jax.Array:
    for name in ("a", "b"):
        x = jax.lax.conv_general_dilated(
            jax.nn.relu(x),
            p[name],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return x


P = {
    name: jax.random.normal(jax.random.key(n), (3, 3, 4, 4)) / 6
    for n, name in enumerate("ab")
}
X = jax.random.normal(jax.random.key(2), (2, 6, 6, 4))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_gradients_are_those_without(
    learned: bool, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Any = {"range": Lsq()} if learned else {}
    spec = Quantize(
        weights=Weights(format=Int(4), **given),
        activation=Activation(format=Int(4), **given),
    )
    rules = [(..., spec)]
    scales = init_scales(model, rules, P, X) if learned else None

    def gradients() -> Any:
        def loss(p: Any, scales: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(fake_quant(model, rules, scales=scales)(p, x)))

        made = jax.grad(loss, argnums=(0, 1, 2))
        if batched:
            made = jax.vmap(made, in_axes=(None, None, 0))
            return jax.jit(made)(P, scales, jnp.stack([X, -X]))
        return jax.jit(made)(P, scales, X)

    shared = gradients()
    for module in ("learned", "_within"):
        place = f"jcompress.quantization.{module}.once"
        monkeypatch.setattr(place, lambda fn, x, scale: fn(x))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        shared,
        gradients(),
    )


def test_what_is_not_finite_is_made_alike() -> None:
    def fn(x: jax.Array) -> jax.Array:
        return x * 2

    x = jnp.array([1.0, jnp.nan])
    np.testing.assert_array_equal(once(fn, x, jnp.array(jnp.nan)), fn(x))
    assert once(fn, jnp.zeros(0), jnp.array(1.0)).shape == (0,)


def test_data_of_convolutions_goes_through_a_branch_that_the_compiler_keeps() -> None:
    spec = Quantize(weights=None, activation=Activation(format=Int(4)))

    def loss(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(fake_quant(model, [(..., spec)])(p, x)))

    program = jax.jit(jax.grad(loss)).lower(P, X).compile().as_text()
    assert " conditional(" in program
    forward = jax.jit(loss).lower(P, X).compile().as_text()
    assert " conditional(" not in forward
