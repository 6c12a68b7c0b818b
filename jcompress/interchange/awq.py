"""Files of AWQ weights, as AutoAWQ writes them (the GEMM layout)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import Float8
from jcompress.interchange.files import FileFormatError, Path
from jcompress.interchange.layers import (
    WEIGHT,
    Tensors,
    check_kernel,
    checked_zeros,
    half_scales,
    layer_name,
    plan_arrays,
)
from jcompress.interchange.numbers import Numbers, to_qtensor, values_of
from jcompress.interchange.safetensors import (
    Planned,
    planned,
    write_safetensors,
)
from jcompress.interchange.shards import Shards
from jcompress.interchange.words import from_awq_words, to_awq_words
from jcompress.tensors import QTensor

_SCALES = (np.float16, np.float32, jnp.bfloat16)


def read_awq(path: Path, *, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Read weights of 4 bits that AutoAWQ quantized.

    A layer is stored as `qweight` int32 [K, N / 8], `qzeros` int32 [G, N / 8] and
    `scales` [G, N]; the eight numbers of a word are outputs 0 2 4 6 1 3 5 7 of eight,
    from the lowest bits. It is read exactly, scales included.

    Args:
        path: a safetensors file, or the folder of a model: all such files in it.
        dtype: of the dense weights that the leaves stand for.

    Returns:
        For each quantized layer, under `layer.weight`, a `QTensor` in the layout of JAX
        kernels, [K, N]: inputs first, transposed with regard to PyTorch. For every
        other array of the file, as it is there, a NumPy view of the mapped file.

    Raises:
        FileFormatError: the file is damaged, a layer lacks an array, or shapes
            contradict each other.

    Example:
        >>> import jax, pathlib, tempfile
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import PerGroup, Weights
        >>> from jcompress.tensors import QTensor
        >>> from jcompress.tensors.axes import Axes
        >>> kernel = jax.random.normal(jax.random.key(0), (64, 32))
        >>> spec = Weights(format=Int(4), granularity=PerGroup(32))
        >>> small = QTensor.quantize(kernel, Axes((), (1,), (0,)), spec)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "model.safetensors"
        ...     write_awq(file, {"mlp.up.weight": small})
        ...     found = read_awq(file)
        >>> found["mlp.up.weight"].shape, found["mlp.up.weight"].form
        ((64, 32), 'int4 group 32')

    References:
        Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression
        and Acceleration". The layout is that of AutoAWQ's GEMM version.
    """
    file = Shards(path)
    layers = [name[: -len(".qweight")] for name in file if name.endswith(".qweight")]
    if not layers:
        raise FileFormatError(f"{path}: no tensor's name ends in '.qweight'")
    found: dict[str, Any] = {}
    parts = set()
    for layer in layers:
        parts |= {f"{layer}.{part}" for part in ("qweight", "qzeros", "scales")}
        found[layer + WEIGHT] = _layer(file, layer, dtype)
    for name in file:
        if name not in parts:
            if name in found:
                raise file.error(name, "is there beside its quantized form")
            found[name] = file.read(name)
    return found


def _layer(file: Shards, layer: str, dtype: Any) -> QTensor:
    name = f"{layer}.qweight"
    shape = file.shape(name)
    if f"{layer}.scales" not in file:
        raise file.error(f"{layer}.scales", "is missing")
    scale_shape = file.shape(f"{layer}.scales")
    if len(shape) != 2 or len(scale_shape) != 2 or not all(shape + scale_shape):
        raise file.error(name, f"is {list(shape)} with scales {list(scale_shape)}")
    (inputs, words), (groups, outputs) = shape, scale_shape
    if outputs != 8 * words or inputs % groups:
        raise file.error(
            name,
            f"{list(shape)} and scales {list(scale_shape)} are not [K, N / 8] and "
            "[G, N] with G a divisor of K",
        )
    stored = file.need(name, (np.int32, np.uint32), shape)
    scales = file.need(f"{layer}.scales", _SCALES, scale_shape)
    zeros = file.need(f"{layer}.qzeros", (np.int32, np.uint32), (groups, words))
    return to_qtensor(
        Numbers(
            np.ascontiguousarray(from_awq_words(stored).T),
            scales.astype(np.float32).T,
            from_awq_words(zeros).T,
            4,
        ),
        dtype,
    )


def write_awq(path: Path, tensors: Tensors) -> None:
    """Write weights of 4 bits as AutoAWQ stores them.

    The file is complete or is not there. The program that loads it wants to know
    `bits` (4), `group_size`, `zero_point` (true) and `version` ("gemm") from a
    `config.json` beside it.

    Args:
        path: the safetensors file; one that is there is replaced.
        tensors: by name. `QTensor`s of one matrix and of 4 bits under `layer.weight`;
            their scales are rounded to float16, an error of 2^-11 of each at most.
            Arrays are written as they are.

    Raises:
        MismatchError: a leaf cannot be stored so: other numbers than of 4 bits, N no
            multiple of 8, a stack of matrices, or no `QTensor` is there.
        OSError: the file cannot be written.

    Example:
        See `read_awq`.
    """

    def plan(name: str, leaf: QTensor) -> dict[str, Planned]:
        outputs, inputs = check_kernel("write_awq", name, leaf)
        if isinstance(leaf.format, Float8) or leaf.format.bits != 4 or outputs % 8:
            raise MismatchError(
                f"write_awq: {name!r} is {leaf.format} with {outputs} outputs; AWQ "
                "files hold int4 with a multiple of 8 outputs"
            )
        groups = leaf.scales.shape[-1]
        layer = layer_name(name)
        scales = half_scales("write_awq", name, leaf.scales)
        zeros = checked_zeros("write_awq", name, leaf)
        return {
            f"{layer}.qweight": Planned(
                np.dtype(np.int32),
                (inputs, outputs // 8),
                lambda: to_awq_words(values_of(leaf).T),
            ),
            f"{layer}.qzeros": planned(to_awq_words(zeros.T)),
            f"{layer}.scales": planned(np.broadcast_to(scales, (outputs, groups)).T),
        }

    metadata = {"format": "pt", "quant_method": "awq", "version": "gemm"}
    write_safetensors(path, plan_arrays("write_awq", tensors, plan), metadata)
