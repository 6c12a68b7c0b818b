"""`VectorCodebook`: a weight stored as codes, each for a few weights at once."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.tensors.axes import from_matrix
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.rounding import round_to

LONGEST = 8
"""The most weights that a code stands for."""
MOST_CODES = 4
"""The most codes that are added up."""
MOST_BITS = 8
"""The most bits of a code."""
TOGETHER = 8
"""Codes that are packed together: of b bits each, they take b bytes."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VectorCodebook(MatrixTensor):
    """A weight of which D successive inputs of an output are one entry of a table.

    With M tables of C = 2^b entries the entries that M codes name are added up, and
    each output has a scale. For the matrix of `MatrixTensor`, with j = k // D:

        matrix[s, n, k] = scales[s, n, 0] * sum over m of
                          tables[s, m, code[s, n, m, j], k % D]

    cast to `dtype`: M b / D bits a weight, and the tables. Codes of b bits are packed
    eight at a time, the first in the lowest bits. Invariants, the shapes of which are
    checked on construction, with J = ceil(K / D):

        1 <= D <= 8,  1 <= M <= 4,  1 <= b <= 8
        codes: uint8 [*S, N, M, P], P = b ceil(J / 8)
        code[j] = bits b (j % 8) to b (j % 8) + b - 1 of the integer in the b bytes from
            b (j // 8), lowest first; codes from J on stand for nothing
        tables: float32 [*S, M, 2^b, D]
        scales: float32 [*S, N, 1]

    Attributes:
        codes: the packed codes.
        tables: the entries, of which weights are made.
        scales: what each output is multiplied by.

    Raises:
        ValueError: an invariant does not hold.

    References:
        Gray 1984, "Vector Quantization"; sums of entries as in Egiazarian et al. 2024,
        "Extreme Compression of Large Language Models via Additive Quantization".
    """

    arrays: ClassVar[tuple[str, ...]] = ("codes", "tables", "scales")

    codes: jax.Array
    tables: jax.Array
    scales: jax.Array

    @property
    def length(self) -> int:
        """How many weights a code stands for, D."""
        return int(self.tables.shape[-1])

    @property
    def bits(self) -> int:
        """Of a code, b."""
        return bits_of(self.tables.shape[-2])

    @property
    def form(self) -> str:
        """How the leaf is stored: how many codes of how many bits, for how many."""
        count = self.tables.shape[-3]
        return f"VectorCodebook {count}x{self.bits} bits of {self.length}"

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        count, size, length = (0, 0, 0, *self.tables.shape)[-3:]
        sizes = 1 <= count <= MOST_CODES and 1 <= length <= LONGEST
        if not sizes or size != 2 ** min(MOST_BITS, bits_of(size)) or size < 2:
            raise ValueError(
                f"VectorCodebook: tables is {list(self.tables.shape)}, not "
                f"[{', '.join([*map(str, stacks), 'M', 'C', 'D'])}] with M at most "
                f"{MOST_CODES}, C a power of 2 up to {2**MOST_BITS} and D at most "
                f"{LONGEST}"
            )
        self.check_array("tables", (*stacks, count, size, length), jnp.float32)
        stored = code_bytes(inputs, length, self.bits)
        self.check_array("codes", (*stacks, outputs, count, stored), jnp.uint8)
        self.check_array("scales", (*stacks, outputs, 1), jnp.float32)

    def _dense(self) -> jax.Array:
        inputs = self.matrix_shape[-1]
        matrix = decode(self.codes, self.tables, inputs=inputs) * self.scales
        return from_matrix(round_to(matrix, self.dtype), self.axes, self.shape)


def bits_of(size: int) -> int:
    """The bits of a code that names one of `size` entries."""
    return max(size - 1, 0).bit_length()


def code_bytes(inputs: int, length: int, bits: int) -> int:
    """Bytes of the codes of one output into one table."""
    return bits * -(-inputs // (length * TOGETHER))


def pack_codes(codes: jax.Array, bits: int) -> jax.Array:
    """Store the codes uint8 [..., J], each below 2^bits; see `VectorCodebook`."""
    pad = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % TOGETHER)]
    groups = jnp.pad(codes, pad).reshape(*codes.shape[:-1], -1, TOGETHER)
    each = groups.astype(jnp.uint16)
    stored = []
    for byte in range(bits):
        # Of each code the part that lies in this byte.
        total = jnp.zeros_like(each[..., 0])
        for place in range(TOGETHER):
            shift = place * bits - 8 * byte
            if -bits < shift < 8:
                code = each[..., place]
                moved = code << np.uint16(max(shift, 0)) >> np.uint16(max(-shift, 0))
                total = total | moved
        stored.append((total & np.uint16(255)).astype(jnp.uint8))
    return jnp.stack(stored, axis=-1).reshape(*codes.shape[:-1], -1)


def unpack_codes(codes: jax.Array, bits: int, count: int) -> jax.Array:
    """The first `count` codes, int32 [..., J], that `VectorCodebook` packs."""
    groups = codes.reshape(*codes.shape[:-1], -1, bits).astype(jnp.int32)
    found = []
    for place in range(TOGETHER):
        first, shift = divmod(place * bits, 8)
        word = groups[..., first]
        if first + 1 < bits:
            word = word | groups[..., first + 1] << np.int32(8)
        found.append(word >> np.int32(shift) & np.int32(2**bits - 1))
    every = jnp.stack(found, axis=-1).reshape(*codes.shape[:-1], -1)
    return every[..., :count]


def decode(codes: jax.Array, tables: jax.Array, *, inputs: int) -> jax.Array:
    """The float32 matrix [*S, N, K] that codes stand for, before scales.

    Args:
        codes: uint8 [*S, N, M, P], as `VectorCodebook` stores them.
        tables: float32 [*S, M, C, D].
        inputs: K.
    """
    *stacks, count, size, length = tables.shape
    vectors = -(-inputs // length)
    places = unpack_codes(codes, bits_of(size), vectors)
    copies = math.prod(stacks)
    # One long table: that of each copy and of each of its codes begins elsewhere.
    begins = np.arange(copies * count, dtype=np.int32).reshape(*stacks, 1, count, 1)
    rows = jnp.take(
        tables.reshape(copies * count * size, length),
        places + begins * np.int32(size),
        axis=0,
        mode="clip",
    )
    total = rows[..., 0, :, :]
    for number in range(1, count):
        total = total + rows[..., number, :, :]
    matrix = total.reshape(*total.shape[:-2], vectors * length)
    return matrix[..., :inputs]
