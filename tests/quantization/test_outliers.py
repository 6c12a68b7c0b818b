"""Outliers apart: what they save, and that what runs is what was simulated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Binary, Int, NormalFloat4
from jcompress.qat import Lsq
from jcompress.quantization import (
    Activation,
    MeanAbsolute,
    PerGroup,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.rounding import Gptq
from jcompress.sites import find_sites
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors import QTensor, WithOutliers
from jcompress.tensors.axes import Axes
from jcompress.tensors.outliers import split_outliers

RNG = np.random.default_rng(0)
LARGE = RNG.standard_t(2, (3, 16, 16)).astype(np.float32)
PARAMS = {"layers": jnp.asarray(LARGE[:2]) / 8, "out": jnp.asarray(LARGE[2]) / 8}
X = jnp.asarray(RNG.normal(size=(6, 16)), jnp.float32)
FOUR = Weights(format=Int(4, symmetric=False), granularity=PerGroup(8), outliers=0.05)


def model(params: Any, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x @ params["out"]


SITES = find_sites(model, PARAMS, X)


def test_the_largest_are_taken_out() -> None:
    rest, places, values = split_outliers(jnp.asarray(LARGE), 0.05)
    for matrix, left, where, found in zip(LARGE, rest, places, values, strict=True):
        largest = np.sort(np.argsort(-np.abs(matrix).ravel())[:13])
        np.testing.assert_array_equal(where, largest)
        np.testing.assert_array_equal(found, matrix.ravel()[largest])
        expected = matrix.ravel().copy()
        expected[largest] = 0
        np.testing.assert_array_equal(np.asarray(left).ravel(), expected)


@pytest.mark.parametrize("format", [Int(4, symmetric=False), NormalFloat4()], ids=str)
@pytest.mark.parametrize("data", [None, Activation()], ids=["floats", "a8"])
def test_what_runs_is_what_was_simulated(
    format: Any, data: Activation | None, tmp_path: Any
) -> None:
    weights = dataclasses.replace(FOUR, format=format)
    rules = [(..., Quantize(weights=weights, activation=data))]
    small = quantize(PARAMS, rules, sites=SITES)
    simulated = jax.jit(fake_quant(model, rules))(PARAMS, X)
    run = jax.jit(compressed(model))
    np.testing.assert_allclose(run(small, X), simulated, atol=2e-5)
    broken = dataclasses.replace(small["out"], values=2 * small["out"].values)
    assert jnp.abs(run({**small, "out": broken}, X) - simulated).max() > 1e-2
    kernel = How.WEIGHT_ONLY if isinstance(format, Int) else How.DENSE
    assert {use.how for use in inspect(model, small, X)} == {kernel}
    checkpoint.save(tmp_path / "saved", small)
    loaded = checkpoint.load(tmp_path / "saved", like=small)
    jax.tree.map(np.testing.assert_array_equal, loaded, small)
    assert isinstance(loaded["out"], WithOutliers)
    assert loaded["out"].form.endswith("+ 5.1 % apart")


def test_errors_are_much_smaller_and_bytes_a_bit_more() -> None:
    axes = Axes((0,), (1,), (2,))
    plain = dataclasses.replace(FOUR, outliers=0.0, granularity=PerGroup(16))
    part = 0.02
    rest, places, values = split_outliers(jnp.asarray(LARGE), part)
    base = QTensor.quantize(rest, axes, plain)
    apart = WithOutliers(
        base=base,
        places=places,
        values=values,
        shape=base.shape,
        dtype=base.dtype,
        stack_axes=(0,),
        output_axes=(1,),
        input_axes=(2,),
    )
    whole = QTensor.quantize(jnp.asarray(LARGE), axes, plain)
    errors = [float(jnp.square(one.dense() - LARGE).mean()) for one in (apart, whole)]
    assert errors[0] < 0.5 * errors[1]
    assert apart.stored_bytes == whole.stored_bytes + 3 * round(part * 256) * 8


def test_gptq_learns_what_is_left() -> None:
    rules = [("out", Quantize(weights=FOUR, rounding=Gptq()))]
    _, moments = observe(model, rules, SecondMoments())(PARAMS, X)
    nearest = quantize(PARAMS, [("out", Quantize(weights=FOUR))], sites=SITES)
    small = quantize(PARAMS, rules, sites=SITES, moments=moments)
    h = np.asarray(moments["out"])
    errors = []
    for tree in (small, nearest):
        off = np.asarray(tree["out"].dense() - PARAMS["out"])
        errors.append(np.trace(off.T @ h @ off))
    assert errors[0] < errors[1]


def test_errors() -> None:
    for wrong in (-0.1, 0.5, "0.1"):
        with pytest.raises(ValueError, match=r"outliers is from 0 to below 0\.5"):
            Weights(outliers=wrong)
    with pytest.raises(ValueError, match="outliers leave 0 in their places"):
        Weights(format=Binary(), range=MeanAbsolute(), outliers=0.1)
    with pytest.raises(ValueError, match="outliers leave 0 in their places"):
        Weights(format=Int(4), range=Lsq(), outliers=0.1)
    broken = {**PARAMS, "out": PARAMS["out"].at[1, 1].set(jnp.inf)}
    with pytest.raises(ValueError, match="'out' holds 1 of 256 numbers"):
        quantize(broken, [("out", Quantize(weights=FOUR))], sites=SITES)
