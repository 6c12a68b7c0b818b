"""Transposed convolutions run in integers, as several plain ones.

What is tested: the result and its gradients equal those of `fake_quant`, for kernels
smaller and larger than the step, all paddings, layouts, groups and what follows; where
there is no plain form the leaf is made dense, with a reason.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import How, compressed, inspect
from jcompress.execution.transposed import phases_of
from jcompress.formats import Int
from jcompress.kernels.quantized_conv.window import Window
from jcompress.quantization import (
    Activation,
    MovingAverage,
    Quantize,
    Weights,
    calibrate,
    fake_quant,
    init_ranges,
    quantize,
)
from jcompress.sites import find_sites


def normal(*shape: int, seed: int = 0) -> jax.Array:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers.astype(np.float32))


def close(got: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    size = max(float(np.abs(np.asarray(wanted)).max()), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * size)


CASES = {
    "u-net": ((2, 2), (2, 2), "SAME", 1),
    "overlapping": ((3, 3), (2, 2), "SAME", 1),
    "four": ((4, 4), (2, 2), "SAME", 1),
    "valid": ((5, 3), (3, 2), "VALID", 1),
    "cut": ((4, 4), (2, 2), [(0, 1), (1, 0)], 1),
    "one axis": ((3, 3), (1, 2), [(1, 1), (2, 2)], 1),
    "groups": ((4, 4), (2, 2), "SAME", 4),
}


def model_of(case: str) -> Any:
    _, steps, padding, groups = CASES[case]

    def model(p: Any, x: jax.Array) -> jax.Array:
        if groups == 1:
            y = jax.lax.conv_transpose(x, p["w"], steps, padding)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                p["w"],
                (1, 1),
                [(2, 2), (2, 2)],
                lhs_dilation=steps,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
        return jax.nn.relu(y + p["bias"][None, None, None])

    return model


def params_of(case: str) -> Any:
    kernel, _, _, groups = CASES[case]
    return {"w": normal(*kernel, 32 // groups, 48), "bias": normal(48, seed=1)}


X = normal(2, 7, 6, 32, seed=2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [4, 8])
def test_equals_the_simulation(case: str, bits: int) -> None:
    model, params = model_of(case), params_of(case)
    spec = Quantize(weights=Weights(format=Int(bits)), activation=Activation())
    rules = [("w", spec)]
    small = quantize(params, rules, sites=find_sites(model, params, X))
    (entry,) = inspect(model, small, X)
    assert entry.how is How.INTEGER or "in floats" in entry.why
    run, fake = jax.jit(compressed(model)), jax.jit(fake_quant(model, rules))
    close(run(small, X), fake(params, X))

    def slope(fn: Any, p: Any) -> Any:
        loss = lambda x, b: jnp.sum(jnp.sin(fn({**p, "bias": b}, x)))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(X, params["bias"])

    for got, wanted in zip(slope(run, small), slope(fake, params), strict=True):
        close(got, wanted, 1e-4)


def test_integers_between_it_and_the_next() -> None:
    """As a U-Net goes up: twice as large, then a convolution, of a static range."""

    def model(p: Any, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_transpose(x, p["up"], (2, 2), "SAME")
        y = jax.nn.relu(y + p["bias"][None, None, None])
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            y, p["next"], (1, 1), "SAME", dimension_numbers=numbers
        )

    params = {
        "up": normal(2, 2, 32, 48),
        "bias": normal(48, seed=1),
        "next": normal(3, 3, 48, 32, seed=3),
    }
    rules = [(..., Quantize(activation=Activation(range=MovingAverage())))]
    ranges = init_ranges(model, rules, params, X)
    _, ranges = calibrate(model, rules)(params, ranges, X)
    sites = find_sites(model, params, X)
    small = quantize(params, rules, sites=sites, ranges=ranges)
    up, _ = inspect(model, small, X)
    assert "its result in 8 bits" in up.why or up.how is How.DENSE
    wanted = jax.jit(fake_quant(model, rules, ranges=ranges))(params, X)
    # The simulation gives the ranges back, too.
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    close(jax.jit(compressed(model))(small, X), wanted, 5e-3)


@pytest.mark.parametrize(
    ("kernel", "options", "why"),
    [
        ((3, 32, 48), {"window_strides": (2,)}, "strides"),
        ((3, 32, 48), {"rhs_dilation": (2,)}, "dilated kernel"),
        ((2, 32, 48), {"lhs_dilation": (3,)}, "can miss"),
    ],
)
def test_what_is_made_dense(kernel: Any, options: Any, why: str) -> None:
    given = {"window_strides": (1,), "lhs_dilation": (2,), **options}

    def model(p: Any, x: jax.Array) -> jax.Array:
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(
            x, p["w"], padding=[(2, 2)], dimension_numbers=numbers, **given
        )

    params, x = {"w": normal(*kernel)}, normal(2, 7, 32)
    rules = [("w", Quantize(activation=Activation()))]
    small = quantize(params, rules, sites=find_sites(model, params, x))
    (entry,) = inspect(model, small, x)
    assert entry.how is How.DENSE
    assert why in entry.why
    close(compressed(model)(small, x), fake_quant(model, rules)(params, x))


def test_every_phase_has_its_outputs() -> None:
    window = Window(
        sizes=(5,),
        channels=4,
        kernel=(4,),
        strides=(1,),
        padding=((2, 2),),
        dilation=(1,),
    )
    phases = phases_of(window, (2,), (10,))
    assert [phase.first for phase in phases] == [(0,), (1,)]
    assert [phase.window.out for phase in phases] == [(5,), (5,)]
    assert phases_of(window, (5,), (22,)) == []
