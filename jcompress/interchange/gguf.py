"""GGUF files, the format of llama.cpp: weights to and from compressed leaves."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import Float8
from jcompress.interchange.files import FileFormatError, Host, Path
from jcompress.interchange.gguf_blocks import (
    Groups,
    close_q4_0,
    close_q4_1,
    close_q8_0,
    opened,
)
from jcompress.interchange.gguf_file import (
    PLAIN,
    GgmlType,
    GgufContainer,
    PlannedTensor,
    write_container,
)
from jcompress.interchange.layers import (
    Tensors,
    any_matches,
    checked_zeros,
    half_scales,
)
from jcompress.interchange.numbers import Numbers, to_qtensor, values_of
from jcompress.interchange.q4_k import quantize_q4_k
from jcompress.interchange.rows import as_rows
from jcompress.tensors import QTensor, is_compressed

_BLOCK = 32
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
    unused = [glob for glob in keep if not any(any_matches(n, [glob]) for n in found)]
    if unused:
        raise FileFormatError(
            f"{path}: no tensor is named {unused[0]!r}, which keep= says; there are "
            f"{', '.join(list(found)[:8])}"
        )
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
    most = 127 + 2 ** (groups.bits - 1)
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


def write_gguf(
    path: Path,
    tensors: Tensors,
    metadata: Mapping[str, Any] = MappingProxyType({}),
    *,
    types: Mapping[str, GgmlType] = MappingProxyType({}),
) -> None:
    """Write a GGUF file.

    A `QTensor` is written as Q4_0 if its integers have at most 4 bits and zero points
    of 0, as Q4_1 if it has others, as Q8_0 if it has more bits; groups of a multiple of
    32 inputs, or whole rows, take several blocks. Its numbers are kept; scales, and
    minima in Q4_1, are rounded to float16, an error of 2^-11 of each at most. The file
    is complete or is not there.

    Args:
        path: the file; one that is there is replaced.
        tensors: by name. `QTensor`s in any layout: what is stored is their matrix
            [*S, N, K]. Arrays as they are.
        metadata: what to say of the model. Integers of Python become int32 or int64,
            floats float32; give a NumPy scalar for another type.
            `general.architecture` is what llama.cpp asks for first.
        types: globs of names of arrays of floats, and how they are stored: F32, F16 and
            BF16 cast them; Q4_K takes kernels [*S, K, N] and rounds them to blocks of
            the least squared error.

    Raises:
        MismatchError: a leaf has no form in GGUF: float8, groups of other sizes, a
            compressed leaf of another class; an array is of a dtype that GGUF does not
            have; an entry of `types` fits no array.
        ValueError: a metadatum has no type of the format.
        OSError: the file cannot be written.

    Example:
        See `read_gguf`.
    """
    if not tensors:
        raise MismatchError("write_gguf: there are no tensors")
    for glob in types:
        if not any(any_matches(name, [glob]) for name in tensors):
            raise MismatchError(
                f"write_gguf: no tensor is named {glob!r}, which types= says; there "
                f"are {', '.join(list(tensors)[:8])}"
            )
    planned = {
        name: _planned(
            name,
            leaf,
            next((types[glob] for glob in types if any_matches(name, [glob])), None),
        )
        for name, leaf in tensors.items()
    }
    write_container(path, metadata, planned)


def _planned(name: str, leaf: Any, type: GgmlType | None) -> PlannedTensor:
    if isinstance(leaf, QTensor):
        if type is not None:
            raise MismatchError(
                f"write_gguf: {name!r} is a QTensor, whose numbers say how it is "
                f"stored; types= is for arrays: {type.name} can be made of its dense()"
            )
        return _planned_leaf(name, leaf)
    if is_compressed(leaf) or not hasattr(leaf, "dtype"):
        raise MismatchError(
            f"write_gguf: {name!r} is a {_name_of(leaf)}; a QTensor or an array can be "
            "written, such as its dense()"
        )
    floats = jnp.issubdtype(leaf.dtype, jnp.floating)
    if type is GgmlType.Q4_K and floats:
        return _planned_q4_k(name, leaf)
    if type is not None and not (floats and type.name in ("F32", "F16", "BF16")):
        raise MismatchError(
            f"write_gguf: {name!r} is {leaf.dtype} and cannot be stored as "
            f"{type.name}; floats can be as F32, F16, BF16 and Q4_K"
        )
    kinds = {dtype: kind for kind, dtype in PLAIN.items()}
    kind = type or kinds.get(np.dtype(leaf.dtype))
    if kind is None or len(leaf.shape) > 4:
        raise MismatchError(
            f"write_gguf: {name!r} is {leaf.dtype} {list(leaf.shape)}; arrays have up "
            f"to 4 axes and are of {', '.join(map(str, kinds))}"
        )
    dtype = PLAIN[kind]
    return PlannedTensor(
        kind, tuple(leaf.shape), lambda: np.asarray(leaf).astype(dtype)
    )


def _name_of(leaf: Any) -> str:
    return str(leaf.__class__.__name__)


def _planned_leaf(name: str, leaf: QTensor) -> PlannedTensor:
    shape = leaf.matrix_shape
    groups = leaf.scales.shape[-1]
    if isinstance(leaf.format, Float8) or len(shape) > 4:
        raise MismatchError(
            f"write_gguf: {name!r} is {leaf.format} {list(leaf.shape)}; GGUF holds "
            "integers of up to 4 axes"
        )
    if shape[-1] // groups % _BLOCK:
        raise MismatchError(
            f"write_gguf: {name!r} has groups of {shape[-1] // groups} inputs; a block "
            f"has {_BLOCK}, so groups are multiples of that"
        )
    bits = leaf.format.bits
    scales = half_scales("write_gguf", name, leaf.scales)
    zeros = leaf.zeros
    shifted = zeros is not None and bool(np.asarray(zeros).any())

    def each(of_groups: Any) -> Host:
        """What belongs to groups [*S, N or 1, G], for every block."""
        rows = np.broadcast_to(np.asarray(of_groups), (*shape[:-1], groups))
        return np.repeat(rows, shape[-1] // groups // _BLOCK, axis=-1).reshape(-1)

    def values(into: int) -> Host:
        shift = np.uint8(2 ** (into - 1) - 2 ** (bits - 1))
        return values_of(leaf).reshape(-1, _BLOCK) + shift

    if not shifted:
        into = 4 if bits <= 4 else 8
        close = close_q4_0 if bits <= 4 else close_q8_0
        return PlannedTensor(
            GgmlType.Q4_0 if bits <= 4 else GgmlType.Q8_0,
            shape,
            lambda: close(values(into), each(scales)),
        )
    if bits > 4:
        raise MismatchError(
            f"write_gguf: {name!r} is {leaf.format} with zero points, for which GGUF "
            "has no type; quantize it with symmetric=True, or to 4 bits"
        )
    # How far the zero point is from the lowest number of 4 bits.
    zero = checked_zeros("write_gguf", name, leaf) + np.uint8(8 - 2 ** (bits - 1))
    lowest = -(zero.astype(np.float32) * np.asarray(leaf.scales))
    minima = half_scales("write_gguf", name, lowest)
    return PlannedTensor(
        GgmlType.Q4_1,
        shape,
        lambda: close_q4_1(values(4), each(scales), each(minima)),
    )


def _planned_q4_k(name: str, leaf: Any) -> PlannedTensor:
    count, _ = GgmlType.Q4_K.block
    if not 2 <= len(leaf.shape) <= 4 or leaf.shape[-2] % count:
        raise MismatchError(
            f"write_gguf: {name!r} is {list(leaf.shape)}; Q4_K takes kernels "
            f"[*S, K, N] with K a multiple of {count}"
        )

    def make() -> Host:
        rows = np.swapaxes(np.asarray(leaf), -1, -2).reshape(-1, count)
        step = max(1, _MOST_OPENED // 4 // count)
        try:
            return np.concatenate(
                [
                    quantize_q4_k(rows[start : start + step].astype(np.float32))
                    for start in range(0, len(rows), step)
                ]
            )
        except ValueError as error:
            raise MismatchError(f"write_gguf: {name!r}: {error}") from error

    shape = (*leaf.shape[:-2], leaf.shape[-1], leaf.shape[-2])
    return PlannedTensor(GgmlType.Q4_K, shape, make)
