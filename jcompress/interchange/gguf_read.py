"""GGUF files, the format of llama.cpp, read as compressed leaves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jcompress.interchange.files import Host, Path
from jcompress.interchange.gguf_blocks import Groups, opened
from jcompress.interchange.gguf_parsing import GgufContainer
from jcompress.interchange.gguf_types import PLAIN, GgmlType
from jcompress.interchange.layers import any_matches, check_globs
from jcompress.interchange.numbers import Numbers, to_qtensor
from jcompress.interchange.rows import as_rows
from jcompress.tensors import QTensor

_MOST_OPENED = 2**22
"""Numbers of a dense tensor that are computed at a time."""


class GgufModel(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        tensors: by name, `QTensor`s and arrays.
        metadata: what the file says of the model: bool, str, NumPy scalars, arrays of
            numbers, lists of strings.
    """

    tensors: dict[str, Any]
    metadata: dict[str, Any]


def read_gguf(
    path: Path, *, keep: Sequence[str] = (), dtype: Any = jnp.float32
) -> GgufModel:
    """Read the tensors of a GGUF file.

    Tensors of Q4_0, Q5_0, Q8_0 and Q6_K become `QTensor`s with the same scales and
    numbers. Q4_1 and Q4_K have minima, `q d - m`, and a `QTensor` has zero points,
    `(q - z) d`: it is made where every m is a whole multiple of its d, and a dense
    array otherwise, which is the rule in files of llama.cpp. `quantize` makes it small
    again.

    Args:
        path: the file.
        keep: globs of names of quantized tensors that stay as they are in the file,
            [N, K], such as embeddings, of which rows are looked up.
        dtype: of the dense weights that leaves stand for, and of those that are read
            dense.

    Returns:
        The metadata, and for each name: of a quantized tensor a leaf or an array
        [*S, K, N], the layout of JAX kernels, inputs first; of one of a single axis a
        dense array. Of a tensor of floats or integers a NumPy view of the mapped file,
        as it is there: a matrix is [N, K], the reverse of the order in which GGUF
        counts sizes.

    Raises:
        FileFormatError: the file is damaged, or has tensors of another type.
        MismatchError: an entry of `keep` names no tensor.

    Example:
        >>> import jax, pathlib, tempfile
        >>> from jcompress.formats import Int
        >>> from jcompress.interchange import write_gguf
        >>> from jcompress.quantization import PerGroup, Weights
        >>> from jcompress.tensors import QTensor
        >>> from jcompress.tensors.axes import Axes
        >>> kernel = jax.random.normal(jax.random.key(0), (64, 32))
        >>> spec = Weights(format=Int(4), granularity=PerGroup(32))
        >>> small = QTensor.quantize(kernel, Axes((), (1,), (0,)), spec)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "model.gguf"
        ...     write_gguf(file, {"up.weight": small}, {"general.architecture": "toy"})
        ...     found = read_gguf(file)
        >>> found.tensors["up.weight"].form, found.metadata
        ('int4 group 32', {'general.architecture': 'toy'})

    References:
        The specification of GGUF, version 3, and the types of ggml-common.h, both of
        the ggml project.
    """
    file = GgufContainer(path)
    check_globs("read_gguf", "keep", keep, file.tensors)
    found: dict[str, Any] = {}
    for name, tensor in file.tensors.items():
        raw = file.read(name)
        if tensor.type in PLAIN:
            found[name] = raw.view(PLAIN[tensor.type]).reshape(tensor.shape)
            continue
        count, size = tensor.type.block
        blocks = raw.reshape(-1, size)
        leaf: Any = None
        if len(tensor.shape) > 1 and all(tensor.shape):
            leaf = _leaf(blocks, tensor.type, tensor.shape, np.dtype(dtype))
        if leaf is None:
            dense = _dense(blocks, tensor.type, count).reshape(tensor.shape)
            leaf = dense.astype(dtype)
            if dense.ndim > 1 and not any_matches(name, keep):
                leaf = np.ascontiguousarray(np.swapaxes(leaf, -1, -2))
        elif any_matches(name, keep):
            leaf = as_rows(leaf)
        found[name] = leaf
    return GgufModel(found, file.metadata)


def _leaf(
    blocks: Host, type: GgmlType, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> QTensor | None:
    """None if the offsets are no whole multiples of the scales."""
    if type in (GgmlType.Q4_1, GgmlType.Q4_K) and (
        _zeros(opened(blocks[:1], type)) is None
    ):
        # Most often the first block shows it.
        return None
    groups = opened(blocks, type)
    zeros = _zeros(groups) if groups.offsets is not None else None
    if groups.offsets is not None and zeros is None:
        return None
    *stacks, outputs, inputs = shape
    size = groups.values.shape[-1]
    wide = (*stacks, outputs, inputs // size)
    return to_qtensor(
        Numbers(
            groups.values.reshape(shape),
            groups.scales.reshape(wide),
            None if zeros is None else zeros.reshape(wide),
            groups.bits,
        ),
        dtype,
    )


def _zeros(groups: Groups) -> Host | None:
    """The unsigned zero points; None if there are none that are exact."""
    assert groups.offsets is not None
    # In float64 the products below are exact.
    scales, minima = (
        groups.scales.astype(np.float64),
        -groups.offsets.astype(np.float64),
    )
    whole = np.round(minima / np.where(scales != 0, scales, 1))
    exact = whole * scales == minima
    most = 2**groups.bits - 1
    if not (exact & (whole >= 0) & (whole <= most)).all():
        return None
    return whole.astype(np.uint8)


def _dense(blocks: Host, type: GgmlType, count: int) -> Host:
    """float32 [M, numbers of a block]."""
    dense = np.empty((len(blocks), count), np.float32)
    step = max(1, _MOST_OPENED // count)
    for start in range(0, len(blocks), step):
        groups = opened(blocks[start : start + step], type)
        values = groups.values.astype(np.float32)
        if groups.offsets is None:
            values -= np.float32(2 ** (groups.bits - 1))
        values *= groups.scales[..., None]
        if groups.offsets is not None:
            values += groups.offsets[..., None]
        dense[start : start + step] = values.reshape(-1, count)
    return dense
