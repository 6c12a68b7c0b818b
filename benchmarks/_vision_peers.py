"""Convolutional networks in torch and onnxruntime, with the weights of ours."""

import contextlib
import io
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from _peers import module
from _vision_models import Host, Network, same

Run = Callable[[Host], Host]
"""Images [B, H, W, 3] to logits."""


class _Torch:
    """The operations in torch, on values [B, C, H, W], channels last in memory."""

    def __init__(self) -> None:
        self.torch = module("torch")
        self.functional = self.torch.nn.functional

    def _of(self, array: Host) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array))

    def _padded(self, x: Any, size: int, kernel: int, stride: int, fill: float) -> Any:
        low, high = same(size, kernel, stride)
        if low == high:
            return x, low
        return self.functional.pad(x, (low, high, low, high), value=fill), 0

    def conv(
        self,
        x: Any,
        kernel: Host,
        bias: Host,
        *,
        stride: int,
        groups: int,
        size: int,
        **_: Any,
    ) -> Any:
        """A convolution."""
        x, padding = self._padded(x, size, kernel.shape[0], stride, 0.0)
        weight = self._of(np.transpose(kernel, (3, 2, 0, 1)))
        weight = weight.to(memory_format=self.torch.channels_last)
        return self.functional.conv2d(
            x, weight, self._of(bias), stride, padding, groups=groups
        )

    def relu(self, x: Any, top: float | None = None) -> Any:
        """max(x, 0), and at most `top`."""
        return self.functional.relu(x) if top is None else x.clamp(0.0, top)

    def add(self, x: Any, y: Any) -> Any:
        """The sum."""
        return x + y

    def pool(self, x: Any, *, size: int, window: int = 3) -> Any:
        """The maximum of windows."""
        x, padding = self._padded(x, size, window, 2, -np.inf)
        return self.functional.max_pool2d(x, window, 2, padding)

    def rise(self, x: Any, kernel: Host, bias: Host) -> Any:
        """A transposed convolution."""
        weight = self._of(np.transpose(kernel, (2, 3, 0, 1)))
        return self.functional.conv_transpose2d(x, weight, self._of(bias), 2)

    def join(self, x: Any, y: Any) -> Any:
        """The channels of both."""
        return self.torch.cat((x, y), 1)

    def head(self, x: Any, kernel: Host, bias: Host) -> Any:
        """The mean over positions, and a dense layer."""
        return x.mean((2, 3)) @ self._of(kernel) + self._of(bias)


