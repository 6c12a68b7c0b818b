"""`quantized_conv`: float or integer activations, integer weights."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.formats import Int
from jcompress.formats.packing import unpack_bits
from jcompress.kernels._constants import constant_numbers
from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._epilogue import Nonlinearity
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels._rows import said
from jcompress.kernels.quantized_conv import cpu, ending
from jcompress.kernels.quantized_conv.checks import (
    NAME,
    check_input,
    check_weight,
    check_window,
)
from jcompress.kernels.quantized_conv.ending import (
    Ending,
    EndingArrays,
    dequantized,
    finish,
)
from jcompress.kernels.quantized_conv.reference import reference
from jcompress.kernels.quantized_conv.window import Window
from jcompress.kernels.quantized_conv.xla import convolve, xla
from jcompress.tensors.rounding import unclipped
from jcompress.tensors.weight_matrix import dequantize_matrix


def _finished(run: Any) -> Any:
    """A form of floats that knows of nothing that follows, made one that does."""

    def whole(*args: Any, ending: Ending | None, **static: Any) -> jax.Array:
        x = args[0]
        product: jax.Array = run(dequantized(*args[:3]), *args[1:6], **static)
        if ending is None:
            return product
        y = finish(product, ending, EndingArrays(*args[6:]))
        return y.astype(_result_dtype(x.dtype, ending))

    return whole


FORMS = {
    Implementation.REFERENCE: Form(_finished(reference)),
    Implementation.XLA: Form(
        _finished(xla),
        stacked=True,
        unnamed=_finished(functools.partial(xla, portable=False)),
    ),
    Implementation.CPU: Form(
        cpu.cpu, cpu.refuses, cpu.prefers, stacked=True, keeps=True
    ),
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
    groups: int = 1,
    x_bits: int | None = None,
    x_scale: jax.Array | None = None,
    x_zero: jax.Array | None = None,
    bias: jax.Array | None = None,
    addend: jax.Array | None = None,
    activation: Nonlinearity | None = None,
    residual: jax.Array | None = None,
    y_bits: int | None = None,
    y_scale: jax.Array | None = None,
    y_zero: jax.Array | None = None,
    addend_scale: jax.Array | None = None,
    addend_zero: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Convolve images with a kernel stored as small integers.

    `y[b, p, n] = sum_k patch[b, p, k] (values[n, k] - zeros[n]) scales[n]`, where
    `patch[b, p]` holds what the window at position p covers, channels fastest: a kernel
    [*kernel, C, N], its axes but the last one made one. With `x_bits` the activations
    are quantized on the way, `quantize_values(x, x_scale, x_zero)`, and the sums are
    exact in int32 (beyond 32768 inputs, float32 sums of such sums; a float form of
    XLA rounds them). What follows a convolution in a model can be done in the call:
    `activation(y + bias + addend) + residual`, and the result can be stored as the
    integers that the next convolution takes. Padding stands for 0. The arrays are those
    of a `QTensor` of one matrix and one group; use `jax.vmap` for stacks.
    Differentiable in reverse with respect to `x`, with the straight-through gradient of
    `fake_quantize`, and to `bias`, `addend` and `residual`, unless `x` or the result is
    int8.

    On a mesh each device convolves the images that it has, with the whole kernel.

    Args:
        x: floats [B, *spatial, C], of one to three spatial axes; or int8, which is what
            `quantize_values` made of floats with `x_scale` and `x_zero`.
        values: int8 [N, K], `K = prod(kernel) C / groups`; for `bits <= 4`, uint8
            [N, ceil(K bits / 8)], as `jcompress.formats.packing.pack_bits` packs them.
        scales: float32 [N or 1, 1].
        zeros: int8 of the shape of `scales`, or None.
        bits: bits of an integer of the kernel, 2 to 8.
        kernel: sizes of the kernel's spatial axes.
        strides: from one position of the window to the next; 1 if None.
        padding: zeros before and after each spatial axis, negative to cut; 0 if None.
        dilation: from one position in the window to the next; 1 if None.
        groups: each group of outputs sees its group of channels only.
        x_bits: bits of an integer of the activations, 2 to 8; None for floats.
        x_scale: float32, a scalar or [B]; None, with `x_bits`, takes the symmetric
            range of each image.
        x_zero: integers in float32 of the shape of `x_scale`, or None.
        bias: float32 [N], or None.
        addend: of the shape and dtype of a float result, added before the activation,
            or int8 that stand for `(addend - addend_zero) * addend_scale`; or None.
        activation: of each number; None for none.
        residual: like `addend`, added after it.
        y_bits: bits of an integer of the result, 2 to 8; None for floats.
        y_scale: float32, a scalar; with `y_bits`.
        y_zero: integer in float32, a scalar, or None for a symmetric range.
        addend_scale: float32, a scalar; with an addend of int8.
        addend_zero: integer in float32, a scalar, or None for 0.
        implementation: None for the fastest.

    Returns:
        [B, *positions, N] in the dtype of `x`, float32 if that is int8; int8 with
        `y_bits`.

    Raises:
        ValueError: shapes or dtypes do not fit.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation, or it cannot compute
            these shapes and dtypes.
    """
    rank = x.ndim - 2
    whole = x.dtype == jnp.int8 and x_scale is not None
    if not 1 <= rank <= 3 or not (whole or jnp.issubdtype(x.dtype, jnp.floating)):
        raise ValueError(
            f"{NAME}: x is floats [B, *spatial, C] (or int8, with x_scale) with one "
            f"to three spatial axes, not {said(x)}"
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
        groups=groups,
    )
    check_window(window, rank, values.shape[0])
    check_weight(values, scales, zeros, bits, window)
    check_input(x, x_scale, x_zero, x_bits)
    images, outputs = x.shape[0], values.shape[0]
    wide = jnp.broadcast_to(scales, (outputs, 1))
    after, arrays = ending.checked(
        NAME,
        activation,
        (images, *window.out, outputs),
        _result_dtype(x.dtype, None),
        y_bits,
        EndingArrays(
            bias, addend, residual, y_scale, y_zero, addend_scale, addend_zero
        ),
    )
    product = _OPERATION(
        x.reshape(images, math.prod(x.shape[1:])),
        None if x_scale is None else x_scale.reshape(-1, 1),
        None if x_zero is None else x_zero.reshape(-1, 1),
        values,
        wide,
        None if zeros is None else jnp.broadcast_to(zeros, wide.shape),
        *arrays,
        implementation=implementation,
        bits=bits,
        x_bits=x_bits,
        window=window,
        ending=after,
        # Only integers are multiplied by weights that are packed first.
        constant=None if x_bits is None else constant_numbers(values),
    )
    return product.reshape(images, *window.out, outputs)


