"""Quantization of a weight by NumPy, to the bits that the compiled arithmetic gives.

Compiling the arithmetic of `rounding` for one shape takes longer than doing it for a
small weight, and a model has dozens of shapes. On a CPU the same float32 operations in
the same order give the same bits in NumPy. XLA counts numbers below the smallest normal
float32 as 0 there; so does this module. Elsewhere a division may round otherwise, which
is why this is used for CPUs only.
"""

from typing import Any

import numpy as np

from jcompress.formats import Float8, FloatScales, Int
from jcompress.tensors.axes import Axes, matrix_shape
from jcompress.tensors.range_specs import FullRange
from jcompress.tensors.specs import PerBlock, PerGroup, PerTensor, Weights

Host = np.ndarray[Any, Any]

_TINY = np.finfo(np.float32).tiny


def packs_on_host(spec: Weights) -> bool:
    """Whether `pack_on_host` knows the format."""
    known = isinstance(spec.format, Int) and spec.format.bits <= 8
    return (
        (known or spec.format == Float8())
        and isinstance(spec.range, FullRange)
        and not isinstance(spec.granularity, PerBlock)
        and spec.scales == FloatScales()
    )


def pack_on_host(
    leaf: Any, axes: Axes, spec: Weights
) -> tuple[Host, Host, None, Host | None]:
    """Quantize and pack a weight.

    Args:
        leaf: an array of floats, not traced.
        axes: the role of each of its axes.
        spec: the format, one that `packs_on_host`.

    Returns:
        Values, scales, their factor and zero points as `QTensor` stores them.

    Raises:
        ValueError: the group size does not divide the number of inputs.
    """
    stacks, outputs, inputs = matrix_shape(leaf.shape, axes)
    with np.errstate(all="ignore"):
        x = np.asarray(leaf).astype(np.float32)
        x = np.where(np.abs(x) < _TINY, np.float32(0), x)
        x = np.transpose(x, axes.stack + axes.output + axes.input)
        values, scales, zeros = _rounded(x.reshape(*stacks, outputs, inputs), spec)
    return _packed(values, int(spec.format.bits)), scales, None, zeros


def _rounded(matrix: Host, spec: Weights) -> tuple[Host, Host, Host | None]:
    inputs = matrix.shape[-1]
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else inputs
    if inputs and inputs % size:
        raise ValueError(f"groups of {size} do not divide {inputs} inputs")
    groups = inputs // size if inputs else 1
    grouped = matrix.reshape(*matrix.shape[:-1], groups, size)
    over = (-3, -2, -1) if isinstance(spec.granularity, PerTensor) else (-1,)
    if grouped.size:
        low = grouped.min(axis=over, keepdims=True)
        high = grouped.max(axis=over, keepdims=True)
    else:
        dims = [axis % grouped.ndim for axis in over]
        shape = [1 if i in dims else n for i, n in enumerate(grouped.shape)]
        low = high = np.zeros(shape, np.float32)
    format = spec.format
    qmin, qmax = np.float32(format.low), np.float32(format.high)
    zero = None
    if format.symmetric:
        width = np.maximum(np.abs(low), np.abs(high))
        scale = _invertible(width * np.float32(1 / format.reach))
    else:
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        scale = _invertible((high - low) * np.float32(1 / int(qmax - qmin)))
        zero = np.round(qmin - low * (np.float32(1) / scale))
        zero = np.clip(zero, qmin, qmax)
    steps = grouped * (np.float32(1) / scale)
    if isinstance(format, Float8):
        # A sum with 0 makes 0 of -0.
        values = np.clip(steps, qmin, qmax).astype(format.dtype)
        values = values + np.zeros((), format.dtype)
    else:
        whole = np.round(steps)
        whole = whole if zero is None else whole + zero
        values = np.clip(whole, qmin, qmax).astype(np.int8)
    stored = None if zero is None else zero[..., 0].astype(np.int8)
    return values.reshape(matrix.shape), scale[..., 0], stored


def _invertible(scale: Host) -> Host:
    return np.where(scale < _TINY, np.float32(1), scale)


def _packed(values: Host, bits: int) -> Host:
    """What `packing.pack_codes` gives, whose stream has the lowest bit first."""
    if bits == 8:
        return values
    places = np.arange(bits, dtype=np.uint8)
    single = (values.view(np.uint8)[..., None] >> places) & np.uint8(1)
    stream = single.reshape(*values.shape[:-1], values.shape[-1] * bits)
    return np.packbits(stream, axis=-1, bitorder="little")
