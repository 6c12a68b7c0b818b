"""Whether the arguments of `quantized_conv` fit together."""

import jax
import jax.numpy as jnp

from jcompress.formats.packing import packed_size, stored_dtype
from jcompress.kernels._rows import said
from jcompress.kernels.quantized_conv.window import Window

NAME = "quantized_conv"


def check_window(window: Window, rank: int, outputs: int) -> None:
    """Raise ValueError unless the window fits images and groups of outputs."""
    for name in ("kernel", "strides", "padding", "dilation"):
        given = getattr(window, name)
        if len(given) != rank:
            raise ValueError(f"{NAME}: {name} has {rank} entries, not {given}")
        if name != "padding" and min(given) < 1:
            raise ValueError(f"{NAME}: {name} is positive, not {given}")
    groups = window.groups
    if groups < 1 or window.channels % groups or outputs % groups:
        raise ValueError(
            f"{NAME}: groups divides {window.channels} channels and {outputs} "
            f"outputs, not {groups}"
        )
    if min(window.out) < 1 or min(window.sizes) < 1 or window.channels < 1:
        raise ValueError(
            f"{NAME}: no patch of {window.kernel} fits into images of {window.sizes} "
            f"with padding {window.padding}"
        )


def check_weight(
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    bits: int,
    window: Window,
) -> None:
    """Raise ValueError unless the arrays are those of a kernel of the window."""
    if not 2 <= bits <= 8:
        raise ValueError(f"{NAME}: bits is from 2 to 8, not {bits!r}")
    stored, dtype = packed_size(window.inputs, bits), stored_dtype(bits)
    fits = values.ndim == 2 and values.shape[1] == stored and values.dtype == dtype
    if not fits:
        raise ValueError(
            f"{NAME}: for {window.inputs} inputs of {bits} bits, values is "
            f"{jnp.dtype(dtype)} [N, {stored}], not {said(values)}"
        )
    outputs = values.shape[0]
    if scales.shape not in ((1, 1), (outputs, 1)) or scales.dtype != jnp.float32:
        raise ValueError(
            f"{NAME}: scales is float32 [{outputs} or 1, 1], not {said(scales)}; "
            "there is no convolution with several groups"
        )
    if zeros is not None and (zeros.shape != scales.shape or zeros.dtype != jnp.int8):
        raise ValueError(
            f"{NAME}: zeros is int8 of the shape of scales {list(scales.shape)}, not "
            f"{said(zeros)}"
        )


def check_input(
    x: jax.Array,
    scale: jax.Array | None,
    zero: jax.Array | None,
    bits: int | None,
) -> None:
    """Raise ValueError unless scale, zero and bits suit the images."""
    if bits is not None and not 2 <= bits <= 8:
        raise ValueError(f"{NAME}: x_bits is None or from 2 to 8, not {bits!r}")
    if scale is None:
        if zero is not None:
            raise ValueError(f"{NAME}: x_zero is given without x_scale")
        return
    if bits is None:
        raise ValueError(f"{NAME}: x_scale is given without x_bits")
    if scale.shape not in ((), (x.shape[0],)) or scale.dtype != jnp.float32:
        raise ValueError(
            f"{NAME}: x_scale is a float32 scalar or [{x.shape[0]}], not {said(scale)}"
        )
    if zero is not None and (zero.shape != scale.shape or zero.dtype != jnp.float32):
        raise ValueError(
            f"{NAME}: x_zero is float32 of the shape of x_scale "
            f"{list(scale.shape)}, not {said(zero)}"
        )
