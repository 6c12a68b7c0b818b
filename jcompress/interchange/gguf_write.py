"""GGUF files, the format of llama.cpp, written from leaves and arrays."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import Float8
from jcompress.interchange.files import Host, Path
from jcompress.interchange.gguf_blocks import close_q4_0, close_q4_1, close_q8_0
from jcompress.interchange.gguf_encoding import write_container
from jcompress.interchange.gguf_types import PLAIN, GgmlType, PlannedTensor
from jcompress.interchange.layers import (
    Tensors,
    any_matches,
    check_globs,
    checked_zeros,
    half_scales,
)
from jcompress.interchange.numbers import values_of, writable
from jcompress.interchange.q4_k import quantize_q4_k
from jcompress.tensors import QTensor, is_compressed

_BLOCK = 32
_MOST_ROUNDED = 2**20
"""Numbers of a dense tensor that are rounded at a time."""


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
    check_globs("write_gguf", "types", types, tensors)
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
        return _planned_leaf(name, writable("write_gguf", name, leaf))
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
        step = max(1, _MOST_ROUNDED // count)
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
