"""An ONNX file is tried before it is in its place."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jcompress.interchange.onnx_lowering import OnnxError
from jcompress.interchange.onnx_pieces import Host


def tried(data: bytes, inputs: Sequence[Host] | None) -> list[Host] | None:
    """What onnxruntime computes with a model; None without inputs.

    Args:
        data: the model.
        inputs: an array for each of its inputs.

    Raises:
        OnnxError: it cannot be loaded or run.
    """
    # It comes with jax2onnx.
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    # What is raised need not be printed, too.
    options.log_severity_level = 4
    # With data that is not rounded to 8 bits on the way.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
        if inputs is None:
            return None
        names = [each.name for each in session.get_inputs()]
        made: list[Host] = session.run(None, dict(zip(names, inputs, strict=True)))
        return made
    except Exception as error:
        raise OnnxError(
            f"write_onnx: onnxruntime cannot run the model: {error}"
        ) from error


def compare(got: Sequence[Host], wanted: Sequence[Any], most: float) -> None:
    """Raise OnnxError if results differ by more than a part of their length."""
    for number, (a, b) in enumerate(zip(got, map(np.asarray, wanted), strict=True)):
        if not np.issubdtype(b.dtype, np.floating):
            continue
        first, second = a.astype(np.float64), b.astype(np.float64)
        whole = np.isfinite(second)
        apart = np.linalg.norm((first - second)[whole])
        if not apart <= most * np.linalg.norm(second[whole]):
            raise OnnxError(
                f"write_onnx: result {number} in onnxruntime is not that of the model: "
                f"the difference is {apart:.3g}, and it has the length "
                f"{np.linalg.norm(second[whole]):.3g}"
            )
