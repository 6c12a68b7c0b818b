"""MiniLM in torch and onnxruntime, from the same file of weights."""

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from _minilm_texts import Run
from _peers import module

LAYERS, HEADS, WIDTH = 6, 12, 384


def torch_module(place: pathlib.Path) -> Any:
    """The encoder as a `torch.nn.Module`, with torch's fused attention."""
    torch = module("torch")
    functional = torch.nn.functional
    file = module("safetensors.torch").load_file(str(place / "model.safetensors"))

    base: Any = torch.nn.Module

    class Encoder(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, array in file.items():
                self.register_buffer(name.replace(".", "__"), array)

        def part(self, name: str) -> tuple[Any, Any]:
            flat = name.replace(".", "__")
            return getattr(self, f"{flat}__weight"), getattr(self, f"{flat}__bias")

        def norm(self, x: Any, name: str) -> Any:
            return functional.layer_norm(x, (WIDTH,), *self.part(name), 1e-12)

        def forward(self, tokens: Any, mask: Any) -> Any:
            lookup = "embeddings__{}_embeddings__weight"
            x = functional.embedding(tokens, getattr(self, lookup.format("word")))
            places = getattr(self, lookup.format("position"))[: tokens.shape[1]]
            kinds = getattr(self, lookup.format("token_type"))[0]
            x = self.norm(x + places + kinds, "embeddings.LayerNorm")
            kept = mask.to(x.dtype)
            bias = ((kept - 1.0) * 1e9)[:, None, None, :]
            for number in range(LAYERS):
                x = self.layer(x, bias, f"encoder.layer.{number}")
            mean = (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
            return functional.normalize(mean, dim=-1)

        def layer(self, x: Any, bias: Any, name: str) -> Any:
            batch, length = x.shape[:2]

            def heads(part: str) -> Any:
                out = functional.linear(x, *self.part(f"{name}.attention.self.{part}"))
                split = out.reshape(batch, length, HEADS, WIDTH // HEADS)
                return split.transpose(1, 2)

            mixed = functional.scaled_dot_product_attention(
                heads("query"), heads("key"), heads("value"), attn_mask=bias
            )
            mixed = mixed.transpose(1, 2).reshape(batch, length, WIDTH)
            mixed = functional.linear(
                mixed, *self.part(f"{name}.attention.output.dense")
            )
            x = self.norm(x + mixed, f"{name}.attention.output.LayerNorm")
            wide = functional.linear(x, *self.part(f"{name}.intermediate.dense"))
            narrow = functional.linear(
                functional.gelu(wide), *self.part(f"{name}.output.dense")
            )
            return self.norm(x + narrow, f"{name}.output.LayerNorm")

    return Encoder().eval()


def torch_runs(place: pathlib.Path, threads: int) -> Iterator[tuple[str, Run]]:
    """Torch in float32."""
    torch = module("torch")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = torch_module(place)

    def run(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        out = model(torch.from_numpy(tokens), torch.from_numpy(mask))
        return np.asarray(out.numpy())

    yield "torch f32", run


def onnx_runs(place: pathlib.Path, threads: int) -> Iterator[tuple[str, Run]]:
    """Onnxruntime on torch's exported graph: float32, and quantized by its own tool."""
    torch, ort = module("torch"), module("onnxruntime")
    tools = module("onnxruntime.quantization")
    optimizer = module("onnxruntime.transformers.optimizer")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        plain, fused, eight = (
            str(pathlib.Path(folder) / f"{name}.onnx")
            for name in ("plain", "fused", "eight")
        )
        tokens = torch.ones((2, 16), dtype=torch.int32)
        torch.onnx.export(
            torch_module(place),
            (tokens, tokens),
            plain,
            input_names=["tokens", "mask"],
            output_names=["vectors"],
            dynamic_axes={
                "tokens": {0: "batch", 1: "length"},
                "mask": {0: "batch", 1: "length"},
            },
            opset_version=17,
            dynamo=False,
        )
        tools.quantize_dynamic(plain, eight, weight_type=tools.QuantType.QInt8)
        best = optimizer.optimize_model(
            plain, model_type="bert", num_heads=HEADS, hidden_size=WIDTH
        )
        best.save_model_to_file(fused)
        for name, path in (
            ("onnxruntime f32", plain),
            ("onnxruntime f32 fused", fused),
            ("onnxruntime dynamic int8", eight),
        ):
            session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])

            def run(
                tokens: np.ndarray, mask: np.ndarray, session: Any = session
            ) -> np.ndarray:
                out = session.run(None, {"tokens": tokens, "mask": mask})
                return np.asarray(out[0])

            yield name, run
