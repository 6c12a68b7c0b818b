"""Encoders in the shape of MiniLM behind one server: exported by us, and ONNX files."""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from _peers import module

from jcompress.execution import compressed, fused
from jcompress.formats import Int
from jcompress.models import Compressed, Function
from jcompress.quantization import (
    Activation,
    PerRow,
    Quantize,
    Weights,
    quantize,
)
from jcompress.rules import Rules
from jcompress.serving import ArraySpec
from jcompress.serving.layout import check_arrays
from jcompress.sites import PRODUCTS, Operation, find_sites

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import minilm_bert

Variables = dict[str, Any]


def encoder() -> tuple[Variables, bool]:
    """The variables of `minilm_bert.Encoder()`, and whether they are the real ones.

    The environment variable MINILM names the folder of the real weights.
    """
    if "MINILM" in os.environ:
        return minilm_bert.load(minilm_bert.folder()), True
    tokens = np.ones((1, 8), np.int32)
    drawn = minilm_bert.Encoder().init(jax.random.key(0), tokens, tokens)
    return dict(drawn), False


def export_ours(
    variables: Variables, length: int, path: pathlib.Path, *, bits: int
) -> None:
    """Our program: floats, or weights, tables and data of products in 8 bits."""
    apply = minilm_bert.Encoder().apply
    tokens = np.ones((4, length), np.int32)
    fn, params = fused(apply), variables
    if bits == 8:
        spec = Quantize(activation=Activation(format=Int(8), granularity=PerRow()))
        rules: Rules[Quantize] = [
            (Operation.LOOKUP, Quantize(weights=Weights())),
            (lambda site: site.operation in PRODUCTS, spec),
        ]
        params = quantize(
            variables, rules, sites=find_sites(apply, variables, tokens, tokens)
        )
        fn = compressed(apply)
    Compressed(
        fn=fn,
        plain=apply,
        params=params,
        dense=Function(apply, variables, "Linen module"),
        args=(tokens, tokens),
    ).export(path, names=("tokens", "mask"))


def export_onnx(variables: Variables, path: pathlib.Path) -> None:
    """The same encoder as an ONNX graph in float32, of any batch and length."""
    onnx = module("onnx")
    graph = _Graph(onnx)
    encoder = minilm_bert.Encoder()
    params = jax.tree.map(np.asarray, variables["params"])
    x = graph.add("Gather", graph.put(params["words"]["embedding"]), "tokens")
    # Places 0, 1, ... up to the length of the tokens.
    length = graph.add("Gather", graph.add("Shape", "tokens"), graph.put(np.int64(1)))
    ends = graph.add("Unsqueeze", length, graph.put(np.array([0], np.int64)))
    zero = graph.put(np.array([0], np.int64))
    places = graph.put(params["places"]["embedding"])
    x = graph.add("Add", x, graph.add("Slice", places, zero, ends, zero))
    x = graph.add("Add", x, graph.put(params["kinds"]["embedding"][0]))
    x = graph.norm(x, params["norm"])
    kept = graph.add("Cast", "mask", to=onnx.TensorProto.FLOAT)
    # Written as onnxruntime looks for it, so that it finds the attention.
    wide = graph.add("Unsqueeze", "mask", graph.put(np.array([1], np.int64)))
    wide = graph.add("Unsqueeze", wide, graph.put(np.array([2], np.int64)))
    wide = graph.add("Cast", wide, to=onnx.TensorProto.FLOAT)
    bias = graph.add("Sub", graph.put(np.float32(1)), wide)
    bias = graph.add("Mul", bias, graph.put(np.float32(-1e9)))
    for number in range(encoder.layers):
        x = graph.layer(x, bias, params[f"layer{number}"], encoder.heads)
    weights = graph.add("Unsqueeze", kept, graph.put(np.array([2], np.int64)))
    axis = graph.put(np.array([1], np.int64))
    total = graph.add("ReduceSum", graph.add("Mul", x, weights), axis, keepdims=0)
    mean = graph.add("Div", total, graph.add("ReduceSum", weights, axis, keepdims=0))
    length_of = graph.add("ReduceL2", mean, axes=[-1], keepdims=1)
    graph.add("Div", mean, length_of, output="output")
    graph.save(path, encoder.width)


def optimize_onnx(plain: pathlib.Path, path: pathlib.Path) -> dict[str, int]:
    """Onnxruntime's own fusions for BERT, ahead of time; how many it made of each."""
    encoder = minilm_bert.Encoder()
    optimizer = module("onnxruntime.transformers.optimizer")
    best = optimizer.optimize_model(
        str(plain),
        model_type="bert",
        num_heads=encoder.heads,
        hidden_size=encoder.width,
        opt_level=0,  # what needs torch is left to the session, which does it, too
    )
    best.save_model_to_file(str(path))
    return dict(best.get_fused_operator_statistics())


