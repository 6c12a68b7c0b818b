"""Stored weights as constants of an ONNX graph, and products with them."""

import dataclasses
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jcompress.interchange.onnx_pieces import MICROSOFT, Graph, Host, Kind, Made, one
from jcompress.tensors import Codebook, QTensor
from jcompress.tensors.codebook import unpack_indices

_FLOAT32, _INT32 = 1, 6
"""ONNX's numbers of the types, as `Cast` takes them."""
_LEAST_BLOCK, _MOST_BLOCK = 16, 256
"""Inputs that share a scale in onnxruntime's `MatMulNBits`: a power of 2 of these."""


def in_onnx(tensor: QTensor) -> bool:
    """Whether ONNX has the numbers of a quantized weight: integers, float8_e4m3fn."""
    dtype = np.dtype(tensor.format.dtype)
    return np.issubdtype(dtype, np.integer) or dtype == ml_dtypes.float8_e4m3fn


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Stored:
    """The numbers of a quantized weight on the host.

    `matrix[s, n, k] = (numbers[s, n, k] - zeros[s, n, g]) * scales[s, n, g]` with
    `g = k // (K / G)`.

    Attributes:
        numbers: int8, int16 or float8 [*S, N, K].
        scales: float32 [*S, N, G].
        zeros: integers of the shape of `scales`; None for all 0.
        bits: 4 if all integers fit into 4 bits, else 8 or 16.
    """

    numbers: Host
    scales: Host
    zeros: Host | None
    bits: int

    @classmethod
    def of(cls, tensor: QTensor) -> "Stored":
        """Those of a leaf that is not traced."""
        with jax.ensure_compile_time_eval():
            numbers = np.asarray(tensor.numbers)
            scales = np.asarray(tensor.float_scales)
            zeros = None if tensor.zeros is None else np.asarray(tensor.zeros)
        high = numbers.shape[-2] // scales.shape[-2]
        scales = np.repeat(scales, high, axis=-2)
        zeros = None if zeros is None else np.repeat(zeros, high, axis=-2)
        bits = 8 * numbers.dtype.itemsize
        whole = np.issubdtype(numbers.dtype, np.integer)
        few = whole and bits == 8 and tensor.format.bits <= 4
        return cls(numbers=numbers, scales=scales, zeros=zeros, bits=4 if few else bits)

    @property
    def group(self) -> int:
        """How many inputs share a scale."""
        return int(self.numbers.shape[-1]) // int(self.scales.shape[-1])

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floats."""
        return not np.issubdtype(self.numbers.dtype, np.integer)

    def flat(self) -> "Stored":
        """The same with all stacks below each other: [S N, K]."""
        return dataclasses.replace(
            self,
            numbers=_flat(self.numbers),
            scales=_flat(self.scales),
            zeros=None if self.zeros is None else _flat(self.zeros),
        )

    def typed(self, array: Host) -> Host:
        """Numbers or zero points in the dtype that the file has."""
        return array.astype(ml_dtypes.int4) if self.bits == 4 else array


def _flat(array: Host) -> Host:
    return array.reshape(-1, array.shape[-1])


def dequantized(
    graph: Graph, stored: Stored, numbers: Host, output_axis: int, input_axis: int
) -> Made:
    """The float weight, by a `DequantizeLinear` of its stored integers.

    Args:
        graph: gets the node.
        stored: the weight, of one matrix [N, K].
        numbers: its numbers in the order that the result has.
        output_axis: their axis of outputs.
        input_axis: their axis of inputs, if there are several groups.
    """
    grouped = stored.scales.shape[-1] > 1

    def laid(part: Host) -> Host:
        if not grouped:
            return part[:, 0]
        return part if output_axis < input_axis else part.T

    # A node without zero points has those of 0, of the dtype of the numbers.
    given = [graph.constant(np.ascontiguousarray(stored.typed(numbers)))]
    given.append(graph.constant(np.ascontiguousarray(laid(stored.scales))))
    if stored.zeros is not None:
        given.append(
            graph.constant(np.ascontiguousarray(stored.typed(laid(stored.zeros))))
        )
    kind = (numbers.shape, np.float32)
    if not grouped:
        return graph.node("DequantizeLinear", *given, gives=kind, axis=output_axis)
    return graph.node(
        "DequantizeLinear", *given, gives=kind, axis=input_axis, block_size=stored.group
    )


def dense_matrix(tensor: QTensor) -> jax.Array:
    """The matrix [*S, N, K] in floats, computed in the graph from what is stored."""
    flat = Stored.of(tensor).flat()

    def write(graph: Graph) -> Made:
        return dequantized(graph, flat, flat.numbers, 0, 1)

    made = one(flat.numbers.shape, np.float32, write)
    return made.reshape(tensor.matrix_shape)


def float_product(rows: jax.Array, tensor: QTensor, portable: bool) -> jax.Array:
    """Floats times a quantized weight: [..., K] x [N, K] -> [..., N].

    Args:
        rows: the floats.
        tensor: the weight.
        portable: use nothing but operators of ONNX's own.
    """
    stored = Stored.of(tensor)
    outputs = stored.numbers.shape[0]
    block = 0 if portable else _block(stored)
    kind = ((*rows.shape[:-1], outputs), np.float32)

    def write(graph: Graph, x: Made) -> Made:
        if block:
            return _by_blocks(graph, x, stored, block, kind)
        if stored.bits == 8 and not portable:
            dense = _folded(graph, stored)
            return graph.node("MatMul", x, dense, gives=kind)
        dense = dequantized(graph, stored, stored.numbers.T, 1, 0)
        return graph.node("MatMul", x, dense, gives=kind)

    return one(*kind, write, rows)


def _folded(graph: Graph, stored: Stored) -> Made:
    """The float weight [K, N], which onnxruntime computes when it loads the file.

    Its products with 8-bit weights in floats take several times as long.
    """
    outputs, inputs = stored.numbers.shape
    groups = stored.scales.shape[-1]
    shape = (groups, inputs // groups, outputs)

    def floats(part: Host, shape: tuple[int, ...]) -> Made:
        laid = graph.constant(np.ascontiguousarray(part.T.reshape(shape)))
        return graph.node("Cast", laid, gives=(shape, np.float32), to=_FLOAT32)

    each = (groups, 1, outputs)
    made = floats(stored.numbers, shape)
    if stored.zeros is not None:
        zeros = floats(stored.zeros, each)
        made = graph.node("Sub", made, zeros, gives=(shape, np.float32))
    scales = graph.constant(np.ascontiguousarray(stored.scales.T.reshape(each)))
    made = graph.node("Mul", made, scales, gives=(shape, np.float32))
    whole = graph.constant(np.array([inputs, outputs], np.int64))
    return graph.node("Reshape", made, whole, gives=((inputs, outputs), np.float32))


def _block(stored: Stored) -> int:
    """The size of blocks in which `MatMulNBits` can have the weight; 0 for none."""
    inputs = int(stored.numbers.shape[-1])
    if stored.bits != 4:
        return 0
    if stored.scales.shape[-1] == 1:
        size = 1 << max(inputs - 1, _LEAST_BLOCK - 1).bit_length()
        return min(size, _MOST_BLOCK)
    size = stored.group & -stored.group
    return 0 if size < _LEAST_BLOCK else min(size, _MOST_BLOCK)


def _by_blocks(graph: Graph, x: Made, stored: Stored, block: int, kind: Kind) -> Made:
    outputs, inputs = stored.numbers.shape
    blocks = -(-inputs // block)
    shift = 8
    codes = np.zeros((outputs, blocks * block), np.uint8)
    codes[:, :inputs] = stored.numbers.astype(np.int16) + shift
    codes = codes.reshape(outputs, blocks, block)
    given = [_packed(codes), _each_block(stored.scales, blocks)]
    if stored.zeros is not None:
        zeros = _each_block(stored.zeros, blocks).astype(np.int16) + shift
        given.append(_packed(zeros.astype(np.uint8)))
    return graph.node(
        "MatMulNBits",
        x,
        *map(graph.constant, given),
        gives=kind,
        domain=MICROSOFT,
        K=inputs,
        N=outputs,
        bits=4,
        block_size=block,
        # Float32 sums of floats: left to choose, it may round the data to 8 bits.
        accuracy_level=1,
    )


def _each_block(part: Host, blocks: int) -> Host:
    """One number for each block, from one for each group of [N, G]."""
    return np.ascontiguousarray(np.repeat(part, blocks // part.shape[-1], axis=-1))


def _packed(codes: Host) -> Host:
    """Two numbers a byte, the even one in the low half."""
    odd = codes.shape[-1] % 2
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, odd)])
    packed: Host = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def codebook_product(rows: jax.Array, tensor: Codebook) -> jax.Array:
    """Floats times values that indices pick from a table: [..., K] -> [..., N]."""
    outputs, inputs = tensor.matrix_shape
    with jax.ensure_compile_time_eval():
        table = np.asarray(tensor.codebook)[0]
        indices = np.asarray(unpack_indices(tensor.indices, table.size, inputs))

    def write(graph: Graph, x: Made) -> Made:
        stored = graph.constant(np.ascontiguousarray(indices.T))
        shape = (inputs, outputs)
        wide = graph.node("Cast", stored, gives=(shape, np.int32), to=_INT32)
        dense = graph.node(
            "Gather", graph.constant(table), wide, gives=(shape, np.float32), axis=0
        )
        return graph.node("MatMul", x, dense, gives=kind)

    kind = ((*rows.shape[:-1], outputs), np.float32)
    return one(*kind, write, rows)


def plain_product(rows: jax.Array, matrix: Any) -> jax.Array:
    """Floats times a float weight: [..., K] x [N, K] -> [..., N]."""
    with jax.ensure_compile_time_eval():
        turned = np.ascontiguousarray(np.asarray(matrix, np.float32).T)

    def write(graph: Graph, x: Made) -> Made:
        return graph.node("MatMul", x, graph.constant(turned), gives=kind)

    kind = ((*rows.shape[:-1], turned.shape[1]), np.float32)
    return one(*kind, write, rows)
