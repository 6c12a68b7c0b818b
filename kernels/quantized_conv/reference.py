"""The definition of `quantized_conv`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.packing import unpack_bits
from jcompress.kernels._integers import LONGEST, quantize_rows
from jcompress.kernels.quantized_conv.window import Window
from jcompress.tensors.weight_matrix import dequantize_matrix


def reference(
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
) -> jax.Array:
    """Every patch times the weight: [B, X] -> [B, Y]; integers exactly in int32."""
    integers = unpack_bits(values, window.inputs, bits)
    if x_bits is None:
        weight = dequantize_matrix(integers, scales, zeros, jnp.float32)
        product = _multiplied(patches(x.astype(jnp.float32), window), weight, window)
        return flat(product).astype(x.dtype)
    q, scale, zero = quantize_rows(x, x_scale, x_zero, x_bits)
    left = q.astype(jnp.int32)
    if zero is not None:
        left = left - zero.astype(jnp.int32)
    rows = patches(left, window)
    right = integers.astype(jnp.int32)
    if zeros is not None:
        right = right - zeros.astype(jnp.int32)
    total = jnp.zeros((*rows.shape[:2], values.shape[0]), jnp.float32)
    for start in range(0, window.inputs, LONGEST):
        part = slice(start, start + LONGEST)
        sums = _multiplied(rows[..., part], right[:, part], window)
        total = total + sums.astype(jnp.float32)
    product = total * scale[..., None] * scales.T[None]
    return flat(product).astype(x.dtype)


def _multiplied(rows: jax.Array, weight: jax.Array, window: Window) -> jax.Array:
    """[B, positions, groups, K] x [N, K] -> [B, positions, N]."""
    outputs = weight.shape[0] // window.groups
    by_group = weight.reshape(window.groups, outputs, weight.shape[1])
    product = jnp.einsum("bpgk,gnk->bpgn", rows, by_group)
    return product.reshape(*rows.shape[:2], weight.shape[0])


def flat(images: jax.Array) -> jax.Array:
    """[B, positions, N] -> [B, Y]."""
    return images.reshape(images.shape[0], images.shape[1] * images.shape[2])


def patches(x: jax.Array, window: Window) -> jax.Array:
    """The patches of images, [B, X] -> [B, positions, groups, K]; padding is 0."""
    edges = [(0, 0), *window.padding, (0, 0)]
    zero = np.zeros((), x.dtype)
    padded = jax.lax.pad(window.images(x), zero, [(*edge, 0) for edge in edges])
    out = window.out

    def taken(place: tuple[int, ...]) -> jax.Array:
        starts = [i * d for i, d in zip(place, window.dilation, strict=True)]
        limits = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(starts, out, window.strides, strict=True)
        ]
        return jax.lax.slice(
            padded,
            (0, *starts, 0),
            (x.shape[0], *limits, window.channels),
            (1, *window.strides, 1),
        )

    places = itertools.product(*map(range, window.kernel))
    each = window.channels // window.groups
    split = (x.shape[0], window.positions, window.groups, each)
    return jnp.concatenate([taken(place).reshape(split) for place in places], axis=-1)
