"""The fastest forms of `quantized_conv` that XLA compiles.

Only TPUs have convolutions of int8 that XLA uses; there the sums are exact, and zero
points fold into a correction, for which an output of ones sums the patches. Elsewhere
the integers become floats, whose convolution every platform has; on a CPU by a compiled
kernel, if it is there, as XLA takes many small steps for it. Of quantized activations
the sums are then rounded as those of a float32 convolution are.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import Int
from jcompress.formats.packing import unpack_bits
from jcompress.kernels import _native
from jcompress.kernels._integers import LONGEST, quantize_rows
from jcompress.kernels._partition import vary, varying
from jcompress.kernels.quantized_conv.reference import flat
from jcompress.kernels.quantized_conv.window import Window
from jcompress.tensors.ranges import range_of, scale_and_zero
from jcompress.tensors.rounding import fake_quantize, quantize_values
from jcompress.tensors.weight_matrix import dequantize_matrix


def xla(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    window: Window,
    portable: bool = True,
) -> jax.Array:
    """[S, B, X] -> [S, B, Y], by the form that suits the platform.

    The compiled kernel makes the weight dense on a CPU only if not `portable`.
    """
    args = (x, x_scale, x_zero, values, scales, zeros)
    weight = None
    if x.dtype == jnp.float32:
        shape = (values.shape[0], window.inputs, values.shape[1])
        stored = _native.Stored(values, scales, zeros, bits, shape)
        (weight,) = dense_kernels([stored], portable=portable)
    one = functools.partial(_one, bits=bits, x_bits=x_bits, window=window)
    if x.shape[0] > 1:
        return jax.vmap(one)(args, weight)
    first = jax.tree.map(lambda array: array[0], (args, weight))
    return one(*first)[None]


def dense_kernels(
    weights: Sequence[_native.Stored], *, portable: bool
) -> list[jax.Array]:
    """The numbers that weights stand for, each of its shape, in float32.

    On a CPU all in one step of the compiled kernels, for which XLA takes many, unless
    the program shall be `portable`.
    """
    arrays = [(one.values, one.scales, one.zeros) for one in weights]

    def stored(arrays: Any) -> list[_native.Stored]:
        return [
            one._replace(values=values, scales=scales, zeros=zeros)
            for one, (values, scales, zeros) in zip(weights, arrays, strict=True)
        ]

    def unpacked(arrays: Any) -> list[jax.Array]:
        made = []
        for one in stored(arrays):
            integers = unpack_bits(one.values, one.inputs, one.bits)
            scales, zeros = one.scales, one.zeros
            matrix = dequantize_matrix(integers, scales, zeros, jnp.float32)
            made.append(jax.lax.reshape(matrix, one.shape, (0, 2, 1)))
        return made

    def compiled(arrays: Any) -> list[jax.Array]:
        # A call to foreign code may not say over which axes its result varies.
        names = varying(jax.tree.leaves(arrays))
        return [vary(one, names) for one in _native.dense(stored(arrays))]

    if portable or _native.missing():
        return unpacked(arrays)
    made: list[jax.Array] = jax.lax.platform_dependent(
        arrays, cpu=compiled, default=unpacked
    )
    return made


def _one(
    args: tuple[Any, ...],
    weight: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    window: Window,
) -> jax.Array:
    given: dict[str, Any] = {"bits": bits, "x_bits": x_bits, "window": window}
    floats: Any = functools.partial(by_floats, **given)
    if x_bits is None or window.inputs > LONGEST:
        found: jax.Array = floats(*args, weight)
        return found
    chosen: jax.Array = jax.lax.platform_dependent(
        *args,
        weight,
        tpu=lambda *all_args: by_integers(*all_args[:-1], **given),
        default=floats,
    )
    return chosen


def by_floats(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    weight: jax.Array | None,
    *,
    bits: int,
    x_bits: int | None,
    window: Window,
) -> jax.Array:
    """Convolve floats, or in 16 bits the integers, which are scaled at the end.

    All in the shape of images: a loop over them in another shape would divide. For
    float32 images the dense weight [K, N] is at hand.
    """
    images = window.images(x)
    last = (1,) * (images.ndim - 1) + (scales.shape[0],)
    scale = zero = None
    if x_bits is not None:
        if x_scale is None:
            span = range_of(images, tuple(range(1, images.ndim)))
            x_scale, _ = scale_and_zero(span, Int(x_bits))
        scale, zero = (
            None if part is None else part.reshape(-1, *(1,) * (images.ndim - 1))
            for part in (x_scale, x_zero)
        )
    if x.dtype.itemsize >= 4:
        if scale is not None and x_bits is not None:
            format = Int(x_bits, symmetric=zero is None)
            images = fake_quantize(images, scale, zero, format)
        if weight is None:
            integers = unpack_bits(values, window.inputs, bits)
            weight = dequantize_matrix(integers, scales, zeros, x.dtype).T
        out = convolve(images, weight, window, x.dtype)
        return out.reshape(x.shape[0], window.positions * values.shape[0])
    if scale is not None and x_bits is not None:
        q = quantize_values(images, scale, zero, Int(x_bits, symmetric=zero is None))
        images = (q if zero is None else q - zero).astype(x.dtype)
    matrix = unpack_bits(values, window.inputs, bits).astype(x.dtype)
    if zeros is not None:
        matrix = matrix - zeros.astype(x.dtype)
    out = convolve(images, matrix.T, window, jnp.float32) * scales.reshape(last)
    if scale is not None:
        out = out * scale
    flat = out.reshape(x.shape[0], window.positions * values.shape[0])
    return flat.astype(x.dtype)


def by_integers(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    x_bits: int,
    window: Window,
) -> jax.Array:
    """Convolve int8 with int8; at most 32768 inputs, so that the sums are exact."""
    q, scale, x_zero = quantize_rows(x, x_scale, x_zero, x_bits)
    assert scale is not None
    integers = unpack_bits(values, window.inputs, bits)
    outputs = values.shape[0]
    weight = integers
    if zeros is not None:
        ones = jnp.ones((window.groups, window.inputs), jnp.int8)
        seen = outputs // window.groups
        by_group = integers.reshape(window.groups, seen, window.inputs)
        both_parts = jnp.concatenate([by_group, ones[:, None]], axis=1)
        weight = both_parts.reshape(outputs + window.groups, window.inputs)
    zero = None if x_zero is None else x_zero.astype(jnp.int32)[..., None]
    both = convolve(window.images(q), weight.T, window, jnp.int32, x_zero)
    part = weight.shape[0] // window.groups
    both = both.reshape(x.shape[0], window.positions, window.groups, part)
    seen = outputs // window.groups
    sums = both[..., :seen].reshape(x.shape[0], window.positions, outputs)
    if zero is not None:
        sums = sums - zero * jnp.sum(integers, axis=1, dtype=jnp.int32)[None, None]
    if zeros is not None:
        shifted = jnp.repeat(both[..., seen:], seen, axis=3).reshape(sums.shape)
        if zero is not None:
            shifted = shifted - np.int32(window.inputs) * zero
        sums = sums - shifted * zeros.T[None].astype(jnp.int32)
    product = sums.astype(jnp.float32) * scale[..., None] * scales.T[None]
    return flat(product).astype(x.dtype)


def convolve(
    images: jax.Array,
    matrix: jax.Array,
    window: Window,
    dtype: Any,
    edge: jax.Array | None = None,
) -> jax.Array:
    """Convolve images with a weight as a matrix, in XLA.

    Args:
        images: [B, *sizes, channels].
        matrix: [K, N], of the dtype of the images.
        window: where the patches lie.
        dtype: of the sums.
        edge: integers in float32 [B, 1] that the padding holds; None for 0.

    Returns:
        [B, *out, N].
    """
    padding = window.padding
    if edge is not None:
        edges = [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)]
        inside = jax.lax.pad(jnp.ones(images.shape, jnp.bool), np.False_, edges)
        padded = jax.lax.pad(images, np.zeros((), images.dtype), edges)
        held = edge.astype(images.dtype).reshape(-1, *(1,) * (images.ndim - 1))
        images = jnp.where(inside, padded, held)
        padding = ((0, 0),) * len(padding)
    spatial = "DHW"[-len(window.sizes) :]
    return jax.lax.conv_general_dilated(
        images,
        matrix.reshape(
            *window.kernel, window.channels // window.groups, matrix.shape[1]
        ),
        window.strides,
        padding,
        rhs_dilation=window.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=window.groups,
        preferred_element_type=dtype,
    )
