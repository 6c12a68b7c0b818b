"""Products and convolutions of quantized data with quantized weights, in ONNX."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jcompress.interchange.onnx_pieces import Graph, Host, Made, one
from jcompress.interchange.onnx_weights import Stored, dequantized
from jcompress.tensors import QTensor
from jcompress.tensors.ranges import InputScale
from jcompress.tensors.rounding import quantize_values
from jcompress.tensors.specs import Activation

_FLOAT32, _INT8 = 1, 3
"""ONNX's numbers of the types, as `Cast` takes them."""
_SHIFT = 128


def _weight(graph: Graph, stored: Stored, numbers: Host) -> list[Made]:
    """The integers, and what stands for 0 among them if that is not 0 alone.

    They are int8, from 4 bits, if they fit into those, else uint8: on a processor
    without VNNI onnxruntime adds two products of uint8 and int8 in 16 bits, which end
    at 32,767.
    """
    numbers = np.ascontiguousarray(numbers)
    zeros = None if stored.zeros is None else np.ascontiguousarray(stored.zeros[:, 0])
    if stored.bits == 4:
        few = graph.constant(numbers.astype(ml_dtypes.int4))
        made = graph.node("Cast", few, gives=(numbers.shape, np.int8), to=_INT8)
    else:
        made = graph.constant(_raised(numbers))
        zeros = _raised(np.zeros((), np.int8) if zeros is None else zeros)
    return [made] if zeros is None else [made, graph.constant(zeros)]


def _raised(numbers: Host) -> Host:
    """Plus 128: uint8."""
    raised: Host = (numbers.astype(np.int16) + _SHIFT).astype(np.uint8)
    return raised


def _sums(stored: Stored) -> Host:
    """The sum over the inputs of each output's integers, less its zero points."""
    wide = stored.numbers.astype(np.int32)
    if stored.zeros is not None:
        wide = wide - stored.zeros.astype(np.int32)
    sums: Host = wide.sum(axis=-1, dtype=np.int32)
    return sums


def rounded(
    x: jax.Array, scale: jax.Array, zero: jax.Array | None, activation: Activation
) -> jax.Array:
    """The integers that data becomes, plus 128: uint8.

    They are those that our kernels take. onnxruntime multiplies uint8 with other bytes
    several times as fast as int8 with int8.
    """
    numbers = quantize_values(x, scale, zero, activation.format)
    return (numbers + np.float32(_SHIFT)).astype(jnp.uint8)


def integer_product(
    rows: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    tensor: QTensor,
    activation: Activation,
) -> jax.Array:
    """Rows that are rounded, each by its own range, times integers.

    Args:
        rows: floats [..., K].
        scale: float32 [..., 1].
        zero: integers in float32 [..., 1]; None if symmetric.
        tensor: [N, K] in int8 or less, with a scale an output.
        activation: how rows are rounded.
    """
    stored = Stored.of(tensor)
    outputs = stored.numbers.shape[0]

    def write(graph: Graph, q: Made) -> Made:
        weight, *zeros = _weight(graph, stored, stored.numbers.T)
        shift = graph.constant(np.array(_SHIFT, np.uint8))
        return graph.node("MatMulInteger", q, weight, shift, *zeros, gives=kind)

    kind = ((*rows.shape[:-1], outputs), np.int32)
    q = rounded(rows, scale, zero, activation)
    total = one(*kind, write, q)
    wide = (1,) * (rows.ndim - 1) + (outputs,)
    if zero is not None:
        total = total - zero.astype(jnp.int32) * _sums(stored).reshape(wide)
    scaled = total.astype(jnp.float32) * scale
    return scaled * stored.scales[:, 0].reshape(wide)


def shared_range_product(rows: jax.Array, tensor: QTensor) -> jax.Array:
    """All rows rounded by one range, which `DynamicQuantizeLinear` finds.

    onnxruntime has the nodes written here as one operation.
    """
    stored = Stored.of(tensor)
    outputs = stored.numbers.shape[0]

    def write(graph: Graph, x: Made) -> Made:
        q, scale, zero = _by_shared_range(graph, x, rows.shape)
        weight, *zeros = _weight(graph, stored, stored.numbers.T)
        given = (q, weight, zero, *zeros)
        total = graph.node("MatMulInteger", *given, gives=(shape, np.int32))
        return _scaled(graph, total, scale, stored.scales[:, 0], shape)

    shape = (*rows.shape[:-1], outputs)
    return one(shape, np.float32, write, rows)