def quantize_onnx(plain: pathlib.Path, path: pathlib.Path) -> None:
    """Onnxruntime's dynamic int8."""
    tools = module("onnxruntime.quantization")
    tools.quantize_dynamic(
        str(plain),
        str(path),
        weight_type=tools.QuantType.QInt8,
        # It cannot tell what its own fused operations give.
        extra_options={"DefaultTensorType": module("onnx").TensorProto.FLOAT},
    )


class OnnxModel:
    """An onnxruntime session, as the server takes it.

    Attributes:
        inputs, outputs, batch: as of `jcompress.serving.Program`.
    """

    batch = "b"

    def __init__(self, path: pathlib.Path, length: int, threads: int) -> None:
        ort = module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(path), options, ["CPUExecutionProvider"]
        )
        self.inputs = tuple(
            ArraySpec(name=name, shape=("b", length), dtype="int32")
            for name in ("tokens", "mask")
        )
        self.outputs = (ArraySpec(name="output", shape=("b", 384), dtype="float32"),)

    def check(self, arrays: Sequence[Any]) -> None:
        """As a program does."""
        check_arrays(self.inputs, arrays)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Vectors [B, 384] of tokens and mask."""
        found = self._session.run(
            None, dict(zip(("tokens", "mask"), arrays, strict=True))
        )
        return [np.asarray(out) for out in found]

    def describe(self) -> dict[str, Any]:
        """Who it is."""
        return {"runtime": "onnxruntime"}


class _Graph:
    """An ONNX graph in the making; every value has a name."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def put(self, array: Any) -> str:
        """A constant."""
        name = f"c{len(self._constants)}"
        made = self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        if np.ndim(array) == 0:
            made = self._onnx.numpy_helper.from_array(np.asarray(array), name)
        self._constants.append(made)
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node; the name of its output."""
        name = output or f"v{len(self._nodes)}"
        made = self._onnx.helper.make_node(kind, inputs, [name], **attributes)
        self._nodes.append(made)
        return name

    def norm(self, x: str, part: Mapping[str, np.ndarray]) -> str:
        scale, bias = self.put(part["scale"]), self.put(part["bias"])
        return self.add("LayerNormalization", x, scale, bias, epsilon=1e-12)

    def dense(self, x: str, part: Mapping[str, np.ndarray]) -> str:
        product = self.add("MatMul", x, self.put(part["kernel"]))
        return self.add("Add", product, self.put(part["bias"]))

    def layer(self, x: str, bias: str, part: Mapping[str, Any], heads: int) -> str:
        width = part["query"]["kernel"].shape[0]
        split = self.put(np.array([0, 0, heads, width // heads], np.int64))

        def to_heads(name: str, order: Sequence[int]) -> str:
            apart = self.add("Reshape", self.dense(x, part[name]), split)
            return self.add("Transpose", apart, perm=list(order))

        query = to_heads("query", (0, 2, 1, 3))
        key = to_heads("key", (0, 2, 3, 1))
        value = to_heads("value", (0, 2, 1, 3))
        scores = self.add("MatMul", query, key)
        root = self.put(np.float32((width // heads) ** 0.5))
        scores = self.add("Add", self.add("Div", scores, root), bias)
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        mixed = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = self.add("Reshape", mixed, self.put(np.array([0, 0, width], np.int64)))
        x = self.norm(
            self.add("Add", self.dense(mixed, part["attended"]), x), part["norm1"]
        )
        wide = self.dense(x, part["wide"])
        # Erf as torch exports it, which onnxruntime knows as one operation.
        error = self.add("Erf", self.add("Div", wide, self.put(np.float32(2**0.5))))
        twice = self.add("Mul", wide, self.add("Add", error, self.put(np.float32(1))))
        wide = self.add("Mul", twice, self.put(np.float32(0.5)))
        return self.norm(
            self.add("Add", self.dense(wide, part["narrow"]), x), part["norm2"]
        )

    def save(self, path: pathlib.Path, width: int) -> None:
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        given = [
            helper.make_tensor_value_info(name, kinds.INT32, ["batch", "length"])
            for name in ("tokens", "mask")
        ]
        out = helper.make_tensor_value_info("output", kinds.FLOAT, ["batch", width])
        graph = helper.make_graph(
            self._nodes, "encoder", given, [out], initializer=self._constants
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        self._onnx.checker.check_model(model)
        self._onnx.save(model, str(path))
