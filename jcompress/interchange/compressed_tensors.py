"""Files of compressed-tensors, which vLLM and LLM Compressor write."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import Float8
from jcompress.formats.packing import FLOAT8
from jcompress.interchange.act_order import ActOrder
from jcompress.interchange.files import FileFormatError, Host, Path
from jcompress.interchange.grouped import grouped_kernel, read_groups
from jcompress.interchange.layers import (
    WEIGHT,
    Tensors,
    check_kernel,
    checked_zeros,
    layer_name,
    plan_arrays,
)
from jcompress.interchange.numbers import Numbers, kernel_axes, values_of
from jcompress.interchange.safetensors import (
    Planned,
    planned,
    write_safetensors,
)
from jcompress.interchange.shards import Shards
from jcompress.interchange.words import from_words, to_words
from jcompress.tensors import QTensor

_BITS = (2, 4, 8)
"""Of packed numbers; others have been packed in two ways that shapes do not tell."""
_SCALES = (np.float16, np.float32, jnp.bfloat16)
_PARTS = ("packed", "shape", "scale", "zero_point", "g_idx")


def read_compressed_tensors(
    path: Path, *, act_order: ActOrder = ActOrder.RAISE, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Read quantized weights that compressed-tensors stored.

    Three of its formats, told apart by what is stored of a layer:

        pack-quantized: `weight_packed` int32 [N, ceil(K bits / 32)], of 2, 4 or 8 bits,
            and `weight_shape` (N, K)
        int-quantized: `weight` int8 [N, K]
        float-quantized: `weight` float8_e4m3fn [N, K]

    each with `weight_scale` of one number, [N], [N, 1], [N, G] or, of blocks,
    [N / n, G]; and perhaps `weight_zero_point`, `weight_g_idx`. They are read exactly,
    scales included. Scales of activations are arrays like others: no leaf gets an
    `activation` from a file.

    Args:
        path: a safetensors file, or the folder of a model: all such files in it.
        act_order: what to do where groups of inputs are scattered.
        dtype: of the dense weights that the leaves stand for.

    Returns:
        For each quantized layer, under `layer.weight`, a `QTensor` in the layout of JAX
        kernels, [K, N]: inputs first, transposed with regard to PyTorch. For every
        other array of the file, as it is there, a NumPy view of the mapped file.

    Raises:
        FileFormatError: the file is damaged, a layer lacks an array, shapes contradict
            each other, or groups are scattered.

    Example:
        >>> import jax, pathlib, tempfile
        >>> from jcompress.formats import Float8
        >>> from jcompress.quantization import Weights
        >>> from jcompress.tensors import QTensor
        >>> from jcompress.tensors.axes import Axes
        >>> kernel = jax.random.normal(jax.random.key(0), (64, 32))
        >>> spec = Weights(format=Float8())
        >>> small = QTensor.quantize(kernel, Axes((), (1,), (0,)), spec)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "model.safetensors"
        ...     write_compressed_tensors(file, {"mlp.up.weight": small})
        ...     found = read_compressed_tensors(file)
        >>> found["mlp.up.weight"].shape, found["mlp.up.weight"].form
        ((64, 32), 'float8')
    """
    file = Shards(path)
    layers = [name.removesuffix("_scale") for name in file if _is_scale(file, name)]
    if not layers:
        raise FileFormatError(
            f"{path}: no tensor's name ends in '.weight_scale' beside its weight"
        )
    found: dict[str, Any] = {}
    parts = set()
    for weight in layers:
        parts |= {weight, *(f"{weight}_{part}" for part in _PARTS)}
        if f"{weight}_packed" in file and weight in file:
            raise file.error(weight, "is there beside its packed form")
        found.update(_layer(file, weight, act_order, np.dtype(dtype)))
    for name in file:
        if name not in parts:
            found[name] = file.read(name)
    return found


def _is_scale(file: Shards, name: str) -> bool:
    weight = name.removesuffix("_scale")
    return name.endswith(WEIGHT + "_scale") and (
        weight in file or f"{weight}_packed" in file
    )


def _layer(
    file: Shards, weight: str, act_order: ActOrder, dtype: np.dtype[Any]
) -> dict[str, Any]:
    packed = f"{weight}_packed"
    if packed in file:
        outputs, inputs, bits = _packed_size(file, weight)
        words = file.need(packed, (np.int32, np.uint32), file.shape(packed))
    else:
        bits = 8
        shape = file.shape(weight)
        if len(shape) != 2 or not all(shape):
            raise file.error(weight, f"is {list(shape)}, not [N, K]")
        outputs, inputs = shape
        stored = file.need(weight, (np.int8, FLOAT8), shape)
    scales = _scales(file, f"{weight}_scale", outputs)
    groups = scales.shape[-1]
    index = read_groups(file, f"{weight}_g_idx", inputs, groups, act_order)
    if packed not in file and stored.dtype == FLOAT8:
        if f"{weight}_zero_point" in file or f"{weight}_g_idx" in file:
            raise file.error(weight, "is float8 with zero points or g_idx")
        return {weight: _float8(stored, scales, dtype)}
    zeros = _zeros(file, f"{weight}_zero_point", scales.shape, outputs, bits)
    if packed in file:
        values = from_words(words, inputs, bits)
    else:
        values = stored.view(np.uint8) + np.uint8(128)
    numbers = Numbers(values, scales, zeros, bits)
    return grouped_kernel(weight[: -len(WEIGHT)], numbers, index, act_order, dtype)


