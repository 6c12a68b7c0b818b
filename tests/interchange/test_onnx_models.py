"""Whole models as ONNX, run by onnxruntime beside our own programs."""

import pathlib
import warnings
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import jcompress as jc
from jcompress.models import Compressed, w4, w8, w8a8

pytest.importorskip("jax2onnx")
onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")

RANDOM = np.random.default_rng(0)


def run(path: pathlib.Path, *inputs: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        path.read_bytes(), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    fed = dict(zip(names, map(np.asarray, inputs), strict=True))
    outputs: list[np.ndarray] = session.run(None, fed)
    return outputs


class Cnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 64, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.second = nnx.Conv(64, 64, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.apart = nnx.Conv(64, 64, (3, 3), feature_group_count=64, rngs=rngs)
        self.out = nnx.Linear(64, 128, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.norm(self.first(x))), (2, 2), (2, 2))
        x = self.apart(nnx.gelu(self.second(x)))
        window, ends = (1, 2, 2, 1), ((0, 0), (0, 1), (1, 0), (0, 0))
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 2, 1), ends)
        return self.out(x.mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(128, 64, name="table")(tokens)
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(y, y)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(64)(nn.gelu(nn.Dense(256)(y)))


def mlp() -> tuple[Any, Any]:
    rngs = nnx.Rngs(0)
    up, down = nnx.Linear(512, 2048, rngs=rngs), nnx.Linear(2048, 512, rngs=rngs)
    x = RANDOM.normal(size=(4, 512)).astype(np.float32)
    return nnx.Sequential(up, nnx.relu, down), x


def cnn() -> tuple[Any, Any]:
    return Cnn(nnx.Rngs(0)), RANDOM.normal(size=(2, 16, 16, 3)).astype(np.float32)


def block() -> tuple[Any, Any]:
    tokens = RANDOM.integers(0, 128, (2, 10)).astype(np.int32)
    return (Block(), Block().init(jax.random.key(0), tokens)), tokens


def small_equinox(step: Any) -> tuple[Compressed, Any]:
    model = eqx.nn.MLP(64, 64, 256, 2, key=jax.random.key(0))
    x = RANDOM.normal(size=(4, 64)).astype(np.float32)
    arrays, rest = eqx.partition(model, eqx.is_array)

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, rest))(x)

    return jc.compress((fn, arrays), x, step, measure=False), x


MODELS = {"nnx": mlp, "cnn": cnn, "linen": block}
STEPS = {"w8": w8, "w4": w4, "w8a8": w8a8}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", [*MODELS, "equinox"])
def test_a_model_runs_as_ours_does_for_any_batch(
    tmp_path: pathlib.Path, name: str, kind: str
) -> None:
    # `w4` takes no depthwise kernels yet.
    apart = name == "cnn" and kind == "w4"
    step = STEPS[kind](exclude=("apart/*",) if apart else ())
    if name == "equinox":
        small, x = small_equinox(step)
    else:
        model, x = MODELS[name]()
        small = jc.compress(model, x, step, measure=False)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size = small.to_onnx(path)
    assert path.stat().st_size == size
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]

    more = np.concatenate([x, x[::-1], x])
    for given in (x[:1], more):
        wanted = np.asarray(small(given))
        (got,) = run(path, given)
        assert got.shape == wanted.shape
        error, whole = np.abs(got - wanted), np.abs(wanted).max()
        if kind == "w8a8":
            # A sum that differs in its last bit may round to the next number in a
            # later layer: a step of 1 in 255 of the range of a row.
            assert np.median(error) <= 1e-4 * whole
            assert error.max() <= 0.02 * whole
        else:
            assert error.max() <= 1e-4 * whole

    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(small.params))
    # What is left are nodes and their names: the same for weights of any size.
    assert size < 1.02 * kept + (60_000 if name == "linen" else 30_000)


def test_one_range_for_the_batch_is_a_rounding_step_away(
    tmp_path: pathlib.Path,
) -> None:
    layer = nnx.Linear(256, 128, use_bias=False, rngs=nnx.Rngs(0))
    x = RANDOM.normal(size=(6, 256)).astype(np.float32)
    x *= np.array([1, 2, 3, 4, 5, 6], np.float32)[:, None]
    small = jc.compress(layer, x, w8a8(), measure=False)
    small.to_onnx(tmp_path / "model.onnx", shared_range=True)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "DynamicQuantizeLinear" in operators
    assert "MatMulInteger" in operators

    (got,) = run(tmp_path / "model.onnx", x)
    apart = np.abs(got - np.asarray(small(x)))
    assert apart.max() > 0
    # Each of the two roundings moves a number by half a step, at the ends of the range
    # by a whole one: the zero point is a rounded number, too.
    low, high = np.minimum(x, 0), np.maximum(x, 0)
    own = (high.max(1) - low.min(1)) / 255
    shared = (high.max() - low.min()) / 255
    weight = np.abs(np.asarray(small.params["kernel"].dense())).sum(0)
    bound = (own + shared)[:, None] * weight[None]
    assert (apart <= bound).all()


def test_with_operators_of_onnx_alone(tmp_path: pathlib.Path) -> None:
    model, x = mlp()
    for step in (w8(), w4(group=32)):
        small = jc.compress(model, x, step, measure=False)
        path = tmp_path / "model.onnx"
        small.to_onnx(path, portable=True)
        proto = onnx.load(path)
        assert {each.domain for each in proto.opset_import} == {""}
        assert "DequantizeLinear" in [node.op_type for node in proto.graph.node]
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        session = onnxruntime.InferenceSession(path.read_bytes(), options)
        wanted = np.asarray(small(x))
        (got,) = session.run(None, {"input": x})
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_batch_of_the_examples_size(tmp_path: pathlib.Path) -> None:
    model, x = mlp()
    small = jc.compress(model, x, w8(), measure=False)
    small.to_onnx(tmp_path / "model.onnx", any_batch=False)
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    assert session.get_inputs()[0].shape == [4, 512]
    assert session.get_outputs()[0].shape == [4, 512]