def torch_runs(model: Network, threads: int) -> Iterator[tuple[str, Run]]:
    """Torch in float32: the traced network, its weights laid out for oneDNN."""
    torch = module("torch")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    base: Any = torch.nn.Module
    operations = _Torch()

    class Traced(base):  # type: ignore[misc]
        def forward(self, images: Any) -> Any:
            return model.plain(operations, images.permute(0, 3, 1, 2))

    images = torch.zeros((1, model.size, model.size, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Traced().eval(), images, check_trace=False)
        best = torch.jit.optimize_for_inference(torch.jit.freeze(traced))

    def run(x: Host) -> Host:
        return _channels_last(best(torch.from_numpy(x)).numpy())

    yield "torch f32", run


class _Onnx:
    """The operations as nodes of a graph; values are names."""

    def __init__(self) -> None:
        self.helper, self.numbers = module("onnx.helper"), module("onnx.numpy_helper")
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def _weight(self, array: Host) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(self.numbers.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node of one result, whose name is returned."""
        name = f"{kind}{len(self.nodes)}"
        node = self.helper.make_node(kind, list(inputs), [name], name, **attributes)
        self.nodes.append(node)
        return name

    def conv(
        self,
        x: str,
        kernel: Host,
        bias: Host,
        *,
        stride: int,
        groups: int,
        size: int,
        **_: Any,
    ) -> str:
        """A convolution."""
        low, high = same(size, kernel.shape[0], stride)
        weight = self._weight(np.transpose(kernel, (3, 2, 0, 1)))
        return self.node(
            "Conv",
            (x, weight, self._weight(bias)),
            strides=[stride] * 2,
            pads=[low, low, high, high],
            kernel_shape=list(kernel.shape[:2]),
            group=groups,
        )

    def relu(self, x: str, top: float | None = None) -> str:
        """max(x, 0), and at most `top`."""
        if top is None:
            return self.node("Relu", (x,))
        bounds = (np.float32(0), np.float32(top))
        return self.node("Clip", (x, *(self._weight(np.asarray(b)) for b in bounds)))

    def add(self, x: str, y: str) -> str:
        """The sum."""
        return self.node("Add", (x, y))

    def rise(self, x: str, kernel: Host, bias: Host) -> str:
        """A transposed convolution."""
        weight = self._weight(np.transpose(kernel, (2, 3, 0, 1)))
        return self.node(
            "ConvTranspose",
            (x, weight, self._weight(bias)),
            strides=[2, 2],
            kernel_shape=list(kernel.shape[:2]),
        )

    def join(self, x: str, y: str) -> str:
        """The channels of both."""
        return self.node("Concat", (x, y), axis=1)

    def pool(self, x: str, *, size: int, window: int = 3) -> str:
        """The maximum of windows."""
        low, high = same(size, window, 2)
        return self.node(
            "MaxPool",
            (x,),
            kernel_shape=[window, window],
            strides=[2, 2],
            pads=[low, low, high, high],
        )

    def head(self, x: str, kernel: Host, bias: Host) -> str:
        """The mean over positions, and a dense layer."""
        mean = self.node("Flatten", (self.node("GlobalAveragePool", (x,)),))
        return self.node("Gemm", (mean, self._weight(kernel), self._weight(bias)))


def _channels_last(y: Host) -> Host:
    """Results of each position as ours have them."""
    return np.asarray(y.transpose(0, 2, 3, 1) if y.ndim == 4 else y)


def _exported(model: Network) -> bytes:
    """The network for images [B, C, H, W], the layout of ONNX."""
    onnx = module("onnx")
    operations, kind = _Onnx(), onnx.TensorProto.FLOAT
    out = model.plain(operations, "images")
    info, shape = operations.helper.make_tensor_value_info, [3, model.size, model.size]
    graph = operations.helper.make_graph(
        operations.nodes,
        model.name,
        [info("images", kind, ["batch", *shape])],
        [info(out, kind, None)],
        operations.weights,
    )
    opset = [operations.helper.make_opsetid("", 17)]
    made = operations.helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(made.SerializeToString())


def onnx_runs(model: Network, seen: Host, threads: int) -> Iterator[tuple[str, Run]]:
    """Onnxruntime: float32, and `quantize_static` in its two types of activations.

    Per channel, in the QDQ form, after the pass that its manual asks for, calibrated on
    the images `seen` by their smallest and largest values.
    """
    ort, tools = module("onnxruntime"), module("onnxruntime.quantization")
    prepare = module("onnxruntime.quantization.shape_inference").quant_pre_process
    logging.getLogger().setLevel(logging.ERROR)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.batches = iter(np.split(seen.transpose(0, 3, 1, 2), len(seen)))

        def get_next(self) -> dict[str, Host] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": np.ascontiguousarray(batch)}

    def session(path: pathlib.Path) -> Run:
        made = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])

        def run(x: Host) -> Host:
            images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
            return _channels_last(made.run(None, {"images": images})[0])

        return run

    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        plain, ready = place / "plain.onnx", place / "ready.onnx"
        plain.write_bytes(_exported(model))
        yield "onnxruntime f32", session(plain)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(str(plain), str(ready))
        for name in ("QUInt8", "QInt8"):
            made = place / f"{name}.onnx"
            tools.quantize_static(
                str(ready),
                str(made),
                Reader(),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                activation_type=getattr(tools.QuantType, name),
                weight_type=tools.QuantType.QInt8,
            )
            yield f"onnxruntime int8 {name}", session(made)
