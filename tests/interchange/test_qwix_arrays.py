"""Trees with the fields of qwix's arrays, against what their definition says."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Float8, Int
from jcompress.interchange import from_qwix, to_qwix
from jcompress.quantization import PerGroup, PerTensor, Weights
from jcompress.sites import find_sites
from jcompress.tensors import LowRank, QTensor
from jcompress.tensors.axes import Axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Stand:
    """The fields of a QArray."""

    qvalue: Any
    scale: Any
    zero_point: Any = None
    qtype: Any = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.qtype is None:
            self.qtype = self.qvalue.dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Boxed:
    """The fields of the wrapper of qwix's parameters."""

    array: Any
    how: Any = dataclasses.field(default=None, metadata={"static": True})


def dense(array: Stand) -> np.ndarray:
    """(qvalue - zero_point) scale, each entry of which serves a tile."""
    values = np.asarray(array.qvalue).astype(np.float32)
    made = np.empty(values.shape, np.float32)
    for at in np.ndindex(*values.shape):
        part = [np.asarray(array.scale)]
        part += [] if array.zero_point is None else [np.asarray(array.zero_point)]
        entries = []
        for tiles in part:
            tile = tuple(
                i * n // size
                for i, n, size in zip(at, tiles.shape, values.shape, strict=True)
            )
            entries.append(np.float32(tiles[tile]))
        zero = entries[1] if len(entries) > 1 else np.float32(0)
        made[at] = (values[at] - zero) * entries[0]
    return made


def make(
    shape: tuple[int, ...],
    scale: tuple[int, ...],
    zero: tuple[int, ...] | None = None,
    *,
    kind: Any = jnp.int8,
    low: int = -100,
    high: int = 100,
    qtype: Any = None,
) -> Stand:
    rng = np.random.default_rng(0)
    zeros = None if zero is None else jnp.asarray(rng.integers(low, high, zero), kind)
    return Stand(
        jnp.asarray(rng.integers(low, high, shape), kind),
        jnp.asarray(rng.uniform(0.5, 2, scale), jnp.float32),
        zeros,
        qtype,
    )


@pytest.mark.parametrize(
    ("scale", "zero", "stored"),
    [
        ((1, 1, 1), None, (1, 1)),
        ((1, 2, 3), None, (6, 1)),
        ((4, 2, 3), None, (6, 4)),
        ((2, 1, 3), (4, 1, 1), (6, 4)),
        ((1, 1, 1), (1, 2, 3), (6, 1)),
    ],
)
def test_tiles(
    scale: tuple[int, ...], zero: tuple[int, ...] | None, stored: tuple[int, ...]
) -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("bk,khd->bhd", x, p["w"])

    array = make((8, 2, 3), scale, zero)
    x = jax.random.normal(jax.random.key(0), (5, 8))
    sites = find_sites(model, {"w": jnp.zeros((8, 2, 3))}, x)
    leaf = from_qwix({"w": Boxed(array)}, sites)["w"]
    assert leaf.scales.shape == stored
    np.testing.assert_array_equal(leaf.dense(), dense(array))
    outputs = compressed(model)({"w": leaf}, x)
    wanted = np.einsum("bk,khd->bhd", x, dense(array))
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-2)


def test_axes_come_from_the_model() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.einsum("bhd,hdk->bk", x.reshape(-1, 2, 4), w), None

        return jax.lax.scan(step, x, p["w"])[0]

    x = jnp.ones((1, 8))
    sites = find_sites(model, {"w": jnp.zeros((3, 2, 4, 8))}, x)
    for scale, groups in (((3, 2, 2, 8), 4), ((1, 2, 1, 8), 2), ((3, 1, 4, 1), 8)):
        array = make((3, 2, 4, 8), scale)
        leaf = from_qwix({"w": array}, sites)["w"]
        assert (leaf.stack_axes, leaf.input_axes) == ((0,), (1, 2))
        assert leaf.scales.shape == (3, scale[-1], groups)
        np.testing.assert_array_equal(leaf.dense(), dense(array))


def test_a_kernel_that_was_reshaped_for_its_product() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("bk,khd->bhd", x, p["w"])

    sites = find_sites(model, {"w": jnp.zeros((8, 2, 3))}, jnp.ones((1, 8)))
    array = make((8, 6), (2, 6))
    leaf = from_qwix({"w": array}, sites)["w"]
    np.testing.assert_array_equal(leaf.dense(), dense(array).reshape(8, 2, 3))
    assert leaf.scales.shape == (6, 2)


