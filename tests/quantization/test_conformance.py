"""What every method of quantization promises, in one table: methods by promises."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jcompress import checkpoint
from jcompress.calibration import Static, choose_ranges
from jcompress.execution import compressed
from jcompress.formats import Binary, Float8, Int, PowerOfTwoScales, Ternary
from jcompress.qat import Lsq, Pact, StochasticRounding, init_scales
from jcompress.quantization import (
    Activation,
    LeastError,
    MeanAbsolute,
    MovingAverage,
    PerBlock,
    Percentile,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    calibrate,
    fake_quant,
    init_ranges,
    quantize,
)
from jcompress.rounding import AdaRound, CoordinateDescent, Gptq, SignRound
from jcompress.sites import find_sites
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors import WithOutliers, is_compressed

WIDTH = 16
X = jax.random.normal(jax.random.key(1), (8, WIDTH))
PARAMS = {
    "layers": jax.random.normal(jax.random.key(0), (2, WIDTH, WIDTH)) / 4,
    "out": jax.random.normal(jax.random.key(2), (WIDTH, 8)) / 4,
}
GROUPS = Weights(format=Int(4, symmetric=False), granularity=PerGroup(8))
METHODS = {
    "nearest": Quantize(weights=GROUPS),
    "full": Quantize(weights=Weights(format=Int(2, full=True))),
    "least error": Quantize(weights=dataclasses.replace(GROUPS, range=LeastError())),
    "percentile": Quantize(weights=Weights(range=Percentile(percent=95))),
    "blocks": Quantize(weights=Weights(granularity=PerBlock(outputs=4, inputs=8))),
    "mx": Quantize(
        weights=Weights(
            format=Float8(), granularity=PerGroup(8), scales=PowerOfTwoScales()
        )
    ),
    "ternary": Quantize(weights=Weights(format=Ternary(), range=MeanAbsolute())),
    "binary": Quantize(weights=Weights(format=Binary(), range=MeanAbsolute())),
    "outliers": Quantize(weights=dataclasses.replace(GROUPS, outliers=0.03)),
    "gptq": Quantize(weights=GROUPS, rounding=Gptq()),
    "signround": Quantize(weights=GROUPS, rounding=SignRound(steps=5)),
    "adaround": Quantize(weights=GROUPS, rounding=AdaRound(steps=5)),
    "descent": Quantize(weights=GROUPS, rounding=CoordinateDescent()),
    "by row": Quantize(activation=Activation()),
    "by tensor": Quantize(activation=Activation(granularity=PerTensor())),
    "moving": Quantize(activation=Activation(range=MovingAverage())),
    "static": Quantize(activation=Activation(range=Static())),
    "lsq": Quantize(
        weights=Weights(format=Int(4), range=Lsq()),
        activation=Activation(range=Lsq()),
    ),
    "pact": Quantize(activation=Activation(range=Pact())),
}
LEARNS = {"gptq", "signround", "adaround", "descent"}


def model(params: Any, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, params["layers"])[0] @ params["out"]


SITES = find_sites(model, PARAMS, X)


def rules_of(name: str) -> Any:
    return [(..., METHODS[name])]


@functools.cache
def known(name: str) -> dict[str, Any]:
    """What a method needs to know of the data."""
    rules = rules_of(name)
    if name in LEARNS:
        _, moments = observe(model, rules, SecondMoments())(PARAMS, X)
        return {"moments": moments}
    if name == "moving":
        none = init_ranges(model, rules, PARAMS, X)
        return {"ranges": calibrate(model, rules)(PARAMS, none, X)[1]}
    if name == "static":
        return {"ranges": choose_ranges(model, rules, PARAMS, [(X,)])}
    if name in ("lsq", "pact"):
        return {"scales": init_scales(model, rules, PARAMS, X)}
    return {}


def converter(name: str) -> Callable[[Any], Any]:
    return functools.partial(quantize, rules=rules_of(name), sites=SITES, **known(name))


@functools.cache
def made(name: str) -> Any:
    return converter(name)(PARAMS)


def stored(tree: Any) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", METHODS)
def test_jitted_and_abstract_as_eager(name: str) -> None:
    small = made(name)
    jitted = jax.jit(converter(name))(PARAMS)
    abstract = jax.eval_shape(converter(name), PARAMS)
    chex.assert_trees_all_equal_structs(small, jitted, abstract)
    for ours, theirs, shape in zip(
        stored(small), stored(jitted), jax.tree.leaves(abstract), strict=True
    ):
        assert (ours.shape, ours.dtype) == (shape.shape, shape.dtype)
        if ours.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        else:
            # Sums in another order may tip what lies in the middle.
            assert (ours != theirs).mean() <= (0.02 if name in LEARNS else 0)


@pytest.mark.parametrize("name", METHODS)
def test_what_was_trained_is_served(name: str, tmp_path: Any) -> None:
    small = made(name)
    checkpoint.save(tmp_path / "saved", small)
    loaded = checkpoint.load(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, loaded, small)
    if name in LEARNS:
        # No training gives these numbers: they are those of the stored weights.
        dense = jax.tree.map(lambda x: x.dense(), loaded, is_leaf=is_compressed)
        simulated = jax.jit(model)(dense, X)
    else:
        given = {k: v for k, v in known(name).items() if k != "moments"}
        simulated = jax.jit(fake_quant(model, rules_of(name), **given))(PARAMS, X)
    size = float(jnp.abs(simulated).max())
    far = jnp.abs(jax.jit(compressed(model))(loaded, X) - simulated)
    # A sum that comes out a little differently may tip the rounding of one input.
    assert float(jnp.median(far)) < 2e-5 * size
    wrong = jax.tree.map(lambda x: jnp.flip(x, 0) if x.ndim else x, loaded)
    far = jnp.abs(jax.jit(compressed(model))(wrong, X) - simulated)
    assert float(jnp.median(far)) > 1e-2 * size


@pytest.mark.parametrize("name", METHODS)
def test_another_tree_of_the_same_kind_is_not_traced_again(name: str) -> None:
    run = jax.jit(chex.assert_max_traces(compressed(model), n=1))
    chex.clear_trace_counter()
    first = run(made(name), X)
    other = {key: value / 2 for key, value in PARAMS.items()}
    second = run(converter(name)(other), X)
    assert first.shape == second.shape
    assert bool(jnp.any(first != second))


@pytest.mark.parametrize("name", METHODS)
def test_sharding_is_kept(name: str) -> None:
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    places = {"layers": P(None, None, "model"), "out": P("model", None)}
    placed = {
        key: jax.device_put(value, NamedSharding(mesh, places[key]))
        for key, value in PARAMS.items()
    }
    small = converter(name)(placed)
    leaf = small["layers"]
    leaf = leaf.base if isinstance(leaf, WithOutliers) else leaf
    assert not leaf.values.sharding.is_fully_replicated
    if name != "lsq":  # whose scales were given on one device
        assert len(leaf.scales.sharding.device_set) == 4
    ours = jax.jit(compressed(model))(small, X)
    alone = jax.jit(compressed(model))(made(name), X)
    assert float(jnp.median(jnp.abs(ours - alone))) < 1e-4


TRAINED = [name for name in METHODS if name not in LEARNS]


@pytest.mark.parametrize("name", TRAINED)
def test_training_traces_once_and_keeps_its_sharding(name: str) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch = jax.device_put(X, NamedSharding(mesh, P("data")))
    weights = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    given = dict(known(name))
    scales = jax.device_put(given.pop("scales", None), NamedSharding(mesh, P()))
    noise = StochasticRounding(key=jax.random.key(0)) if name == "nearest" else None

    def loss(trained: Any, x: jax.Array) -> jax.Array:
        params, scales = trained
        extra = {**given, "scales": scales, "noise": noise}
        student = fake_quant(model, rules_of(name), **extra)
        return jnp.mean(jnp.square(student(params, x) - model(PARAMS, x) * 2))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(trained: Any, x: jax.Array) -> Any:
        value, slope = jax.value_and_grad(loss)(trained, x)
        rate = np.float32(0.05)
        return jax.tree.map(lambda w, g: w - rate * g, trained, slope), value

    chex.clear_trace_counter()
    trained, losses = (weights, scales), []
    for _ in range(8):
        trained, value = step(trained, batch)
        losses.append(float(value))
    assert min(losses[1:]) < losses[0]
    for before, after in zip(
        jax.tree.leaves(weights), jax.tree.leaves(trained[0]), strict=True
    ):
        assert after.sharding.is_equivalent_to(before.sharding, before.ndim)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_error_names_the_leaf_and_counts(name: str, bad: float) -> None:
    broken = {**PARAMS, "layers": PARAMS["layers"].at[1, :2, 3].set(bad)}
    with pytest.raises(ValueError, match=r"'layers' holds 2 of 512 numbers"):
        converter(name)(broken)


@settings(max_examples=15)
@given(
    name=st.sampled_from(sorted(set(METHODS) - {"lsq", "pact", "moving", "static"})),
    inputs=st.sampled_from([8, 16, 24]),
    outputs=st.sampled_from([4, 8]),
    power=st.integers(-30, 30),
    constant=st.booleans(),
)
def test_any_finite_weights_become_finite_ones(
    name: str, inputs: int, outputs: int, power: int, constant: bool
) -> None:
    draw = np.random.default_rng(inputs + outputs)
    w = np.ones((inputs, outputs)) if constant else draw.normal(size=(inputs, outputs))
    params = {"w": jnp.asarray(w * 10.0**power, jnp.float32)}
    x = jnp.asarray(draw.normal(size=(32, inputs)), jnp.float32)
    apply = lambda params, x: x @ params["w"]  # noqa: E731
    moments = {"w": x.T @ x} if name in LEARNS else None
    small = quantize(
        params, rules_of(name), sites=find_sites(apply, params, x), moments=moments
    )
    dense = np.asarray(small["w"].dense())
    assert np.isfinite(dense).all()
    assert np.abs(dense - params["w"]).max() <= 2 * np.abs(params["w"]).max()