def _packed_size(file: Shards, weight: str) -> tuple[int, int, int]:
    name = f"{weight}_packed"
    said = file.need(f"{weight}_shape", (np.int64, np.int32), (2,))
    outputs, inputs = map(int, said)
    shape = file.shape(name)
    fits = [
        bits
        for bits in _BITS
        if min(outputs, inputs) > 0 and shape == (outputs, -(-inputs * bits // 32))
    ]
    if len(fits) != 1:
        raise file.error(
            name,
            f"is {list(shape)}, which is not [N, ceil(K bits / 32)] of {outputs} "
            f"outputs and {inputs} inputs with exactly one of {_BITS} bits",
        )
    return outputs, inputs, fits[0]


def _scales(file: Shards, name: str, outputs: int) -> Host:
    """float32 [N or 1, G]."""
    shape = file.shape(name)
    scales = file.need(name, _SCALES, shape).astype(np.float32)
    if len(shape) > 2 or not all(shape):
        raise file.error(name, f"is {list(shape)}, not [N, G]")
    if len(shape) < 2:
        scales = scales.reshape(-1, 1)
    rows = len(scales)
    if outputs % rows:
        raise file.error(
            name, f"is {list(shape)}, whose rows do not divide {outputs} outputs"
        )
    return scales if rows == 1 else np.repeat(scales, outputs // rows, axis=0)


def _zeros(
    file: Shards, name: str, shape: tuple[int, ...], outputs: int, bits: int
) -> Host | None:
    """uint8 of the shape of the scales; None if there are none."""
    if name not in file:
        return None
    found = file.shape(name)
    if file.dtype(name) == np.int8:
        signed = file.need(name, (np.int8,), found)
        rows = signed.reshape(-1, 1) if len(found) < 2 else signed
        half = 2 ** (bits - 1)
        wide = rows.astype(np.int16) + np.int16(half)
        if wide.shape != shape or wide.min() < 0 or wide.max() >= 2 * half:
            raise file.error(name, f"{list(found)} does not fit scales {list(shape)}")
        return wide.astype(np.uint8)
    words = -(-outputs * bits // 32)
    packed = file.need(name, (np.int32, np.uint32), (words, shape[-1]))
    zeros = from_words(packed.T, outputs, bits).T
    if zeros.shape != shape:
        raise file.error(name, f"{list(found)} does not fit scales {list(shape)}")
    return zeros


def _float8(stored: Host, scales: Host, dtype: np.dtype[Any]) -> QTensor:
    raw = stored.view(np.uint8)
    # A leaf has one zero.
    values = np.where(raw == 0x80, np.uint8(0), raw).view(FLOAT8)
    axes = kernel_axes()
    return QTensor(
        values=jnp.asarray(values),
        scales=jnp.asarray(scales),
        format=Float8(),
        shape=stored.shape[::-1],
        dtype=dtype,
        output_axes=axes.output,
        input_axes=axes.input,
    )


def write_compressed_tensors(path: Path, tensors: Tensors) -> None:
    """Write quantized weights as compressed-tensors stores them.

    Numbers of up to 4 bits are written as pack-quantized, of 2 or 4 bits; of more as
    int-quantized; float8 as float-quantized. Scales are float32, so nothing is rounded.
    The file is complete or is not there. The program that loads it wants a
    `quantization_config` in a `config.json` beside it.

    Args:
        path: the safetensors file; one that is there is replaced.
        tensors: by name. `QTensor`s of one matrix under `layer.weight`; arrays are
            written as they are.

    Raises:
        MismatchError: a leaf is a stack of matrices, or no `QTensor` is there.
        OSError: the file cannot be written.

    Example:
        See `read_compressed_tensors`.
    """
    arrays = plan_arrays("write_compressed_tensors", tensors, _plan)
    write_safetensors(path, arrays, {"format": "pt"})


def _plan(name: str, leaf: QTensor) -> dict[str, Planned]:
    outputs, inputs = check_kernel("write_compressed_tensors", name, leaf)
    weight = layer_name(name) + WEIGHT
    scales = np.asarray(leaf.scales)
    if scales.size == 1 and leaf.zeros is None:
        scales = scales.reshape(1)
    else:
        scales = np.broadcast_to(scales, (outputs, scales.shape[-1]))
    arrays = {f"{weight}_scale": planned(scales)}
    if isinstance(leaf.format, Float8):
        return {**arrays, weight: planned(leaf.values)}
    bits = next(size for size in _BITS if size >= leaf.format.bits)
    # The zero of few bits is another unsigned number in more.
    shift = np.uint8(2 ** (bits - 1) - 2 ** (leaf.format.bits - 1))
    zeros = None
    if leaf.zeros is not None:
        zeros = checked_zeros("write_compressed_tensors", name, leaf) + shift
    if bits == 8:
        if zeros is not None:
            arrays[f"{weight}_zero_point"] = planned(
                (zeros - np.uint8(128)).view(np.int8)
            )
        return {**arrays, weight: planned(leaf.numbers)}
    if _ambiguous(inputs):
        raise MismatchError(
            f"write_compressed_tensors: {name!r} has {inputs} inputs, too few for a "
            "reader to tell the number of bits"
        )
    arrays[f"{weight}_packed"] = Planned(
        np.dtype(np.int32),
        (outputs, -(-inputs * bits // 32)),
        lambda: to_words(values_of(leaf) + shift, bits),
    )
    arrays[f"{weight}_shape"] = planned(np.asarray([outputs, inputs], np.int64))
    if zeros is not None:
        arrays[f"{weight}_zero_point"] = planned(to_words(zeros.T, bits).T)
    return arrays


def _ambiguous(inputs: int) -> bool:
    return len({-(-inputs * bits // 32) for bits in _BITS}) < len(_BITS)
