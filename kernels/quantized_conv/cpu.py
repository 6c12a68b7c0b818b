"""`quantized_conv` by the compiled kernels for CPUs.

Quantized images with a symmetric kernel are convolved without a copy of their patches,
where there are kernels for it (x86 with AVX2 or more), and what follows is done before
the result leaves the registers. Otherwise each image is written once as small integers,
padded; the rows of an integer product are patches gathered from it, some hundred at a
time, so that no matrix of all patches is ever in memory. Float activations become
fixed-point numbers of two or three int8 digits, with one scale an image.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jcompress.formats.packing import unpack_bits
from jcompress.kernels import _native
from jcompress.kernels._integers import LONGEST
from jcompress.kernels.quantized_conv.ending import (
    Ending,
    EndingArrays,
    dequantized,
    finish,
)
from jcompress.kernels.quantized_conv.window import Window

STEP = 64
"""Inputs that are multiplied together, nearly everywhere."""

DIRECT = ("amx_int8", "avx512_vbmi", "avx512_vnni", "avx_vnni", "avx2")
"""Sets of instructions with kernels that need no patches."""

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
    *ends: jax.Array | None,
    bits: int,
    x_bits: int | None,
    window: Window,
    ending: Ending | None,
    fixed: bool,
) -> jax.Array:
    """[S, B, X] with the stored [S, N, K] -> [S, B, Y]; the sums are exact."""
    arrays = EndingArrays(*ends)
    if _direct(x, zeros, x_bits, window):
        assert x_bits is not None
        integers = unpack_bits(values, window.inputs, bits)
        weight = (integers, scales)
        return _convolved(
            x, x_scale, x_zero, weight, arrays, x_bits, window, ending, fixed
        )
    wide = dequantized(x, x_scale, x_zero)
    weights = (values, scales, zeros)
    product = _by_patches(wide, x_scale, x_zero, weights, bits, x_bits, window)
    if ending is None:
        return product
    y = finish(product, ending, arrays)
    return y if ending.bits is not None else y.astype(product.dtype)


def _direct(x: Any, zeros: Any, x_bits: int | None, window: Window) -> bool:
    """Whether the kernels that need no patches take these images and weights."""
    return (
        x_bits is not None
        and zeros is None
        and x.dtype in (jnp.float32, jnp.int8)
        and window.inputs <= LONGEST
        and _native.instructions() in DIRECT
    )


def _convolved(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    weight: tuple[jax.Array, jax.Array],
    arrays: EndingArrays,
    x_bits: int,
    window: Window,
    ending: Ending | None,
    fixed: bool,
) -> jax.Array:
    integers, scales = weight
    ending = ending or Ending()
    dtype = jnp.float32 if ending.bits is None else jnp.int8
    shape = (*x.shape[:2], window.positions * scales.shape[1])
    call = jax.ffi.ffi_call("jcompress_conv_direct", jax.ShapeDtypeStruct(shape, dtype))
    none = jnp.zeros((0,), jnp.float32)
    addend, residual = (
        none if a is None else a for a in (arrays.addend, arrays.residual)
    )
    # Each array of a call costs some time, constants too.
    by_output = scales if arrays.bias is None else jnp.stack((scales, arrays.bias), 1)
    product: jax.Array = call(
        x,
        none if x_scale is None else x_scale[..., 0],
        none if x_zero is None else x_zero[..., 0],
        integers,
        by_output.reshape(scales.shape[0], -1, scales.shape[1]),
        _numbers(arrays),
        addend,
        residual,
        x_bits=np.int64(x_bits),
        y_bits=np.int64(8 if ending.bits is None else ending.bits),
        y_symmetric=arrays.y_zero is None,
        activation=_native.number_of(ending.activation),
        **_geometry(window),
        groups=np.int64(window.groups),
        fixed=fixed,
    )
    return product


def _numbers(arrays: EndingArrays) -> jax.Array:
    """Float32 [S, 4]: scale and zero of the result, then of the addend."""
    given = (
        *(arrays.y_scale, arrays.y_zero),
        *(arrays.addend_scale, arrays.addend_zero),
    )
    present = [a for a in given if a is not None]
    if not present:
        return jnp.zeros((0,), jnp.float32)
    zero = jnp.zeros_like(present[0])
    return jnp.concatenate([zero if a is None else a for a in given], -1)[..., 0, :]


def _geometry(window: Window) -> dict[str, Any]:
    low, high = zip(*window.padding, strict=True)
    return {
        "data": _sizes(window.sizes),
        "window": _sizes(window.kernel),
        "strides": _sizes(window.strides),
        "pad_low": _sizes(low),
        "pad_high": _sizes(high),
        "dilation": _sizes(window.dilation),
        "channels": np.int64(window.channels),
        "layout": np.int64(_native.LAYOUT),
    }


def _by_patches(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    weight: tuple[jax.Array, jax.Array, jax.Array | None],
    bits: int,
    x_bits: int | None,
    window: Window,
) -> jax.Array:
    values, scales, zeros = weight
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
        **_geometry(window),
    )
    return product


def _digits(x: Any, x_bits: int | None) -> int:
    if x_bits is not None:
        return 1
    return 2 if x.dtype.itemsize < 4 else 3


def _sizes(sizes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.asarray(sizes, np.int64)


def refuses(
    x: Any,
    *arrays: Any,
    bits: int,
    x_bits: int | None,
    window: Window,
    ending: Ending | None,
) -> str:
    """Why these arguments cannot be convolved here; empty if they can."""
    if x.dtype.itemsize > 4:
        return f"takes no {x.dtype} activations"
    missing = _native.missing()
    if missing or window.groups == 1 or _direct(x, arrays[4], x_bits, window):
        return missing
    return "takes groups only of quantized float32 images and a symmetric kernel"


def prefers(
    x: Any,
    *arrays: Any,
    bits: int,
    x_bits: int | None,
    window: Window,
    ending: Ending | None,
) -> bool:
    """Whether this is the better choice than what XLA compiles.

    That depends on the sizes: the sums of few inputs cost more than their products,
    and patches for few outputs more than both. Compared are times of one number of
    the result, fitted to those of 15 convolutions of 9 to 4608 inputs and 8 to 512
    outputs on one core with AVX-512 VNNI; in doubt the answer is no.
    """
    if _direct(x, arrays[4], x_bits, window):
        return True
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
