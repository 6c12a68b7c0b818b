"""The same product in onnxruntime: float32, dynamic int8 and MatMulNBits."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from _peers import meaning, module, rounded
from _timing import Offer, offer, sets_of

GROUPS = (32, 128)


class OnnxProduct:
    """An onnxruntime session for each copy of a weight, all on one thread pool."""

    kind = "peer"

    def __init__(
        self,
        name: str,
        bits: int,
        *,
        activations: int,
        model: Callable[[], bytes],
        outputs: int,
        stored: int,
        stands_for: Callable[[], np.ndarray],
        tolerance: float,
    ) -> None:
        self.name, self.bits, self.bytes = name, bits, stored
        self.stands_for, self.tolerance = stands_for, tolerance
        self.activations = activations
        self.sets = sets_of(stored)
        self._outputs = outputs
        self._ort = module("onnxruntime")
        options = self._ort.SessionOptions()
        options.use_per_session_threads = False
        made = model()
        self._sessions = [
            self._ort.InferenceSession(made, options, ["CPUExecutionProvider"])
            for _ in range(self.sets)
        ]

    def bind(self, x: np.ndarray) -> Callable[[int], Any]:
        """The call for inputs [M, K]: the buffers are bound once."""
        given = self._ort.OrtValue.ortvalue_from_numpy(x)
        out = self._ort.OrtValue.ortvalue_from_shape_and_type(
            [x.shape[0], self._outputs], np.float32, "cpu"
        )
        runs = []
        for session in self._sessions:
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", given)
            binding.bind_ortvalue_output("y", out)
            runs.append((session.run_with_iobinding, binding))

        def call(number: int) -> Any:
            run, binding = runs[number]
            run(binding)
            return out

        return call

    def read(self, out: Any) -> np.ndarray:
        """A result as numpy."""
        return np.array(out.numpy())


_POOL: list[int] = []


def onnx_products(weight: np.ndarray, threads: int) -> Iterator[Offer]:
    """Onnxruntime's float, dynamic int8 and MatMulNBits products of [N, K]."""
    ort = module("onnxruntime")
    module("onnx")
    if not _POOL:
        ort.set_global_thread_pool_sizes(threads, 1)
        ort.set_default_logger_severity(3)
        _POOL.append(threads)
    outputs, inputs = weight.shape

    def product(
        name: str,
        bits: int,
        node: tuple[str, str, dict[str, int]],
        initializers: dict[str, np.ndarray],
        stands_for: Callable[[], np.ndarray],
        tolerance: float,
    ) -> Offer:
        return offer(
            OnnxProduct,
            f"onnxruntime {name}",
            bits,
            activations=32 if tolerance < 1e-3 else 8,
            model=functools.partial(_onnx_model, node, initializers, inputs, outputs),
            outputs=outputs,
            stored=sum(array.nbytes for array in initializers.values()),
            stands_for=stands_for,
            tolerance=tolerance,
        )

    transposed = np.ascontiguousarray(weight.T)
    exact = functools.partial(weight.astype, np.float64)
    yield product("f32", 32, ("MatMul", "", {}), {"w": transposed}, exact, 1e-5)
    integers, scales = rounded(weight, 8, inputs)
    dynamic = {
        "w": np.ascontiguousarray(integers.T),
        "scale": np.ascontiguousarray(scales[:, 0]),
        "zero": np.zeros(outputs, np.int8),
    }
    yield product(
        "dynamic int8",
        8,
        ("DynamicQuantizeMatMul", "com.microsoft", {}),
        dynamic,
        functools.partial(meaning, integers, scales),
        3e-2,
    )
    for bits in (8, 4):
        for group in GROUPS:
            integers, scales = rounded(weight, bits, group)
            shifted = (integers.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
            blobs = shifted.reshape(outputs, inputs // group, group)
            if bits == 4:
                blobs = blobs[..., ::2] | (blobs[..., 1::2] << 4)
            given = {"w": blobs, "scale": scales.reshape(-1)}
            for level in (0, 4):
                attributes = {
                    "K": inputs,
                    "N": outputs,
                    "bits": bits,
                    "block_size": group,
                    "accuracy_level": level,
                }
                yield product(
                    f"MatMulNBits {bits} g{group} level {level}",
                    bits,
                    ("MatMulNBits", "com.microsoft", attributes),
                    given,
                    functools.partial(meaning, integers, scales),
                    2e-2 if level else 1e-4,
                )


def _onnx_model(
    node: tuple[str, str, dict[str, int]],
    initializers: dict[str, np.ndarray],
    inputs: int,
    outputs: int,
) -> bytes:
    helper = module("onnx.helper")
    numpy_helper = module("onnx.numpy_helper")
    kind = module("onnx").TensorProto.FLOAT
    operator, domain, attributes = node
    made = helper.make_node(
        operator, ["x", *initializers], ["y"], domain=domain, **attributes
    )
    graph = helper.make_graph(
        [made],
        "product",
        [helper.make_tensor_value_info("x", kind, ["rows", inputs])],
        [helper.make_tensor_value_info("y", kind, ["rows", outputs])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(model.SerializeToString())
