"""Weights of every format: their errors, and what runs is what was simulated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import (
    Binary,
    Float4,
    Float6,
    Float8,
    FloatScales,
    Int,
    NormalFloat4,
    PowerOfTwoScales,
    QuantizedScales,
    Ternary,
)
from jcompress.low_rank import Lora, add_adapters, merge_adapters
from jcompress.quantization import (
    Activation,
    LeastError,
    MeanAbsolute,
    PerBlock,
    Percentile,
    PerGroup,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.sites import find_sites
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes
from jcompress.tensors.weight_matrix import fake_quantize_weight

MX = PowerOfTwoScales()
FORMATS = {
    "int5": Weights(format=Int(5)),
    "int6 shifted": Weights(format=Int(6, symmetric=False), granularity=PerGroup(8)),
    "int7": Weights(format=Int(7), range=Percentile(percent=99)),
    "int16": Weights(format=Int(16, symmetric=False)),
    "int2 full": Weights(format=Int(2, full=True), granularity=PerGroup(32)),
    "int4 full": Weights(format=Int(4, full=True)),
    "int8 full": Weights(format=Int(8, full=True)),
    "e5m2": Weights(format=Float8(5)),
    "mxfp8": Weights(format=Float8(), granularity=PerGroup(32), scales=MX),
    "mxfp6": Weights(format=Float6(), granularity=PerGroup(32), scales=MX),
    "mxfp6 e3m2": Weights(format=Float6(3), granularity=PerGroup(32), scales=MX),
    "mxfp4": Weights(format=Float4(), granularity=PerGroup(32), scales=MX),
    "nvfp4": Weights(
        format=Float4(), granularity=PerGroup(16), scales=QuantizedScales()
    ),
    "nf4": Weights(format=NormalFloat4(), granularity=PerGroup(32)),
    "nf4 twice": Weights(
        format=NormalFloat4(),
        granularity=PerGroup(32),
        scales=QuantizedScales(Int(8)),
    ),
    "ternary": Weights(format=Ternary(), range=MeanAbsolute()),
    "binary": Weights(format=Binary(), granularity=PerGroup(32), range=MeanAbsolute()),
    "blocks": Weights(
        format=Int(4, symmetric=False),
        granularity=PerBlock(outputs=4, inputs=16),
        scales=FloatScales(16),
    ),
    "float8 blocks": Weights(
        format=Float8(), granularity=PerBlock(outputs=8, inputs=64)
    ),
}
DENSE = {"int16", "e5m2", "nf4", "nf4 twice"}
X = jax.random.normal(jax.random.key(1), (6, 64))
PARAMS = {
    "table": jax.random.normal(jax.random.key(2), (12, 64)),
    "layers": jax.random.normal(jax.random.key(0), (2, 64, 64)) / 8,
    "out": jax.random.normal(jax.random.key(3), (64, 24)) / 8,
}


def model(params: Any, x: jax.Array) -> jax.Array:
    x = x + params["table"][jnp.arange(len(x))]

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x @ params["out"]


SITES = find_sites(model, PARAMS, X)


@pytest.mark.parametrize("name", FORMATS)
def test_what_runs_is_what_was_simulated(name: str, tmp_path: Any) -> None:
    spec = FORMATS[name]
    lookups = dataclasses.replace(spec, granularity=PerGroup(32))
    rules = [("table", Quantize(weights=lookups)), (..., Quantize(weights=spec))]
    small = quantize(PARAMS, rules, sites=SITES)
    jax.tree.map(
        np.testing.assert_array_equal,
        {"table": small["table"].dense(), "out": small["out"].dense()},
        {
            "table": fake_quantize_weight(
                PARAMS["table"], small["table"].axes, lookups
            ),
            "out": fake_quantize_weight(PARAMS["out"], small["out"].axes, spec),
        },
    )
    stored = sum(one.stored_bytes for one in small.values())
    assert stored == jax.tree.reduce(lambda n, x: n + x.nbytes, small, 0)
    simulated = jax.jit(fake_quant(model, rules))(PARAMS, X)
    run = jax.jit(compressed(model))
    size = float(jnp.abs(simulated).max())
    np.testing.assert_allclose(run(small, X), simulated, atol=2e-5 * size)
    # The control: another number stored, another result.
    changed = small["out"].values.at[0].set(small["out"].values[1])
    broken = {**small, "out": dataclasses.replace(small["out"], values=changed)}
    assert float(jnp.abs(run(broken, X) - simulated).max()) > 1e-3 * size
    ways = {use.path: use.how for use in inspect(model, small, X)}
    product = How.DENSE if name in DENSE else How.WEIGHT_ONLY
    # Those of the kernels' own formats that are small become dense in one step.
    last = How.DENSE if name.endswith("full") else product
    assert ways == {"table": How.ROWS, "layers": product, "out": last}
    checkpoint.save(tmp_path / "saved", small)
    loaded = checkpoint.load(tmp_path / "saved", like=small)
    jax.tree.map(np.testing.assert_array_equal, loaded, small)


@pytest.mark.parametrize(
    "name", ["mxfp4", "ternary", "binary", "int6 shifted", "int8 full"]
)
def test_integers_behind_other_formats_multiply_integers(name: str) -> None:
    rules = [("out", Quantize(weights=FORMATS[name], activation=Activation()))]
    small = quantize(PARAMS, rules, sites=SITES)
    simulated = fake_quant(model, rules)(PARAMS, X)
    np.testing.assert_allclose(compressed(model)(small, X), simulated, atol=1e-4)
    (use,) = (u for u in inspect(model, small, X) if u.path == "out")
    grouped = small["out"].scales.shape[-1] > 1
    assert use.how is (How.WEIGHT_ONLY if grouped else How.INTEGER)


@pytest.mark.parametrize("format", [Float8(5), Float4(), Int(16)], ids=str)
def test_data_that_no_kernel_takes_is_rounded_first(format: Any) -> None:
    activation = Activation(format=format)
    rules = [("out", Quantize(weights=Weights(), activation=activation))]
    small = quantize(PARAMS, rules, sites=SITES)
    simulated = fake_quant(model, rules)(PARAMS, X)
    np.testing.assert_allclose(compressed(model)(small, X), simulated, atol=1e-4)
    assert float(jnp.abs(simulated - model(PARAMS, X)).max()) > 1e-5


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        (Weights(format=Int(8)), 0.0077),
        (Weights(format=Int(4)), 0.126),
        (Weights(format=Int(4, full=True)), 0.1195),
        (Weights(format=Int(2, full=True), range=LeastError()), 0.43),
        (Weights(format=Int(4), range=LeastError()), 0.111),
        (Weights(format=NormalFloat4(), granularity=PerGroup(32)), 0.099),
        # Its scales are powers of 2 for 32 weights, those of nvfp4 float8 for 16.
        (FORMATS["mxfp4"], 0.1085),
        (FORMATS["nvfp4"], 0.0896),
        (dataclasses.replace(FORMATS["nvfp4"], range=LeastError()), 0.0846),
    ],
    ids=[
        "int8",
        "int4",
        "int4 full",
        "int2 full",
        "int4 least",
        "nf4",
        "mxfp4",
        "nvfp4",
        "nvfp4 least",
    ],
)
def test_relative_errors_on_normal_weights(spec: Weights, most: float) -> None:
    w = jax.random.normal(jax.random.key(0), (512, 128))
    dense = QTensor.quantize(w, Axes((), (0,), (1,)), spec).dense()
    error = float(jnp.abs(dense - w).mean() / jnp.abs(w).mean())
    assert error <= most


def test_the_lowest_number_of_8_bits_meets_the_largest_data() -> None:
    # Where sums of two products of bytes come nearest to leaving 16 bits.
    numbers = np.where(np.arange(64) % 3 == 0, 127, -128).astype(np.int8)
    numbers = np.tile(numbers, (256, 1))
    leaf = QTensor.pack(
        jnp.asarray(numbers),
        jnp.ones((256, 1)),
        None,
        FORMATS["int8 full"],
        jax.ShapeDtypeStruct((64, 256), jnp.float32),
        Axes((), (1,), (0,)),
        activation=Activation(format=Int(8)),
    )
    for x in (jnp.ones((3, 64)), -jnp.ones((3, 64))):
        y = compressed(product)(leaf, x)
        np.testing.assert_allclose(y, np.asarray(x) @ numbers.T, rtol=1e-6)
    (use,) = inspect(product, leaf, x)
    assert use.how is How.INTEGER


def product(w: Any, x: jax.Array) -> jax.Array:
    return x @ w


def test_data_is_not_rounded_to_a_full_format() -> None:
    with pytest.raises(ValueError, match=r"full=True is for weights.*Int\(8\)"):
        Activation(format=Int(8, full=True))


def test_the_scale_of_a_block_is_that_of_its_largest_weight() -> None:
    w = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    spec = Weights(format=Int(8), granularity=PerBlock(outputs=4, inputs=3))
    made = QTensor.quantize(jnp.asarray(w), Axes((), (0,), (1,)), spec)
    assert made.form == "int8 block 4x3"
    blocks = np.abs(w).reshape(2, 4, 2, 3).max(axis=(1, 3))
    np.testing.assert_allclose(made.scales, blocks / 127, rtol=1e-6)
    scale = np.repeat(np.repeat(blocks / 127, 4, 0), 3, 1)
    np.testing.assert_allclose(made.dense(), np.round(w / scale) * scale, atol=1e-6)


def test_the_scale_of_signs_is_the_best_there_is() -> None:
    w = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    spec = Weights(format=Binary(), range=MeanAbsolute())
    dense = np.asarray(
        QTensor.quantize(jnp.asarray(w), Axes((), (0,), (1,)), spec).dense()
    )
    for row, ours in zip(w, dense, strict=True):
        sizes = np.linspace(0.2, 1.5, 400)[:, None]
        errors = np.square(sizes * np.sign(row) - row).sum(1)
        assert np.square(ours - row).sum() <= errors.min() + 1e-4


def test_a_percentile_clips_the_outermost_weights() -> None:
    w = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    w[0, 0] = 100
    axes = Axes((), (0,), (1,))
    for symmetric in (True, False):
        format = Int(4, symmetric=symmetric)
        spec = Weights(format=format, range=Percentile(percent=99))
        full = Weights(format=format)
        errors = [
            np.abs(np.asarray(QTensor.quantize(jnp.asarray(w), axes, one).dense()) - w)
            for one in (spec, full)
        ]
        assert np.median(errors[0][0]) < 0.2 * np.median(errors[1][0])
        assert errors[0][0, 0] > 90


@pytest.mark.parametrize("name", ["nvfp4", "ternary", "blocks"])
def test_an_adapted_leaf_is_merged_into_the_format_of_its_base(name: str) -> None:
    small = quantize(PARAMS, [("out", Quantize(weights=FORMATS[name]))], sites=SITES)
    adapted = add_adapters(
        small, [("out", Lora(rank=2))], sites=SITES, key=jax.random.key(0)
    )
    merged = merge_adapters(adapted, requantize=True)["out"]
    for part in ("form", "scale_format", "stored_bytes"):
        assert getattr(merged, part) == getattr(small["out"], part)


def test_bad_specs_and_misfits() -> None:
    with pytest.raises(ValueError, match=r"Binary\(\) needs range=MeanAbsolute"):
        Weights(format=Binary())
    with pytest.raises(ValueError, match="is for Binary"):
        Weights(range=MeanAbsolute())
    with pytest.raises(TypeError, match="scales is FloatScales"):
        Weights(scales=jnp.bfloat16)
    with pytest.raises(ValueError, match="percent is above 50"):
        Percentile(percent=0.999)
    with pytest.raises(ValueError, match="PerBlock: inputs is a positive int, not 0"):
        PerBlock(outputs=4, inputs=0)
    odd = Quantize(weights=Weights(granularity=PerBlock(outputs=5, inputs=16)))
    with pytest.raises(MismatchError, match="blocks of 5 do not divide the 24 outputs"):
        quantize(PARAMS, [("out", odd)], sites=SITES)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nf4", "ternary", "blocks"])
def test_one_error_names_what_is_not_finite(name: str) -> None:
    broken = {**PARAMS, "out": PARAMS["out"].at[3, 3].set(jnp.nan)}
    rules = [("out", Quantize(weights=FORMATS[name]))]
    with pytest.raises(ValueError, match="'out' holds 1 of 1536 numbers"):
        quantize(broken, rules, sites=SITES)


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    power=st.integers(-44, 37),
    constant=st.booleans(),
    holes=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_any_finite_weights(
    name: str, power: int, constant: bool, holes: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    w = np.ones((64, 8)) if constant else np.clip(draw.normal(size=(64, 8)), -3, 3)
    w[: 16 * holes] = 0
    w = np.asarray(w * 10.0**power, np.float32)
    spec, axes = FORMATS[name], Axes((), (1,), (0,))
    made = _quantized(jnp.asarray(w), axes, spec)
    eager = QTensor.quantize(jnp.asarray(w), axes, spec)
    jax.tree.map(np.testing.assert_array_equal, made, eager)
    abstract = jax.eval_shape(lambda x: QTensor.quantize(x, axes, spec), w)
    assert jax.tree.structure(abstract) == jax.tree.structure(made)
    dense = np.asarray(made.dense())
    assert np.isfinite(dense).all()
    # The scale of ternary numbers is a mean, small where most weights are 0.
    assert np.abs(dense - w).max() <= np.abs(w).max() + 1e-37
    exact = spec.format.symmetric and not name.endswith("full")
    if constant and not holes and power > -36 and exact:
        # 5, in the middle between two numbers of mxfp4, becomes 4.
        np.testing.assert_allclose(dense, w, rtol=0.201)


_quantized = jax.jit(QTensor.quantize, static_argnums=(1, 2))
