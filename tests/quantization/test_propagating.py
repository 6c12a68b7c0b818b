"""Errors of earlier layers are made up for, and only as far as `propagate` says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import Quantize, Weights, quantize_by_layers
from jcompress.quantization.propagating import Rows, cross_moments, propagated
from jcompress.rounding import Gptq
from jcompress.sites import Axes
from jcompress.statistics import SecondMoments, observe

RNG = np.random.default_rng(0)
SIZE = 12


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def model(p: Any, x: Any) -> Any:
    for name in "ab":
        x = jnp.tanh(x @ p[name])
    x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, p["stack"])
    return x


PARAMS = {name: normal(SIZE, SIZE) / 3 for name in "ab"}
PARAMS["stack"] = normal(2, SIZE, SIZE) / 6
MIX = np.asarray(normal(SIZE, SIZE))
X, UNSEEN = (jnp.asarray(np.asarray(normal(300, SIZE)) @ MIX / 3) for _ in range(2))
RULES = [(..., Quantize(weights=Weights(format=Int(2)), rounding=Gptq()))]


def test_the_weights_solve_the_least_squares() -> None:
    w, x = (np.asarray(normal(*s), np.float64) for s in ((5, SIZE), (200, SIZE)))
    y = x + 0.3 * np.asarray(normal(200, SIZE))
    cross, moments = cross_moments(jnp.float32(x), jnp.float32(y)), y.T @ y
    found = propagated(
        jnp.float32(w), cross, jnp.float32(moments), Axes((), (0,), (1,)),
        jnp.float32(1),
    )  # fmt: skip
    lam = 0.01 * np.diagonal(moments).mean()
    shift = np.linalg.solve(moments + lam * np.eye(SIZE), y.T @ (x - y) @ w.T).T
    np.testing.assert_allclose(found, w + shift, atol=1e-4)
    wanted = x @ w.T
    assert np.square(y @ (w + shift).T - wanted).sum() < (
        0.9 * np.square(y @ w.T - wanted).sum()
    )


def test_rows_are_those_whose_moments_are_observed() -> None:
    rules = [(..., True)]
    rows = observe(model, rules, Rows())(PARAMS, X)[1]
    moments = observe(model, rules, SecondMoments())(PARAMS, X)[1]
    assert rows["stack"].shape == (2, 300, SIZE)
    for path, wanted in moments.items():
        found = cross_moments(rows[path], rows[path])
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_the_outputs_err_less() -> None:
    wanted = model(PARAMS, UNSEEN)

    def error(small: Any) -> float:
        return float(jnp.square(compressed(model)(small, UNSEEN) - wanted).mean())

    batches = [(X[:150],), (X[150:],)]
    plain = quantize_by_layers(model, PARAMS, RULES, batches)
    half: list[Any] = []
    moved = quantize_by_layers(
        model, PARAMS, RULES, batches, propagate=1.0, on_leaf=half.append
    )
    assert error(moved) < 0.95 * error(plain)
    # The first layer has no errors before it.
    np.testing.assert_array_equal(moved["a"].values, plain["a"].values)
    given = {"propagate": 1.0, "reference": PARAMS}
    rest = quantize_by_layers(model, half[1].params, RULES, batches, **given)
    np.testing.assert_array_equal(rest["stack"].values, moved["stack"].values)
    with pytest.raises(MismatchError, match="give its parameters as reference="):
        quantize_by_layers(model, half[0].params, RULES, batches, propagate=0.5)


def test_what_cannot_be_propagated() -> None:
    with pytest.raises(ValueError, match="propagate is from 0 to 1, not 2"):
        quantize_by_layers(model, PARAMS, RULES, [(X,)], propagate=2)
    with pytest.raises(MismatchError, match="none is left that does"):
        quantize_by_layers(model, PARAMS, [(..., Quantize())], [(X,)], propagate=1.0)

    def loop(p: Any, x: Any) -> Any:
        def more(state: Any) -> Any:
            return state[0] + 1, jnp.tanh(state[1] @ p["a"])

        return jax.lax.while_loop(lambda s: s[0] < 3, more, (0, x))[1]

    with pytest.raises(MismatchError, match="inside of a loop whose length"):
        quantize_by_layers(loop, {"a": PARAMS["a"]}, RULES, [(X,)], propagate=1.0)