def _by_shared_range(graph: Graph, x: Made, shape: Any) -> list[Made]:
    """The integers uint8, their scale and what stands for 0."""
    kinds = [(shape, np.uint8), ((), np.float32), ((), np.uint8)]
    made: list[Made] = graph.node("DynamicQuantizeLinear", x, gives=kinds)
    return made


def _scaled(graph: Graph, total: Made, scale: Made, scales: Host, shape: Any) -> Made:
    """Sums of integers times the scales of data and weight."""
    own = graph.constant(np.ascontiguousarray(scales))
    both = graph.node("Mul", scale, own, gives=(scales.shape, np.float32))
    wide = graph.node("Cast", total, gives=(shape, np.float32), to=_FLOAT32)
    return graph.node("Mul", wide, both, gives=(shape, np.float32))


def rounded_by(x: jax.Array, known: InputScale) -> jax.Array:
    """Data rounded to 8 bits by a stored scale: a quantization and its reverse.

    Args:
        x: the data.
        known: scalars, not traced.
    """
    with jax.ensure_compile_time_eval():
        scale, zero = known
        step = np.asarray(scale, np.float32).reshape(())
        shift = np.asarray(0 if zero is None else zero).reshape(()).astype(np.int8)

    def write(graph: Graph, value: Made) -> Made:
        by = graph.constant(step), graph.constant(shift)
        q = graph.node("QuantizeLinear", value, *by, gives=(x.shape, np.int8))
        return graph.node("DequantizeLinear", q, *by, gives=(x.shape, np.float32))

    return one(x.shape, np.float32, write, x)


def convolution(
    images: jax.Array, tensor: QTensor, numbers: Host, out: Any, **window: Any
) -> jax.Array:
    """Floats, convolved with a quantized kernel.

    Args:
        images: [B, C, *spatial].
        tensor: the kernel, with one scale for each output.
        numbers: its integers, [N, C / groups, *window].
        out: shape of the result, [B, N, *positions].
        **window: the attributes of `Conv`.
    """
    stored = Stored.of(tensor)

    def write(graph: Graph, x: Made) -> Made:
        kernel = dequantized(graph, stored, numbers, 0, 1)
        return graph.node("Conv", x, kernel, gives=(out, np.float32), **window)

    return one(out, np.float32, write, images)


def integer_convolution(
    images: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    tensor: QTensor,
    numbers: Host,
    out: Any,
    activation: Activation,
    **window: Any,
) -> jax.Array:
    """Images that are rounded, each by its own range, convolved with integers.

    Args:
        images: [B, C, *spatial], padded: 0 becomes the zero point of its image.
        scale: float32 [B, 1, ...], or one for all.
        zero: integers in float32 of that shape; None if symmetric.
        tensor: the kernel, symmetric, with one scale for each output.
        numbers: its integers, [N, C / groups, *window].
        out: shape of the result, [B, N, *positions].
        activation: how data is rounded.
        **window: the attributes of the convolution, but for padding.
    """
    stored = Stored.of(tensor)
    wide = (1, out[1], *(1 for _ in out[2:]))

    def write(graph: Graph, x: Made) -> Made:
        weight, *zeros = _weight(graph, stored, numbers)
        shift = graph.constant(np.array(_SHIFT, np.uint8))
        given = (x, weight, shift, *zeros)
        return graph.node("ConvInteger", *given, gives=(out, np.int32), **window)

    q = rounded(images, scale, zero, activation)
    total = one(out, np.int32, write, q)
    if zero is not None:
        total = total - zero.astype(jnp.int32) * _sums(stored).reshape(wide)
    scaled = total.astype(jnp.float32) * scale
    return scaled * stored.scales[:, 0].reshape(wide)


def shared_range_convolution(
    images: jax.Array, tensor: QTensor, numbers: Host, out: Any, **window: Any
) -> jax.Array:
    """All images rounded by one range, which `DynamicQuantizeLinear` finds.

    Arguments as of `integer_convolution`, but for the images, which are not padded.
    """
    stored = Stored.of(tensor)
    wide = (out[1], *(1 for _ in out[2:]))

    def write(graph: Graph, x: Made) -> Made:
        q, scale, zero = _by_shared_range(graph, x, images.shape)
        weight, *zeros = _weight(graph, stored, numbers)
        given = (q, weight, zero, *zeros)
        total = graph.node("ConvInteger", *given, gives=(out, np.int32), **window)
        return _scaled(graph, total, scale, stored.scales[:, 0].reshape(wide), out)

    return one(out, np.float32, write, images)
