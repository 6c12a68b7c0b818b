"""Every kind of compressed leaf and of place for it in an ONNX file."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.calibration import Static
from jcompress.execution import compressed
from jcompress.formats import Float8, Int, Ternary
from jcompress.interchange import OnnxError, WrittenDense, onnx_rewrites, write_onnx
from jcompress.interchange.onnx_pieces import one
from jcompress.low_rank import Svd, factorize
from jcompress.pruning import NM, to_sparse
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    quantize,
)
from jcompress.sites import find_sites
from jcompress.tensors import Codebook
from jcompress.tensors.axes import Axes
from jcompress.tensors.ranges import Range

pytest.importorskip("jax2onnx")
onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")

RANDOM = np.random.default_rng(0)
(BATCH,) = jax.export.symbolic_shape("b")


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"][None]


def two_axes(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("bk,khd->bhd", x, params["w"])


def turned(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"].T


def experts(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("bek,ekn->ebn", x, params["w"])


def scanned(params: Any, x: jax.Array) -> jax.Array:
    def step(carry: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(carry @ w), None

    return jax.lax.scan(step, x, params["w"])[0]


def tied(params: Any, tokens: jax.Array) -> jax.Array:
    return jnp.take(params["w"], tokens, axis=0) @ params["w"].T


def windows(params: Any, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        params["w"],
        (2, 1),
        ((1, 0), (2, 1)),
        rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )


def with_arithmetic(params: Any, x: jax.Array) -> jax.Array:
    return x @ (params["w"] * 2.0)


def written(
    tmp_path: pathlib.Path,
    fn: Callable[..., Any],
    params: Any,
    x: Any,
    *,
    near: float = 3e-5,
    open_batch: bool = True,
    **how: bool,
) -> Any:
    """The ONNX model, whose results are near ours."""
    path = tmp_path / "model.onnx"
    shape = (BATCH, *x.shape[1:]) if open_batch else x.shape
    write_onnx(path, fn, params, jax.ShapeDtypeStruct(shape, x.dtype), **how)
    session = onnxruntime.InferenceSession(
        path.read_bytes(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(["output"], {"input": x})
    wanted = np.asarray(compressed(fn)(params, x))
    assert got.shape == wanted.shape
    assert np.abs(wanted).max() > 0
    apart = np.abs(got - wanted) / np.abs(wanted).max()
    if any(getattr(leaf, "activation", None) for leaf in params.values()):
        # A number on the edge may round to the next one: a step in what it meets.
        assert np.median(apart) <= near
        assert apart.max() <= max(near, 0.03)
    else:
        assert apart.max() <= near
    return onnx.load(path)


def operators(proto: Any) -> set[str]:
    return {node.op_type for node in proto.graph.node}


def quantized(fn: Any, params: Any, x: Any, **spec: Any) -> Any:
    sites = find_sites(fn, params, x)
    activation = spec.get("activation")
    stored = activation is not None and isinstance(activation.range, Static)
    ranges = {"w": [Range(jnp.float32(-2.5), jnp.float32(3))]} if stored else None
    return quantize(params, [("w", Quantize(**spec))], sites=sites, ranges=ranges)


WEIGHTS = {
    "int8": (Weights(), "Cast"),
    "int8 with zeros": (Weights(format=Int(8, symmetric=False)), "Cast"),
    "int8 groups": (Weights(granularity=PerGroup(32)), "Cast"),
    "int8 tensor": (Weights(granularity=PerTensor()), "Cast"),
    "int6": (Weights(format=Int(6)), "Cast"),
    "int4 with zeros": (
        Weights(format=Int(4, symmetric=False), granularity=PerGroup(48)),
        "MatMulNBits",
    ),
    "int4 small groups": (
        Weights(format=Int(4, symmetric=False), granularity=PerGroup(8)),
        "DequantizeLinear",
    ),
    "int3": (Weights(format=Int(3)), "MatMulNBits"),
    "ternary": (Weights(format=Ternary()), "MatMulNBits"),
    "int16": (Weights(format=Int(16)), "DequantizeLinear"),
    "float8": (Weights(format=Float8()), "Cast"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_formats(tmp_path: pathlib.Path, name: str) -> None:
    spec, operator = WEIGHTS[name]
    params = {"w": normal(96, 64), "b": normal(64)}
    x = normal(5, 96)
    small = quantized(layer, params, x, weights=spec)
    proto = written(tmp_path, layer, small, x)
    assert operator in operators(proto)
    proto = written(tmp_path, layer, small, x, portable=True, near=2e-2)
    assert {each.domain for each in proto.opset_import} == {""}


DATA = {
    "rows": (Activation(), "MatMulInteger"),
    "symmetric rows": (Activation(format=Int(8)), "MatMulInteger"),
    "rows of 6 bits": (Activation(format=Int(6)), "MatMulInteger"),
    "the batch": (Activation(granularity=PerTensor()), "DynamicQuantizeLinear"),
    "stored": (Activation(range=Static()), "MatMulInteger"),
    "16 bits": (Activation(format=Int(16)), "Round"),
}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", DATA)
def test_data(tmp_path: pathlib.Path, name: str, symmetric: bool) -> None:
    activation, operator = DATA[name]
    params = {"w": normal(96, 64), "b": normal(64)}
    x = normal(5, 96)
    small = quantized(
        layer,
        params,
        x,
        weights=Weights(format=Int(8, symmetric=symmetric)),
        activation=activation,
    )
    proto = written(tmp_path, layer, small, x)
    assert operator in operators(proto)
    # With int8 onnxruntime's sums saturate on a processor without VNNI.
    kinds = {each.name: each.data_type for each in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "MatMulInteger":
            assert kinds[node.input[1]] == onnx.TensorProto.UINT8
    if name == "stored":
        proto = written(tmp_path, layer, small, x, near=0.02, portable=True)
        assert operators(proto) >= {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("name", ["rows", "the batch", "stored"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_data_of_windows(tmp_path: pathlib.Path, name: str, symmetric: bool) -> None:
    params, x = {"w": normal(3, 3, 8, 64)}, normal(5, 9, 8, 16)
    small = quantized(
        windows,
        params,
        x,
        weights=Weights(format=Int(8, symmetric=symmetric)),
        activation=DATA[name][0],
    )
    proto = written(tmp_path, windows, small, x)
    if name == "stored":
        written(tmp_path, windows, small, x, near=0.02, portable=True)
    # `ConvInteger` of onnxruntime takes one zero point for all outputs.
    assert ("ConvInteger" in operators(proto)) == symmetric


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 16])
def test_few_bits_of_weights_and_data(
    tmp_path: pathlib.Path, bits: int, group: int | None
) -> None:
    params, x = {"w": normal(64, 96), "b": normal(96)}, normal(5, 64)
    spec = {} if group is None else {"granularity": PerGroup(group)}
    small = quantized(
        layer,
        params,
        x,
        weights=Weights(format=Int(bits), **spec),
        activation=Activation(),
    )
    proto = written(tmp_path, layer, small, x)
    assert ("MatMulInteger" in operators(proto)) == (group is None)


PLACES: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "two axes": (two_axes, (64, 8, 16), (5, 64)),
    "turned": (turned, (96, 64), (5, 64)),
    "experts": (experts, (3, 64, 32), (5, 3, 64)),
    "scanned": (scanned, (3, 64, 64), (5, 64)),
    "windows": (windows, (3, 3, 8, 64), (5, 9, 8, 16)),
    "arithmetic": (with_arithmetic, (64, 96), (5, 64)),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("data", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("name", PLACES)
def test_places(tmp_path: pathlib.Path, name: str, data: bool, bits: int) -> None:
    fn, shape, given = PLACES[name]
    params, x = {"w": normal(*shape)}, normal(*given)
    small = quantized(
        fn,
        params,
        x,
        weights=Weights(format=Int(bits)),
        activation=Activation() if data else None,
    )
    near = 0.05 if data and name == "scanned" else 3e-5
    proto = written(tmp_path, fn, small, x, near=near)
    assert proto.ByteSize() < 1.1 * params["w"].size + 12_000
    if name == "windows":
        kind = "ConvInteger" if data else "Conv"
        assert kind in operators(proto)
        if data:
            proto = written(tmp_path, fn, small, x, near=0.05, shared_range=True)
            assert "DynamicQuantizeLinear" in operators(proto)


@pytest.mark.parametrize("bits", [4, 8])
def test_tables(tmp_path: pathlib.Path, bits: int) -> None:
    params = {"w": normal(512, 64)}
    tokens = RANDOM.integers(0, 512, (2, 7)).astype(np.int32)
    small = quantized(tied, params, tokens, weights=Weights(format=Int(bits)))
    proto = written(tmp_path, tied, small, tokens)
    assert "Gather" in operators(proto)


def test_factors(tmp_path: pathlib.Path) -> None:
    params, x = {"w": normal(96, 128), "b": normal(128)}, normal(5, 96)
    sites = find_sites(layer, params, x)
    small = factorize(params, [("w", Svd(rank=16))], sites=sites)
    proto = written(tmp_path, layer, small, x)
    assert proto.ByteSize() < 4 * 16 * (96 + 128) + 4000


def test_a_codebook(tmp_path: pathlib.Path) -> None:
    dense = RANDOM.choice(normal(30), (96, 128)).astype(np.float32)
    params = {"w": Codebook.of(dense, Axes((), (1,), (0,))), "b": normal(128)}
    proto = written(tmp_path, layer, params, normal(5, 96))
    assert proto.ByteSize() < dense.size + 4000


def test_a_tree_without_compressed_leaves(tmp_path: pathlib.Path) -> None:
    params, x = {"w": normal(8, 4), "b": normal(4)}, normal(5, 8)
    path = tmp_path / "model.onnx"
    write_onnx(path, layer, params, x)
    session = onnxruntime.InferenceSession(path.read_bytes())
    (got,) = session.run(None, {"input": x})
    np.testing.assert_allclose(got, layer(params, x), rtol=1e-5, atol=1e-5)


def test_several_inputs_and_results_are_named_in_order(tmp_path: pathlib.Path) -> None:
    def fn(params: Any, x: Any, scale: Any) -> Any:
        y = x["a"] @ params["w"]
        return {"scaled": y * scale, "plain": y}

    params, a, scale = {"w": normal(64, 96)}, normal(3, 64), np.array(2, np.float32)
    write_onnx(tmp_path / "m.onnx", fn, params, {"a": a}, scale)
    session = onnxruntime.InferenceSession((tmp_path / "m.onnx").read_bytes())
    assert [i.name for i in session.get_inputs()] == ["input_0", "input_1"]
    plain, scaled = session.run(
        ["output_0", "output_1"], {"input_0": a, "input_1": scale}
    )
    np.testing.assert_allclose(scaled, 2 * plain, rtol=1e-6)


def test_what_has_no_form_is_dense_and_named(tmp_path: pathlib.Path) -> None:
    params, x = {"w": normal(64, 96), "b": normal(96)}, normal(5, 64)
    sites = find_sites(layer, params, x)
    w = params["w"].copy()
    w.reshape(32, 2, 96)[:, 0] = 0
    params["w"] = w
    small = to_sparse(params, [("w", NM(1, 2))], sites=sites)
    with pytest.warns(WrittenDense, match=r"w \(.*has no form in ONNX.*24,576 bytes"):
        proto = written(tmp_path, layer, small, x)
    assert proto.ByteSize() > 24_576


@pytest.mark.parametrize("data", [False, True], ids=["floats", "integers"])
def test_outliers_are_dense_and_their_data_is_rounded(
    tmp_path: pathlib.Path, data: bool
) -> None:
    params, x = {"w": normal(64, 96), "b": normal(96)}, normal(5, 64)
    small = quantized(
        layer,
        params,
        x,
        weights=Weights(outliers=0.01),
        activation=Activation() if data else None,
    )
    with pytest.warns(WrittenDense, match="w .*has no form in ONNX"):
        written(tmp_path, layer, small, x)


def test_inputs_and_results_of_every_kind(tmp_path: pathlib.Path) -> None:
    def fn(params: Any, x: Any, unused: Any, flags: Any) -> Any:
        y = x @ params["w"]
        kept = jnp.where(flags[:, None], y, 0.0)
        return y, x, flags, params["b"], y.argmax(-1), kept, y

    params, x = {"w": normal(64, 96), "b": normal(96)}, normal(5, 64)
    flags = np.array([True, False, True, True, False])
    small = quantize(
        params,
        [("w", Quantize())],
        sites=find_sites(fn, params, x, x, flags),
    )
    write_onnx(tmp_path / "m.onnx", fn, small, x, x, flags)
    session = onnxruntime.InferenceSession((tmp_path / "m.onnx").read_bytes())
    names = [each.name for each in session.get_inputs()]
    assert names == ["input_0", "input_1", "input_2"]
    got = session.run(None, dict(zip(names, (x, x, flags), strict=True)))
    for each, wanted in zip(got, compressed(fn)(small, x, x, flags), strict=True):
        np.testing.assert_allclose(each, wanted, atol=1e-4)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    x = normal(4, 4)

    def odd(params: Any, x: jax.Array) -> jax.Array:
        return (
            jax.pure_callback(
                lambda y: np.asarray(y), jax.ShapeDtypeStruct((4, 4), np.float32), x
            )
            @ params["w"]
        )

    with pytest.raises(OnnxError, match="pure_callback"):
        write_onnx(path, odd, {"w": normal(4, 4)}, x)
    half = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    with pytest.raises(OnnxError, match="w is bfloat16, and only models in float32"):
        write_onnx(path, turned, half, x)
    for place in (tmp_path, tmp_path / "absent" / "m.onnx", path / "m.onnx"):
        with pytest.raises(OSError, match=str(place)):
            write_onnx(place, lambda: 1 / 0, {})
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_computes_something_else_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, x, params = tmp_path / "m.onnx", normal(5, 8), {"w": normal(8, 4)}

    def other(eqn: Any, ins: Any) -> Any:
        return one((5, 4), np.float32, broken, *ins)

    for operator, said in (
        ("MatMul", "result 0 in onnxruntime is not that of the model: the difference"),
        ("Absent", "is no valid ONNX model: No Op registered for Absent"),
    ):

        def broken(graph: Any, x: Any, y: Any, operator: str = operator) -> Any:
            kind = ((5, 4), np.float32)
            return graph.node("Neg", graph.node(operator, x, y, gives=kind), gives=kind)

        monkeypatch.setitem(onnx_rewrites._REWRITES, "dot_general", other)
        with pytest.raises(OnnxError, match=said):
            write_onnx(path, lambda params, x: x @ params["w"], params, x)
        assert not list(tmp_path.iterdir())


def test_shapes_that_a_product_may_have(tmp_path: pathlib.Path) -> None:
    def fn(params: Any, x: jax.Array) -> Any:
        a = jnp.einsum("bk,kn->nb", x, params["a"])
        b = jnp.einsum("ebk,kbn->ben", params["b"], params["c"])
        c = jnp.einsum("bk,b->bk", x, params["d"])
        kernel = params["a"][None, :4, None]
        d = jax.lax.conv_general_dilated(
            x[:, None],
            kernel[0].T,
            (1,),
            "SAME",
            dimension_numbers=("NCW", "OIW", "CNW"),
        )
        e = jax.lax.reshape(params["b"], (20, 6), dimensions=(2, 0, 1))
        return a, b, c, d, e

    params = {
        "a": normal(8, 4),
        "b": normal(6, 5, 4),
        "c": normal(4, 5, 3),
        "d": normal(5),
    }
    write_onnx(tmp_path / "m.onnx", fn, params, normal(5, 8))


def test_the_extra_is_named_before_any_work(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'jcompress\[onnx\]'"):
        write_onnx(tmp_path / "model.onnx", lambda: 1 / 0, {})
    assert not list(tmp_path.iterdir())
