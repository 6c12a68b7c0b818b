"""The same product in torch and llama.cpp, and what all peers have in common.

Each class holds several copies of one weight in its library's own storage and says,
in float64, what the stored numbers mean, so that its results can be checked. A library
that is not installed raises `Unavailable`. Inputs and outputs are the library's own
arrays, made once: a call pays for no conversion.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from _ggml import GgmlProduct
from _timing import Offer, Unavailable, offer, sets_of

GGML = ("Q8_0", "Q4_0", "Q4_K", "Q3_K", "Q2_K")


def module(name: str) -> Any:
    """An optional library.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{name} is not installed: pip install {name}") from error


def rounded(weight: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric integers [N, K] and float32 scales [N, K / group], nearest rounding."""
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, inputs // group, group)
    high = 2 ** (bits - 1) - 1
    scales = np.abs(groups).max(-1) / np.float32(high)
    integers = np.rint(groups / scales[..., None]).clip(-high, high).astype(np.int8)
    return integers.reshape(weight.shape), scales.astype(np.float32)


def meaning(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The float64 weight that integers [N, K] and scales [N, G] stand for."""
    group = integers.shape[1] // scales.shape[1]
    wide = np.repeat(scales.astype(np.float64), group, axis=1)
    return integers.astype(np.float64) * wide


class TorchProduct:
    """A torch product: `run(x, *weight)` over copies of a weight."""

    kind = "peer"

    def __init__(
        self,
        name: str,
        bits: int,
        *,
        activations: int,
        dtype: str,
        run: Callable[..., Any],
        make: Callable[[], tuple[Any, ...]],
        stored: int,
        stands_for: Callable[[], np.ndarray],
        tolerance: float,
    ) -> None:
        self.name, self.bits, self.bytes = name, bits, stored
        self.stands_for, self.tolerance = stands_for, tolerance
        self.activations = activations
        self._torch = module("torch")
        self._dtype = getattr(self._torch, dtype)
        self._run = run
        self.sets = sets_of(stored)
        self._weights = [make() for _ in range(self.sets)]

    def bind(self, x: np.ndarray) -> Callable[[int], Any]:
        """The call for inputs [M, K]."""
        given = self._torch.from_numpy(x).to(self._dtype)
        run, weights = self._run, self._weights

        def call(number: int) -> Any:
            return run(given, *weights[number])

        return call

    def read(self, out: Any) -> np.ndarray:
        """A result as float32 numpy."""
        return np.asarray(out.float().numpy())


def torch_products(weight: np.ndarray, threads: int) -> Iterator[Offer]:
    """Torch's float, dynamic int8 and packed weight-only products of [N, K]."""
    torch = module("torch")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    linear = torch.nn.functional.linear
    for dtype, bits, tolerance in (("float32", 32, 1e-5), ("bfloat16", 16, 1e-2)):
        kind = getattr(torch, dtype)
        yield offer(
            TorchProduct,
            f"torch {'f32' if bits == 32 else 'bf16'}",
            bits,
            activations=bits,
            dtype=dtype,
            run=linear,
            make=lambda kind=kind: (torch.tensor(weight).to(kind),),
            stored=weight.size * bits // 8,
            stands_for=functools.partial(weight.astype, np.float64),
            tolerance=tolerance,
        )
    yield from _torch_eight(torch, weight)
    integers, scales = rounded(weight, 4, 128)
    pairs = np.ascontiguousarray(np.stack([scales.T, 0 * scales.T], axis=-1))

    def make_four() -> tuple[Any, ...]:
        # Torch's nibble u means (u - 8) scale + zero.
        shifted = torch.tensor(integers.astype(np.int32) + 8)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(shifted, 2)
        return packed, 128, torch.tensor(pairs).bfloat16().contiguous()

    bf16 = torch.tensor(scales).bfloat16().float().numpy()
    yield offer(
        TorchProduct,
        "torch int4pack g128 (bf16)",
        4,
        activations=16,
        dtype="bfloat16",
        run=torch.ops.aten._weight_int4pack_mm_for_cpu,
        make=make_four,
        stored=weight.size // 2 + pairs.size * 2,
        stands_for=functools.partial(meaning, integers, bf16),
        tolerance=1e-2,
    )


def _torch_eight(torch: Any, weight: np.ndarray) -> Iterator[Offer]:
    outputs, inputs = weight.shape
    integers, scales = rounded(weight, 8, inputs)

    def make_dynamic() -> tuple[Any, ...]:
        quantized = torch._make_per_channel_quantized_tensor(
            torch.tensor(integers),
            torch.tensor(scales[:, 0]).double(),
            torch.zeros(outputs, dtype=torch.long),
            0,
        )
        return torch.ops.quantized.linear_prepack(quantized, None), False

    for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        if engine == "qnnpack" and "x86" in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        yield offer(
            TorchProduct,
            f"torch dynamic int8 ({engine})",
            8,
            activations=8,
            dtype="float32",
            run=torch.ops.quantized.linear_dynamic,
            make=make_dynamic,
            stored=weight.size + 4 * outputs,
            stands_for=functools.partial(meaning, integers, scales),
            tolerance=2e-2,
        )
    bf16 = torch.tensor(scales).bfloat16().float().numpy()
    yield offer(
        TorchProduct,
        "torch int8pack (bf16)",
        8,
        activations=16,
        dtype="bfloat16",
        run=torch.ops.aten._weight_int8pack_mm,
        make=lambda: (torch.tensor(integers), torch.tensor(scales[:, 0]).bfloat16()),
        stored=weight.size + 2 * outputs,
        stands_for=functools.partial(meaning, integers, bf16),
        tolerance=1e-2,
    )


def ggml_products(weight: np.ndarray, threads: int) -> Iterator[Offer]:
    """Llama.cpp's products of [N, K], for its formats of 8 to 2 bits."""
    for format in GGML:
        if weight.shape[1] % (256 if format.endswith("_K") else 32) == 0:
            name = f"llama.cpp {format}"
            yield offer(GgmlProduct, name, format, weight, threads)
