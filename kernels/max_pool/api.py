"""`max_pool`: maxima of windows that move over images of floats or small integers."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Form, Implementation
from jcompress.kernels._operation import Arrays, KernelOperation
from jcompress.kernels._rows import said
from jcompress.kernels.max_pool import cpu
from jcompress.kernels.max_pool.reference import reference
from jcompress.kernels.quantized_conv.window import Window

_NAME = "max_pool"


def max_pool(
    x: jax.Array,
    *,
    window: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    padding: tuple[tuple[int, int], ...] | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """The largest number of each window of images, channel by channel.

    Rounding by one scale keeps the order of numbers: the maxima of integers are the
    integers of the maxima, so that a quantized network pools what it stores.

    Args:
        x: floats or int8 [B, *spatial, C]; one to any number of spatial axes.
        window: sizes of a window, one for each spatial axis.
        strides: from one window to the next; None for 1 along each axis.
        padding: positions before and after each spatial axis, which are no candidates:
            at least 0, and fewer than the window has. None for none.
        implementation: None for the fastest.

    Returns:
        [B, *positions, C], of the dtype of `x`. What is no number is larger than any.

    Raises:
        ValueError: shapes do not fit together, or a window lies in padding alone.
        TypeError: `implementation` is of another kind.
        NotImplementedError: there is no such implementation for this dtype.
    """
    rank = x.ndim - 2
    if rank < 1 or not (jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == jnp.int8):
        raise ValueError(
            f"{_NAME}: x is floats or int8 [B, *spatial, C], not {said(x)}"
        )
    places = Window(
        sizes=x.shape[1:-1],
        channels=x.shape[-1],
        kernel=tuple(window),
        strides=(1,) * rank if strides is None else tuple(strides),
        padding=((0, 0),) * rank
        if padding is None
        else tuple((low, high) for low, high in padding),
        dilation=(1,) * rank,
    )
    _check(places, rank)
    images = x.shape[0]
    y = _OPERATION(
        x.reshape(images, math.prod(x.shape[1:])),
        implementation=implementation,
        window=places,
    )
    return y.reshape(images, *places.out, places.channels)


def _check(window: Window, rank: int) -> None:
    for name in ("kernel", "strides", "padding"):
        given = getattr(window, name)
        said_as = "window" if name == "kernel" else name
        if len(given) != rank:
            raise ValueError(f"{_NAME}: {said_as} has {rank} entries, not {given}")
        if name != "padding" and min(given) < 1:
            raise ValueError(f"{_NAME}: {said_as} is positive, not {given}")
    pairs = zip(window.padding, window.kernel, strict=True)
    if any(not 0 <= side < size for both, size in pairs for side in both):
        raise ValueError(
            f"{_NAME}: padding is at least 0 and smaller than the window "
            f"{window.kernel}, not {window.padding}"
        )
    if min(window.out) < 1 or min(window.sizes) < 1:
        raise ValueError(
            f"{_NAME}: no window of {window.kernel} fits into images of "
            f"{window.sizes} with padding {window.padding}"
        )


def _roles(*args: Any, **static: Any) -> tuple[str, ...]:
    return ("m.",)


def _backward(saved: Arrays, cotangent: jax.Array, *, window: Window) -> Arrays:
    (x,) = saved
    if x.dtype == jnp.int8:
        return (None,)
    pull = jax.vjp(lambda x: reference(x, window=window), x)[1]
    return tuple(pull(cotangent))


_OPERATION = KernelOperation(
    name=_NAME,
    forms={
        Implementation.REFERENCE: Form(reference),
        Implementation.XLA: Form(reference),
        Implementation.CPU: Form(cpu.cpu, cpu.refuses, stacked=True),
    },
    roles=_roles,
    backward=_backward,
)