def test_the_state_of_an_nnx_module() -> None:
    graph, state = nnx.split(nnx.Linear(8, 6, rngs=nnx.Rngs(0)))

    def model(p: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, p)(x)

    x = jax.random.normal(jax.random.key(0), (8,))
    sites = find_sites(model, state, x)
    array = make((8, 6), (2, 6), (2, 6), kind=jnp.int4, low=-8, high=8)
    fields = {
        "qvalue": array.qvalue,
        "scale": array.scale,
        "zero_point": array.zero_point,
    }
    kernel = {"array": {name: nnx.Param(field) for name, field in fields.items()}}
    quantized = nnx.State({"bias": state["bias"], "kernel": kernel})
    small = from_qwix(quantized, sites)
    assert isinstance(small["kernel"], nnx.Param)
    outputs = compressed(model)(small, x)
    np.testing.assert_allclose(outputs, np.asarray(x) @ dense(array), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "low", "high", "qtype", "format"),
    [
        (jnp.int8, -127, 128, None, Int(8)),
        (jnp.int8, -128, -126, None, Int(8, full=True)),
        (jnp.int4, -7, 8, None, Int(4)),
        (jnp.int2, -2, 2, None, Int(2, full=True)),
        (jnp.uint4, 0, 16, None, Int(4, symmetric=False)),
        (jnp.uint8, 0, 256, None, Int(8, symmetric=False)),
        (jnp.int8, -3, 4, "int3", Int(3)),
        (ml_dtypes.float8_e4m3fn, -9, 9, None, Float8()),
    ],
)
def test_numbers(kind: Any, low: int, high: int, qtype: Any, format: Any) -> None:
    model = nn.Dense(6, use_bias=False)
    x = jnp.ones((1, 8))
    sites = find_sites(model.apply, model.init(jax.random.key(0), x), x)
    array = make((8, 6), (2, 6), kind=kind, low=low, high=high, qtype=qtype)
    params = {"params": {"kernel": array}}
    leaf = from_qwix(params, sites)["params"]["kernel"]
    assert leaf.format == format
    np.testing.assert_array_equal(leaf.dense(), dense(array))
    back = to_qwix({"kernel": leaf}, Stand)["kernel"]
    np.testing.assert_array_equal(dense(back), dense(array))
    assert str(back.qtype) == str(array.qtype).replace("uint", "int")


@pytest.mark.parametrize(
    ("shape", "axes", "spec", "scale"),
    [
        ((8, 6), Axes((), (1,), (0,)), Weights(format=Int(8)), (1, 6)),
        (
            (8, 6),
            Axes((), (1,), (0,)),
            Weights(format=Int(4, symmetric=False), granularity=PerGroup(4)),
            (2, 6),
        ),
        ((8, 6), Axes((), (1,), (0,)), Weights(granularity=PerTensor()), (1, 1)),
        (
            (3, 2, 4, 8),
            Axes((0,), (3,), (1, 2)),
            Weights(format=Int(6), granularity=PerGroup(2)),
            (3, 2, 2, 8),
        ),
        ((4, 8), Axes((), (0,), (1,)), Weights(format=Float8()), (4, 1)),
    ],
)
def test_to_qwix(
    shape: tuple[int, ...], axes: Axes, spec: Weights, scale: tuple[int, ...]
) -> None:
    weight = jax.random.normal(jax.random.key(0), shape)
    leaf = QTensor.quantize(weight, axes, spec)
    made = to_qwix({"w": leaf, "b": weight}, Stand)
    assert made["b"] is weight
    array = made["w"]
    assert (array.qvalue.shape, array.scale.shape) == (shape, scale)
    assert (array.zero_point is None) == spec.format.symmetric
    np.testing.assert_array_equal(dense(array), leaf.dense())


def test_what_does_not_fit() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["w"] + p["b"]

    dense_params = {"w": jnp.zeros((8, 6)), "b": jnp.zeros(6)}
    sites = find_sites(model, dense_params, jnp.ones(8))
    good = make((8, 6), (1, 6))
    cases: list[tuple[Any, str]] = [
        (dense_params, "the tree has no QArray"),
        ({"v": good}, "'v' is a QArray, and no weight at the sites, which are w"),
        ({"b": make((6,), (1,))}, "'b' is a QArray, and no weight"),
        ({"w": make((8, 5), (1, 5))}, r"\[8, 5\] in the tree and \[8, 6\]"),
        ({"w": make((8, 6), (3, 6))}, r"scales or zero points \[3, 6\] do not tile"),
        ({"w": make((8, 6), (1, 6), (6,))}, r"\[6\] do not tile"),
        ({"w": make((8, 6), (1, 6), qtype="nf4")}, "'w' has nf4 stored as int8"),
        ({"w": make((8, 6), (1, 6), qtype="int4")}, "numbers beyond int4"),
        ({"w": make((8, 6), (1, 6), kind=jnp.float16)}, "has float16"),
    ]
    for params, said in cases:
        with pytest.raises(MismatchError, match=f"from_qwix: .*{said}"):
            from_qwix(params, sites)


def test_what_qwix_has_no_form_for() -> None:
    with pytest.raises(MismatchError, match="no QTensor"):
        to_qwix({"w": jnp.ones(3)}, Stand)
    weight = jnp.ones((2, 6, 4))
    spec = Weights(format=Int(8), granularity=PerGroup(4))
    leaf = QTensor.quantize(weight, Axes((), (2,), (0, 1)), spec)
    with pytest.raises(MismatchError, match="'w' has 3 groups"):
        to_qwix({"w": leaf}, Stand)
    low_rank = LowRank(
        factors=(jnp.ones((1, 4)), jnp.ones((4, 1))),
        shape=(4, 4),
        dtype=np.dtype(np.float32),
        output_axes=(1,),
        input_axes=(0,),
    )
    good = QTensor.quantize(jnp.ones((4, 4)), Axes((), (1,), (0,)), Weights())
    with pytest.raises(MismatchError, match="'x' is a LowRank"):
        to_qwix({"w": good, "x": low_rank}, Stand)
