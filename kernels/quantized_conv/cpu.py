"""`quantized_conv` by the compiled kernels for CPUs.

Each image is written once as small integers, padded; the rows of an integer product
are patches gathered from it, some hundred at a time, so that no matrix of all patches
is ever in memory. Float activations become fixed-point numbers of two or three int8
digits, with one scale an image.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jcompress.kernels import _native
from jcompress.kernels.quantized_conv.window import Window

STEP = 64
"""Inputs that are multiplied together, nearly everywhere."""

VNNI = 0.0067
PRODUCT = {
    "amx_int8": VNNI,
    "avx512_vbmi": VNNI,
    "avx512_vnni": VNNI,
    "avx_vnni": VNNI,
    "neon": VNNI,
    "avx2": 0.025,
}
"""Time of a product of integers, ns on two cores of 2.6 GHz, where a product of floats
takes 1/45; of AVX-VNNI and NEON only the ratio of the instructions is known."""


def cpu(
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
    """[S, B, X] with the stored [S, N, K] -> [S, B, Y]; the sums are exact."""
    low, high = zip(*window.padding, strict=True)
    shape = (*x.shape[:2], window.positions * scales.shape[1])
    call = jax.ffi.ffi_call("jcompress_conv", jax.ShapeDtypeStruct(shape, x.dtype))
    none = jnp.zeros((0,), jnp.float32)
    product: jax.Array = call(
        x,
        none if x_scale is None else x_scale[..., 0],
        none if x_zero is None else x_zero[..., 0],
        values,
        scales,
        jnp.zeros((0,), jnp.int8) if zeros is None else zeros,
        bits=np.int64(bits if bits <= 4 else 8),
        x_bits=np.int64(8 if x_bits is None else x_bits),
        digits=np.int64(_digits(x, x_bits)),
        data=_sizes(window.sizes),
        window=_sizes(window.kernel),
        strides=_sizes(window.strides),
        pad_low=_sizes(low),
        pad_high=_sizes(high),
        dilation=_sizes(window.dilation),
        channels=np.int64(window.channels),
        layout=np.int64(_native.LAYOUT),
    )
    return product


def _digits(x: Any, x_bits: int | None) -> int:
    if x_bits is not None:
        return 1
    return 2 if x.dtype.itemsize < 4 else 3


def _sizes(sizes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.asarray(sizes, np.int64)


def refuses(x: Any, *arrays: Any, bits: int, x_bits: int | None, window: Window) -> str:
    """Why these arguments cannot be convolved here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    return _native.missing()


def prefers(
    x: Any, *arrays: Any, bits: int, x_bits: int | None, window: Window
) -> bool:
    """Whether this is the better choice than what XLA compiles.

    That depends on the sizes: the sums of few inputs cost more than their products,
    and patches for few outputs more than both. Compared are times of one number of
    the result, fitted to those of 15 convolutions of 9 to 4608 inputs and 8 to 512
    outputs on one core with AVX-512 VNNI; in doubt the answer is no.
    """
    product = PRODUCT.get(_native.instructions() or "")
    if product is None:
        return False
    _, images, _ = x.shape
    scales = arrays[3]
    inputs, outputs = window.inputs, scales.shape[1]
    if export.is_symbolic_dim(images):
        # What is better for very many images is better for fewer.
        positions = math.inf
    else:
        positions = max(1, images * window.positions)
    whole = -(-inputs // STEP) * STEP
    digits = _digits(x, x_bits)
    mine = digits * (product * whole + 1.7 + (0.1 * whole + 50) / outputs)
    mine += 0.05 * inputs / positions
    floats = inputs / 45 + (0.15 * inputs + 50) / outputs + 0.3 * inputs / positions
    return bool(1.1 * mine < floats)