def _result_dtype(dtype: Any, ending: Ending | None) -> Any:
    if ending is not None and ending.bits is not None:
        return jnp.int8
    return jnp.float32 if dtype == jnp.int8 else dtype


def _roles(*args: Any, **static: Any) -> tuple[str, ...]:
    # A cut through the outputs of a kernel would cut every image of the result.
    x, scale, *_ = args
    own = scale is not None and scale.shape[-2] == x.shape[-2]
    of_input = "m." if own else ".."
    roles = ("m.", of_input, of_input, "..", "..", "..", *ending.ROLES)
    return tuple(role for role, a in zip(roles, args, strict=True) if a is not None)


def _save(
    x: jax.Array,
    x_scale: jax.Array | None,
    x_zero: jax.Array | None,
    *weight: Any,
    ending: Ending | None,
    **static: Any,
) -> Arrays:
    if ending is not None:
        return (x, x_scale, x_zero, *weight)
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
    ending: Ending | None,
) -> Arrays:
    x, scale, zero, values, scales, zeros, *rest = saved
    ends: Arrays = (None,) * len(rest)
    if ending is not None:
        if ending.bits is not None or x.dtype == jnp.int8:
            return (None,) * len(saved)
        cotangent, ends = _before_end(saved, cotangent, bits, x_bits, window, ending)
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
    return (gradient, *(None,) * 5, *ends)


def _before_end(
    saved: Arrays,
    cotangent: jax.Array,
    bits: int,
    x_bits: int | None,
    window: Window,
    ending: Ending,
) -> tuple[jax.Array, Arrays]:
    """Cotangents of the convolution before what follows, and of the latter's arrays."""
    given: dict[str, Any] = {"bits": bits, "x_bits": x_bits, "window": window}
    stacked: Any = [None if array is None else array[None] for array in saved[:6]]
    product = xla(*stacked, **given)[0]
    arrays = EndingArrays(*saved[6:])

    integers = arrays.addend if arrays.addend_scale is not None else None

    def last(product: jax.Array, bias: Any, addend: Any, residual: Any) -> jax.Array:
        addend = addend if integers is None else integers
        these = arrays._replace(bias=bias, addend=addend, residual=residual)
        return finish(product, ending, these).astype(cotangent.dtype)

    addend = arrays.addend if integers is None else None
    _, pull = jax.vjp(last, product, arrays.bias, addend, arrays.residual)
    first, bias, addend, residual = pull(cotangent)
    return first, (bias, addend, residual, *(None,) * 4)


_OPERATION = KernelOperation(
    name=NAME, forms=FORMS, roles=_roles, backward=_backward, save=_save
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
    weight = (
        None if a is None else jax.ShapeDtypeStruct((1, *a.shape), a.dtype)
        for a in (tensor.values, tensor.scales, tensor.zeros)
    )
    images = jax.ShapeDtypeStruct(shape, x.dtype)
    given = {
        "bits": tensor.format.bits,
        "x_bits": x_bits,
        "window": window,
        "ending": None,
    }
    return FORMS[Implementation.CPU].chosen(
        (images, None, None, *weight, *EndingArrays()), given
    )
