"""What GGUF files are made of: the types of tensors and of metadata."""

import enum
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jcompress.interchange.files import Host

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32

_KINDS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
SCALARS: dict[int, np.dtype[Any]] = {n: np.dtype(kind) for n, kind in _KINDS.items()}
STRING, ARRAY = 8, 9
MOST_AXES = 4
"""Of a tensor."""


class GgmlType(enum.Enum):
    """How the numbers of a tensor in a GGUF file are stored.

    The types of blocks are those of llama.cpp; each line says how they are read.

    Attributes:
        F32: float32.
        F16: float16.
        BF16: bfloat16.
        F64: float64.
        I8: int8.
        I16: int16.
        I32: int32.
        I64: int64.
        Q4_0: 4 bits, a scale for 32; a `QTensor`.
        Q4_1: 4 bits, a scale and a minimum for 32; a `QTensor` if all minima are whole
            numbers of steps, else dense.
        Q5_0: 5 bits, a scale for 32; a `QTensor`.
        Q8_0: 8 bits, a scale for 32; a `QTensor`.
        Q4_K: 4 bits, a scale and a minimum of 6 bits for 32, a scale of those for 256;
            as of Q4_1.
        Q6_K: 6 bits, a scale of 8 bits for 16, a scale of those for 256; a `QTensor`.
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q8_0 = 8
    Q4_K = 12
    Q6_K = 14
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    BF16 = 30

    @property
    def block(self) -> tuple[int, int]:
        """How many numbers a block has, and how many bytes."""
        return _BLOCKS.get(self.name) or (1, PLAIN[self].itemsize)


PLAIN: dict[GgmlType, np.dtype[Any]] = {
    GgmlType.F32: np.dtype(np.float32),
    GgmlType.F16: np.dtype(np.float16),
    GgmlType.BF16: np.dtype(ml_dtypes.bfloat16),
    GgmlType.F64: np.dtype(np.float64),
    GgmlType.I8: np.dtype(np.int8),
    GgmlType.I16: np.dtype(np.int16),
    GgmlType.I32: np.dtype(np.int32),
    GgmlType.I64: np.dtype(np.int64),
}
"""The types that are arrays as they are."""

_BLOCKS = {
    "Q4_0": (32, 2 + 16),
    "Q4_1": (32, 2 + 2 + 16),
    "Q5_0": (32, 2 + 4 + 16),
    "Q8_0": (32, 2 + 32),
    "Q4_K": (256, 2 + 2 + 12 + 128),
    "Q6_K": (256, 128 + 64 + 16 + 2),
}


class PlannedTensor(NamedTuple):
    """A tensor whose bytes are made when they are written.

    Attributes:
        type: how it is stored.
        shape: its axes, that of the blocks last.
        make: its bytes, uint8 of any shape.
    """

    type: GgmlType
    shape: tuple[int, ...]
    make: Callable[[], Host]


class Tensor(NamedTuple):
    """A tensor of a file.

    Attributes:
        type: how it is stored.
        shape: its axes, that of the blocks last.
        begin: where its bytes begin in the file.
    """

    type: GgmlType
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Its bytes."""
        count, size = self.type.block
        return math.prod(self.shape) // count * size
