"""int8 weights with activations of static ranges: ours and onnxruntime's.

Two models of the digits that the package ships, trained here for some seconds: a
perceptron and a convolutional network. Both sides get the same weights and the same
calibration images; results are judged by the logits of images that neither saw.
"""

import contextlib
import functools
import io
import logging
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from _peers import module
from _quantization_digits import MODELS, Host, Model, Params, digits, trained
from _timing import Unavailable

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    MovingAverage,
    Quantize,
    Weights,
    calibrate,
    init_ranges,
    quantize,
)
from jcompress.report import aligned
from jcompress.sites import find_sites

MARGIN = 1.005
BATCH, SEEN = 32, 512


class Row(NamedTuple):
    """One model by one contender.

    Attributes:
        error: of the logits, relative to those of the float model, by their norms.
        right: the fraction of the images that are recognised.
        seconds: of quantizing, calibration included; the median.
        first: seconds of the first time.
    """

    model: str
    name: str
    ours: bool
    error: float
    right: float
    seconds: float
    first: float


Predict = Callable[[Host], Host]


def ours(model: Model, params: Params, x: Host) -> Iterator[tuple[str, Any]]:
    """What jcompress offers: functions that quantize and give the new model."""

    def quantized(decay: float) -> Predict:
        activation = Activation(range=MovingAverage(decay=decay))
        spec = Quantize(weights=Weights(format=Int(8)), activation=activation)
        rules = [(path, spec) for path in model.layers]
        ranges = init_ranges(model.apply, rules, params, x[:BATCH])
        observed = jax.jit(calibrate(model.apply, rules))
        for start in range(0, len(x), BATCH):
            _, ranges = observed(params, ranges, x[start : start + BATCH])
        sites = find_sites(model.apply, params, x[:BATCH])
        small = quantize(params, rules, sites=sites, ranges=ranges)
        run = jax.jit(compressed(model.apply))
        return lambda images: np.asarray(run(small, images))

    for decay in (0.99, 0.9):
        name = f"jcompress, MovingAverage({decay})"
        yield name, functools.partial(quantized, decay)


def _exported(model: Model, params: Params) -> bytes:
    onnx = module("onnx")
    helper, numbers = module("onnx.helper"), module("onnx.numpy_helper")
    kind = onnx.TensorProto.FLOAT
    nodes, value = [], "x"
    names = list(model.layers)
    for name, (operator, attributes) in model.layers.items():
        if operator == "Gemm" and len(model.shape) > 1:
            nodes.append(helper.make_node("Flatten", [value], [f"{name}_flat"]))
            value = f"{name}_flat"
        last = name == names[-1]
        out = "y" if last else f"{name}_out"
        nodes.append(
            helper.make_node(
                operator, [value, name, f"{name}_bias"], [out], name, **attributes
            )
        )
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"{name}_relu"]))
            value = f"{name}_relu"
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", kind, ["rows", *model.shape])],
        [helper.make_tensor_value_info("y", kind, ["rows", 10])],
        [numbers.from_array(np.asarray(v), name) for name, v in params.items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    return bytes(made.SerializeToString())


def onnxruntime(model: Model, params: Params, x: Host) -> Iterator[tuple[str, Any]]:
    """`quantize_static` with its calibrators, in both of its forms."""
    ort, tools = module("onnxruntime"), module("onnxruntime.quantization")
    module("onnx")
    ort.set_default_logger_severity(3)
    logging.getLogger().setLevel(logging.ERROR)  # of advice to simplify the graph
    exported = _exported(model, params)

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.batches = iter(range(0, len(x), BATCH))

        def get_next(self) -> dict[str, Host] | None:
            start = next(self.batches, None)
            return None if start is None else {"x": x[start : start + BATCH]}

    def quantized(form: str, weights: str, method: str) -> Predict:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (pathlib.Path(folder) / n for n in ("a.onnx", "b.onnx"))
            first.write_bytes(exported)
            with contextlib.redirect_stdout(io.StringIO()):
                tools.quantize_static(
                    first,
                    second,
                    Reader(),
                    quant_format=getattr(tools.QuantFormat, form),
                    per_channel=True,
                    activation_type=tools.QuantType.QUInt8,
                    weight_type=getattr(tools.QuantType, weights),
                    calibrate_method=getattr(tools.CalibrationMethod, method),
                )
            session = ort.InferenceSession(
                second.read_bytes(), providers=["CPUExecutionProvider"]
            )
        return lambda images: np.asarray(session.run(["y"], {"x": images})[0])

    # On processors without VNNI its products of uint8 and int8 saturate 16 bits, which
    # costs far more than rounding; those of uint8 and uint8 do not.
    for form, weights in (("QDQ", "QInt8"), ("QDQ", "QUInt8"), ("QOperator", "QUInt8")):
        for method in ("MinMax", "Entropy", "Percentile"):
            name = f"onnxruntime {form}, {weights[1:].lower()}, {method}"
            yield name, functools.partial(quantized, form, weights, method)


def run(*, quick: bool) -> tuple[list[Row], list[str]]:
    """All models by all contenders, in random order each round."""
    images, labels = digits()
    rows, absent = [], []
    order = np.random.default_rng(0)
    for model in MODELS:
        x = images.reshape(-1, *model.shape)
        params = trained(model, x[:1000], labels[:1000])
        seen, judged, truth = x[:SEEN], x[1000:], labels[1000:]
        exact = np.asarray(jax.jit(model.apply)(params, judged))
        makes = dict(ours(model, params, seen))
        try:
            makes |= dict(onnxruntime(model, params, seen))
        except Unavailable as error:
            absent.append(str(error))
        seconds: dict[str, list[float]] = {name: [] for name in makes}
        made: dict[str, Host] = {}
        for _ in range(2 if quick else 4):
            for name in order.permutation(list(makes)):
                begin = time.perf_counter()
                predict = makes[name]()
                seconds[name].append(time.perf_counter() - begin)
                made[name] = predict(judged)
        right = float((exact.argmax(-1) == truth).mean())
        rows.append(Row(model.name, "float32", False, 0.0, right, 0.0, 0.0))
        for name, logits in made.items():
            off = np.linalg.norm(logits - exact) / np.linalg.norm(exact)
            right = float((logits.argmax(-1) == truth).mean())
            first, *rest = seconds[name]
            ours_too = name.startswith("jcompress")
            middle = float(np.median(rest))
            rows.append(
                Row(model.name, name, ours_too, float(off), right, middle, first)
            )
    return rows, absent


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines: list[tuple[str, ...]] = [
        ("model", "by", "error", "right", "s", "first s"),
        *(
            (
                row.model,
                row.name,
                f"{row.error:.4f}",
                f"{row.right:.4f}",
                f"{row.seconds:.2f}",
                f"{row.first:.2f}",
            )
            for row in rows
        ),
    ]
    return str(aligned(lines, right=(2, 3, 4, 5)))


def falls(rows: Sequence[Row]) -> list[str]:
    """Each of ours that errs more than a peer."""
    return [
        f"{row.model}, {row.name}: error {row.error:.4f}, {peer.name} {peer.error:.4f}"
        for row in rows
        if row.ours
        for peer in rows
        if peer.model == row.model and row.ours != peer.ours and peer.error
        if row.error > MARGIN * peer.error
    ]
