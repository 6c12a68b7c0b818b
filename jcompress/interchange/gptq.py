"""Files of GPTQ weights, as AutoGPTQ and GPTQModel write them."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import Float8
from jcompress.interchange.act_order import ActOrder
from jcompress.interchange.files import FileFormatError, Path
from jcompress.interchange.grouped import grouped_kernel, read_groups
from jcompress.interchange.layers import (
    Tensors,
    check_kernel,
    checked_zeros,
    half_scales,
    layer_name,
    plan_arrays,
)
from jcompress.interchange.numbers import (
    Numbers,
    values_of,
)
from jcompress.interchange.safetensors import (
    Planned,
    planned,
    write_safetensors,
)
from jcompress.interchange.shards import Shards
from jcompress.interchange.words import from_words, to_words
from jcompress.tensors import QTensor

_BITS = (2, 3, 4, 8)
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_SCALES = (np.float16, np.float32, jnp.bfloat16)


def read_gptq(
    path: Path,
    *,
    version: int | None = None,
    act_order: ActOrder = ActOrder.RAISE,
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Read weights that AutoGPTQ or GPTQModel quantized.

    A layer is stored as `qweight` int32 [K bits / 32, N], `qzeros`
    int32 [G, N bits / 32], `scales` [G, N] and perhaps `g_idx` int32 [K], of 2, 3, 4 or
    8 bits. It is read exactly, scales included.

    Args:
        path: a safetensors file, or the folder of a model: all such files in it.
        version: 1 if the file holds zero points minus one ("gptq"), 2 if it holds them
            as they are ("gptq_v2"); a layer read in the wrong one is off by a step of
            the scale. None: what the file itself, or `config.json` or
            `quantize_config.json` beside it, says.
        act_order: what to do where groups of inputs are scattered.
        dtype: of the dense weights that the leaves stand for.

    Returns:
        For each quantized layer, under `layer.weight`, a `QTensor` in the layout of JAX
        kernels, [K, N]: inputs first, transposed with regard to PyTorch. For every
        other array of the file, as it is there, a NumPy view of the mapped file: a
        Linear layer that is not quantized is [N, K].

    Raises:
        FileFormatError: the file is damaged, a layer lacks an array, shapes contradict
            each other, groups are scattered, or the version is unknown.

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
        ...     write_gptq(file, {"mlp.up.weight": small})
        ...     found = read_gptq(file)
        >>> found["mlp.up.weight"].shape, found["mlp.up.weight"].form
        ((64, 32), 'int4 group 32')

    References:
        Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
        Pre-trained Transformers". The layout is that of AutoGPTQ 0.7 and GPTQModel.
    """
    file = Shards(path)
    layers = [name[: -len(".qweight")] for name in file if name.endswith(".qweight")]
    if not layers:
        raise FileFormatError(f"{path}: no tensor's name ends in '.qweight'")
    parts = {
        f"{layer}.{part}"
        for layer in layers
        for part in ("qweight", "qzeros", "scales", "g_idx")
    }
    offset = 2 - _version(file, version)
    found: dict[str, Any] = {}
    for layer in layers:
        found.update(_layer(file, layer, offset, act_order, np.dtype(dtype)))
    for name in file:
        if name not in parts:
            if name in found:
                raise file.error(name, "is there beside its quantized form")
            found[name] = file.read(name)
    return found


def _version(file: Shards, version: int | None) -> int:
    if version is not None:
        if version not in (1, 2) or isinstance(version, bool):
            raise ValueError(f"read_gptq: version is 1, 2 or None, not {version!r}")
        return version
    said: Any = file.metadata.get("checkpoint_format")
    for name in ("quantize_config.json", "config.json"):
        beside = file.folder / name
        if said is not None or not beside.is_file():
            continue
        try:
            config = json.loads(beside.read_text())
            config = config.get("quantization_config", config)
            if "bits" in config:
                # Files from before there was a second version do not say.
                said = config.get("checkpoint_format", "gptq")
        except (ValueError, AttributeError, TypeError) as error:
            raise FileFormatError(f"{beside}: cannot be read: {error}") from error
    if said not in _VERSIONS:
        raise FileFormatError(
            f"{file.path}: it is not known whether zero points are stored minus one "
            f"(checkpoint_format is {said!r}); give version=1 if so, else version=2"
        )
    return _VERSIONS[said]


