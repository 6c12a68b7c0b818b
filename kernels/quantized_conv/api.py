"""`quantized_conv`: float or integer activations, integer weights."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.formats import Int
from jcompress.formats.packing import packed_size, stored_dtype, unpack_bits
from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels.quantized_conv import cpu
from jcompress.kernels.quantized_conv.reference import reference
from jcompress.kernels.quantized_conv.window import Window
from jcompress.kernels.quantized_conv.xla import convolve, xla
from jcompress.tensors.rounding import unclipped
from jcompress.tensors.weight_matrix import dequantize_matrix

_NAME = "quantized_conv"
FORMS = {
    Implementation.REFERENCE: Form(reference),
    Implementation.XLA: Form(
        xla, stacked=True, unnamed=functools.partial(xla, portable=False)
    ),
    Implementation.CPU: Form(cpu.cpu, cpu.refuses, cpu.prefers, stacked=True),
}


def quantized_conv(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    bits: int,
    kernel: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    padding: tuple[tuple[int, int], ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    x_bits: int | None = None,
    x_scale: jax.Array | None = None,
    x_zero: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Convolve images with a kernel stored as small integers.

    `y[b, p, n] = sum_k patch[b, p, k] (values[n, k] - zeros[n]) scales[n]`, where
    `patch[b, p]` holds what the window at position p covers, channels fastest: a kernel
    [*kernel, C, N], its axes but the last one made one. With `x_bits` the activations
    are quantized on the way, `quantize_values(x, x_scale, x_zero)`, and the sums are
    exact in int32 (beyond 32768 inputs, float32 sums of such sums; a float form of
    XLA rounds them). Padding stands for 0. The arrays are those of a `QTensor` of one
    matrix and one group; use `jax.vmap` for stacks. Differentiable in reverse with
    respect to `x` only, with the straight-through gradient of `fake_quantize`.

    On a mesh each device convolves the images that it has, with the whole kernel.

    Args:
        x: floats [B, *spatial, C], of one to three spatial axes.
        values: int8 [N, K], `K = prod(kernel) C`; for `bits <= 4`, uint8
            [N, ceil(K bits / 8)], as `jcompress.formats.packing.pack_bits` packs them.
        scales: float32 [N or 1, 1].
        zeros: int8 of the shape of `scales`, or None.
        bits: bits of an integer of the kernel, 2 to 8.
        kernel: sizes of the kernel's spatial axes.
        strides: from one position of the window to the next; 1 if None.
        padding: zeros before and after each spatial axis, negative to cut; 0 if None.
        dilation: from one position in the window to the next; 1 if None.
        x_bits: bits of an integer of the activations, 2 to 8; None for floats.
        x_scale: float32, a scalar or [B]; None, with `x_bits`, takes the symmetric
            range of each image.
        x_zero: integers in float32 of the shape of `x_scale`, or None.
        implementation: None for the fastest.

    Returns:
        [B, *positions, N] in the dtype of `x`.

    Raises:
        ValueError: shapes or dtypes do not fit.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{_NAME}: x is floats [B, *spatial, C] with one to three spatial axes, "
            f"not {_said(x)}"
        )
    window = Window(
        sizes=x.shape[1:-1],
        channels=x.shape[-1],
        kernel=tuple(kernel),
        strides=(1,) * rank if strides is None else tuple(strides),
        padding=((0, 0),) * rank
        if padding is None
        else tuple((low, high) for low, high in padding),
        dilation=(1,) * rank if dilation is None else tuple(dilation),
    )
    _check_window(window, rank)
    _check_weight(values, scales, zeros, bits, window)
    _check_input(x, x_scale, x_zero, x_bits)
    images, outputs = x.shape[0], values.shape[0]
    wide = jnp.broadcast_to(scales, (outputs, 1))
    product = _OPERATION(
        x.reshape(images, math.prod(x.shape[1:])),
        _by_image(x_scale, images),
        _by_image(x_zero, images),
        values,
        wide,
        None if zeros is None else jnp.broadcast_to(zeros, wide.shape),
        implementation=implementation,
        bits=bits,
        x_bits=x_bits,
        window=window,
    )
    return product.reshape(images, *window.out, outputs)


def _by_image(number: jax.Array | None, images: int) -> jax.Array | None:
    if number is None:
        return None
    return jnp.broadcast_to(jnp.reshape(number, (-1, 1)), (images, 1))


def _roles(*args: Any, **static: Any) -> tuple[str, ...]:
    # A cut through the outputs of a kernel would cut every image of the result.
    roles = ("m.", "m.", "m.", "..", "..", "..")
    return tuple(role for role, a in zip(roles, args, strict=True) if a is not None)


def _save(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    *weight: Any,
    **static: Any,
) -> Arrays:
    # Nothing is clipped by an image's own range, so it need not be kept.
    clips = (x, x_scale, x_zero) if x_scale is not None else (x[:0], None, None)
    return (*clips, *weight)


def _backward(
    saved: Arrays,
    cotangent: jax.Array,
    *,
    bits: int,
    x_bits: int | None,
    window: Window,
) -> Arrays:
    x, scale, zero, values, scales, zeros = saved
    integers = unpack_bits(values, window.inputs, bits)
    dense = dequantize_matrix(integers, scales, zeros, jnp.float32)
    images = cotangent.shape[0]
    shape = (images, *window.sizes, window.channels)
    transposed = jax.linear_transpose(
        lambda x: convolve(x, dense.T, window, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    wide = cotangent.astype(jnp.float32)
    (gradient,) = transposed(wide.reshape(images, *window.out, scales.shape[0]))
    gradient = gradient.reshape(images, x.shape[1]).astype(x.dtype)
    if scale is not None:
        assert x_bits is not None
        kept = unclipped(x, scale, zero, Int(x_bits, symmetric=zero is None))
        gradient = jnp.where(kept, gradient, jnp.zeros_like(gradient))
    return (gradient, *(None,) * 5)


_OPERATION = KernelOperation(
    name=_NAME, forms=FORMS, roles=_roles, backward=_backward, save=_save
)


def runs_in_integers_on_cpu(
    x: Any, tensor: Any, *, x_bits: int | None, window: Window
) -> bool:
    """Whether a CPU convolves these shapes in integers when nothing is named.

    Args:
        x: the images, [B, *spatial, C]; of them shape and dtype.
        tensor: a `QTensor` of one matrix.
        x_bits: bits of an integer of the activations; None for floats.
        window: where the patches lie.
    """
    shape = (1, x.shape[0], math.prod(x.shape[1:]))
    stacked = (jax.ShapeDtypeStruct(shape, x.dtype), None, None) + tuple(
        None if a is None else jax.ShapeDtypeStruct((1, *a.shape), a.dtype)
        for a in (tensor.values, tensor.scales, tensor.zeros)
    )
    given = {"bits": tensor.format.bits, "x_bits": x_bits, "window": window}
    return FORMS[Implementation.CPU].chosen(stacked, given)


def _check_window(window: Window, rank: int) -> None:
    for name in ("kernel", "strides", "padding", "dilation"):
        given = getattr(window, name)
        if len(given) != rank:
            raise ValueError(f"{_NAME}: {name} has {rank} entries, not {given}")
        if name != "padding" and min(given) < 1:
            raise ValueError(f"{_NAME}: {name} is positive, not {given}")
    if min(window.out) < 1 or min(window.sizes) < 1 or window.channels < 1:
        raise ValueError(
            f"{_NAME}: no patch of {window.kernel} fits into images of {window.sizes} "
            f"with padding {window.padding}"
        )


def _check_weight(
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bits: int,
    window: Window,
) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"{_NAME}: bits is from 2 to 8, not {bits!r}")
    stored, dtype = packed_size(window.inputs, bits), stored_dtype(bits)
    fits = values.ndim == 2 and values.shape[1] == stored and values.dtype == dtype
    if not fits:
        raise ValueError(
            f"{_NAME}: for {window.inputs} inputs of {bits} bits, values is "
            f"{jnp.dtype(dtype)} [N, {stored}], not {_said(values)}"
        )
    outputs = values.shape[0]
    if scales.shape not in ((1, 1), (outputs, 1)) or scales.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: scales is float32 [{outputs} or 1, 1], not {_said(scales)}; "
            "there is no convolution with several groups"
        )
    if zeros is not None and (zeros.shape != scales.shape or zeros.dtype != jnp.int8):
        raise ValueError(
            f"{_NAME}: zeros is int8 of the shape of scales {list(scales.shape)}, not "
            f"{_said(zeros)}"
        )


def _check_input(
    x: jax.Array,
    scale: jax.Array | None,
    zero: jax.Array | None,
    bits: int | None,
) -> None:
    if bits is not None and not 2 <= bits <= 8:
        raise ValueError(f"{_NAME}: x_bits is None or from 2 to 8, not {bits!r}")
    if scale is None:
        if zero is not None:
            raise ValueError(f"{_NAME}: x_zero is given without x_scale")
        return
    if bits is None:
        raise ValueError(f"{_NAME}: x_scale is given without x_bits")
    if scale.shape not in ((), (x.shape[0],)) or scale.dtype != jnp.float32:
        raise ValueError(
            f"{_NAME}: x_scale is a float32 scalar or [{x.shape[0]}], not "
            f"{_said(scale)}"
        )
    if zero is not None and (zero.shape != scale.shape or zero.dtype != jnp.float32):
        raise ValueError(
            f"{_NAME}: x_zero is float32 of the shape of x_scale "
            f"{list(scale.shape)}, not {_said(zero)}"
        )


def _said(array: jax.Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
