"""Between the unsigned numbers of files and `QTensor`, whose numbers are signed."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import Float8, FloatScales, Int
from jcompress.interchange.files import Host
from jcompress.interchange.words import pack, unpack
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes


class Numbers(NamedTuple):
    """What a quantized weight is made of, unpacked.

        matrix[s, n, k] = (values[s, n, k] - zeros[s, n, g]) * scales[s, n, g]

    Attributes:
        values: uint8 [*S, N, K], each below 2^bits.
        scales: float32 [*S, N or 1, G].
        zeros: uint8 of the shape of the scales; None: all are 2^(bits - 1).
        bits: bits of a number, 2 to 8.
    """

    values: Host
    scales: Host
    zeros: Host | None
    bits: int


def kernel_axes(stacks: int = 0) -> Axes:
    """Of a leaf [*S, K, N]: inputs before outputs, as kernels of JAX libraries are."""
    return Axes(tuple(range(stacks)), (stacks + 1,), (stacks,))


def to_qtensor(
    numbers: Numbers,
    dtype: Any,
    shape: tuple[int, ...] | None = None,
    axes: Axes | None = None,
) -> QTensor:
    """A leaf of these numbers.

    It is symmetric if every zero point is the middle.

    Args:
        numbers: what it is made of.
        dtype: of the dense array that it stands for.
        shape: of that array; None: [*S, K, N].
        axes: the role of each of its axes; None: those of such a kernel.
    """
    values, scales, zeros, bits = numbers
    half = np.uint8(2 ** (bits - 1))
    symmetric = zeros is None or bool((zeros == half).all())
    full = symmetric and bool((values == 0).any())
    # Without borrowing from bits above: values - half, in two's complement.
    if bits < 8:
        stored = pack(values ^ half, bits)
    else:
        stored = (values - half).view(np.int8)
    signed = None
    if not symmetric:
        assert zeros is not None
        signed = (zeros - half).view(np.int8)
    *stacks, outputs, inputs = values.shape
    if shape is None:
        shape = (*stacks, inputs, outputs)
    if axes is None:
        axes = kernel_axes(len(stacks))
    return QTensor(
        values=jnp.asarray(np.ascontiguousarray(stored)),
        scales=jnp.asarray(np.ascontiguousarray(scales, np.float32)),
        zeros=None if signed is None else jnp.asarray(np.ascontiguousarray(signed)),
        format=Int(bits, symmetric=symmetric, full=full),
        shape=shape,
        dtype=dtype,
        stack_axes=axes.stack,
        output_axes=axes.output,
        input_axes=axes.input,
    )


def writable(transform: str, name: str, leaf: QTensor) -> QTensor:
    """The same leaf with float32 scales, one for each output or one for all.

    Raises:
        MismatchError: its numbers are neither integers of up to 8 bits nor float8.
    """
    leaf.check_whole()
    known = isinstance(leaf.format, Int) and leaf.format.bits <= 8
    if not known and leaf.format != Float8():
        raise MismatchError(
            f"{transform}: {name!r} is {leaf.format}; integers of 2 to 8 bits and "
            "float8 (e4m3) can be written, and the array dense()"
        )
    outputs = leaf.matrix_shape[-2]
    rows = leaf.scales.shape[-2]
    scales, zeros = leaf.float_scales, leaf.zeros
    if rows not in (1, outputs):
        scales = jnp.repeat(scales, outputs // rows, axis=-2)
        zeros = None if zeros is None else jnp.repeat(zeros, outputs // rows, axis=-2)
    return dataclasses.replace(
        leaf,
        scales=scales,
        scale_factor=None,
        zeros=zeros,
        scale_format=FloatScales(),
    )


def values_of(leaf: QTensor) -> Host:
    """The numbers of a leaf of integers, unsigned: uint8 [*S, N, K]."""
    leaf.check_whole()
    bits = leaf.format.bits
    half = np.uint8(2 ** (bits - 1))
    stored = np.asarray(leaf.values)
    if bits < 8:
        return unpack(stored, leaf.matrix_shape[-1], bits) ^ half
    return stored.view(np.uint8) + half


def zeros_of(leaf: QTensor) -> Host:
    """The zero points of `values_of`, of every output: uint8 [*S, N, G].

    Raises:
        ValueError: one is no number of the format.
    """
    half = 2 ** (leaf.format.bits - 1)
    shape = (*leaf.matrix_shape[:-1], leaf.scales.shape[-1])
    if leaf.zeros is None:
        return np.full(shape, half, np.uint8)
    wide = np.asarray(leaf.zeros).astype(np.int16) + np.int16(half)
    if wide.size and not 0 <= wide.min() <= wide.max() < 2 * half:
        raise ValueError(f"a zero point is no number of {leaf.format}")
    return np.broadcast_to(wide.astype(np.uint8), shape)


def dense_kernel(numbers: Numbers, groups: Host, dtype: Any) -> Host:
    """The dense weight [K, N] of a matrix whose input k is in group `groups[k]`."""
    values, scales, zeros, bits = numbers
    half = np.float32(2 ** (bits - 1))
    zero = half if zeros is None else zeros.astype(np.float32)[:, groups]
    dense = (values.astype(np.float32) - zero) * scales[:, groups]
    return np.ascontiguousarray(dense.T).astype(dtype)