def _layer(
    file: Shards,
    layer: str,
    offset: int,
    act_order: ActOrder,
    dtype: np.dtype[Any],
) -> dict[str, Any]:
    name = f"{layer}.qweight"
    for part in ("qzeros", "scales"):
        if f"{layer}.{part}" not in file:
            raise file.error(f"{layer}.{part}", "is missing")
    shape, zero_shape = file.shape(name), file.shape(f"{layer}.qzeros")
    if len(shape) != 2 or len(zero_shape) != 2 or not all(shape + zero_shape):
        raise file.error(name, f"is {list(shape)} with qzeros {list(zero_shape)}")
    (words, outputs), (groups, zero_words) = shape, zero_shape
    bits = 32 * zero_words // outputs
    if bits not in _BITS or 32 * zero_words != bits * outputs or 32 * words % bits:
        raise file.error(
            name,
            f"{list(shape)} and qzeros {list(zero_shape)} are not of 2, 3, 4 or 8 bits",
        )
    inputs = 32 * words // bits
    stored = file.need(name, (np.int32, np.uint32), shape)
    scales = file.need(f"{layer}.scales", _SCALES, (groups, outputs))
    zero_stored = file.need(f"{layer}.qzeros", (np.int32, np.uint32), zero_shape)
    index = read_groups(file, f"{layer}.g_idx", inputs, groups, act_order)
    zeros = from_words(zero_stored, outputs, bits)
    # A zero point of 0 is stored as the largest number where they are stored minus 1.
    zeros = (zeros + np.uint8(offset)) & np.uint8(2**bits - 1)
    values = from_words(stored.T, inputs, bits)
    numbers = Numbers(values, scales.astype(np.float32).T, zeros.T, bits)
    return grouped_kernel(layer, numbers, index, act_order, dtype)


def write_gptq(path: Path, tensors: Tensors, *, version: int = 1) -> None:
    """Write weights as AutoGPTQ and GPTQModel store them.

    The file is complete or is not there. The program that loads it wants to know
    `bits`, `group_size`, `desc_act` (false) and `checkpoint_format` from a
    `config.json` beside it.

    Args:
        path: the safetensors file; one that is there is replaced.
        tensors: by name. `QTensor`s of one matrix and of 2, 3, 4 or 8 bits under
            `layer.weight`; their scales are rounded to float16, an error of 2^-11 of
            each at most. Arrays are written as they are.
        version: 1 stores zero points minus one, which all loaders of "gptq" expect; 2
            as they are, "gptq_v2".

    Raises:
        MismatchError: a leaf cannot be stored so: N or K do not fill words of 32 bits,
            other bits, float8, a stack of matrices, or no `QTensor` is there.
        OSError: the file cannot be written.

    Example:
        See `read_gptq`.
    """
    if version not in (1, 2) or isinstance(version, bool):
        raise ValueError(f"write_gptq: version is 1 or 2, not {version!r}")

    def plan(name: str, leaf: QTensor) -> dict[str, Planned]:
        outputs, inputs = check_kernel("write_gptq", name, leaf)
        bits = leaf.format.bits
        if isinstance(leaf.format, Float8) or bits not in _BITS:
            raise MismatchError(
                f"write_gptq: {name!r} is {leaf.format}; GPTQ files hold integers of "
                "2, 3, 4 or 8 bits"
            )
        if outputs * bits % 32 or inputs * bits % 32:
            raise MismatchError(
                f"write_gptq: {name!r} has {inputs} inputs and {outputs} outputs of "
                f"{bits} bits, which do not fill words of 32"
            )
        groups = leaf.scales.shape[-1]
        layer = layer_name(name)
        scales = half_scales("write_gptq", name, leaf.scales)
        zeros = checked_zeros("write_gptq", name, leaf)
        shifted = (zeros - np.uint8(2 - version)) & np.uint8(2**bits - 1)
        return {
            f"{layer}.qweight": Planned(
                np.dtype(np.int32),
                (inputs * bits // 32, outputs),
                lambda: to_words(values_of(leaf), bits).T,
            ),
            f"{layer}.qzeros": planned(to_words(shifted.T, bits)),
            f"{layer}.scales": planned(np.broadcast_to(scales, (outputs, groups)).T),
            f"{layer}.g_idx": planned(
                np.arange(inputs, dtype=np.int32) // np.int32(inputs // groups)
            ),
        }

    metadata = {
        "format": "pt",
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    write_safetensors(path, plan_arrays("write_gptq", tensors, plan), metadata)
