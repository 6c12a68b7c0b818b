"""What follows a convolution in the same call, and how its result is stored."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import Int
from jcompress.kernels._epilogue import Nonlinearity
from jcompress.kernels._rows import said
from jcompress.tensors.rounding import quantize_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """What is done to each number of the result, in float32, in this order:

    `y = activation(conv + bias + addend) + residual`; then, with `bits`,
    `quantize_values(y, y_scale, y_zero)`.

    Attributes:
        activation: None for none.
        bits: of an integer of the result; None for floats.
    """

    activation: Nonlinearity | None = None
    bits: int | None = None


class EndingArrays(NamedTuple):
    """The arrays of an `Ending`, each None if it is left out.

    Attributes:
        bias: float32 [N, 1].
        addend: [B, Y], before the activation: floats, or int8 that `addend_scale` and
            `addend_zero` make floats of.
        residual: [B, Y], after it.
        y_scale: float32 [1, 1].
        y_zero: integers in float32 [1, 1].
        addend_scale: float32 [1, 1].
        addend_zero: integers in float32 [1, 1].
    """

    bias: jax.Array | None = None
    addend: jax.Array | None = None
    residual: jax.Array | None = None
    y_scale: jax.Array | None = None
    y_zero: jax.Array | None = None
    addend_scale: jax.Array | None = None
    addend_zero: jax.Array | None = None


ROLES = ("..", "m.", "m.", "..", "..", "..", "..")
"""Of the arrays, as those of `KernelOperation`."""


def finish(product: jax.Array, ending: Ending, arrays: EndingArrays) -> jax.Array:
    """Apply what follows to [..., B, Y] in float32; floats or int8 of that shape."""
    y = product.astype(jnp.float32)
    if arrays.bias is not None:
        bias = arrays.bias
        outputs = bias.shape[-2]
        by_output = y.reshape(*y.shape[:-1], y.shape[-1] // outputs, outputs)
        y = (by_output + bias[..., None, None, :, 0]).reshape(y.shape)
    if arrays.addend is not None:
        scale, zero = arrays.addend_scale, arrays.addend_zero
        addend = dequantized(arrays.addend, scale, zero)
        y = y + addend.astype(jnp.float32)
    if ending.activation is not None:
        y = ending.activation(y)
    if arrays.residual is not None:
        y = y + arrays.residual.astype(jnp.float32)
    if ending.bits is None:
        return y
    assert arrays.y_scale is not None
    format = Int(ending.bits, symmetric=arrays.y_zero is None)
    return quantize_values(y, arrays.y_scale, arrays.y_zero, format).astype(jnp.int8)


def checked(
    name: str,
    activation: Nonlinearity | None,
    shape: tuple[int, ...],
    dtype: Any,
    bits: int | None,
    arrays: EndingArrays,
) -> tuple[Ending | None, EndingArrays]:
    """What follows, its arrays in the shapes of `EndingArrays`; None for nothing.

    Args:
        name: of the operation, for errors.
        activation: as the operation got it.
        shape: [B, *positions, N].
        dtype: of floats of the result.
        bits: as the operation got it.
        arrays: as the operation got them: bias [N], addend and residual of `shape`,
            scales and zeros scalars.

    Raises:
        TypeError: `activation` is of another kind.
        ValueError: shapes or dtypes do not fit.
    """
    if activation is not None and not isinstance(activation, Nonlinearity):
        raise TypeError(f"{name}: activation is a Nonlinearity, not {activation!r}")
    bias, addend, residual, scale, zero, *of_addend = arrays
    if bias is not None and (bias.shape != shape[-1:] or bias.dtype != jnp.float32):
        raise ValueError(f"{name}: bias is float32 [{shape[-1]}], not {said(bias)}")
    integers = of_addend[0] is not None
    for label, array, wanted in (
        ("addend", addend, jnp.int8 if integers else dtype),
        ("residual", residual, dtype),
    ):
        if array is not None and (array.shape != shape or array.dtype != wanted):
            raise ValueError(
                f"{name}: {label} has the shape of the result and is "
                f"{jnp.dtype(wanted)} {list(shape)}, not {said(array)}"
            )
    if (integers and addend is None) or (of_addend[1] is not None and not integers):
        raise ValueError(
            f"{name}: addend_scale goes with an addend of int8, addend_zero with both"
        )
    if bits is not None and not 2 <= bits <= 8:
        raise ValueError(f"{name}: y_bits is None or from 2 to 8, not {bits!r}")
    if (bits is None) != (scale is None) or (zero is not None and scale is None):
        raise ValueError(f"{name}: y_bits and y_scale go together, y_zero with both")
    numbers = (scale, zero, *of_addend)
    labels = ("y_scale", "y_zero", "addend_scale", "addend_zero")
    for label, array in zip(labels, numbers, strict=True):
        if array is not None and (array.size != 1 or array.dtype != jnp.float32):
            raise ValueError(f"{name}: {label} is a float32 scalar, not {said(array)}")
    given = (*arrays[:3], scale)
    if activation is None and all(array is None for array in given):
        return None, EndingArrays()
    flat = (shape[0], math.prod(shape[1:]))
    shapes = ((shape[-1], 1), flat, flat, *((1, 1),) * 4)
    made = (
        None if array is None else array.reshape(wanted)
        for array, wanted in zip(arrays, shapes, strict=True)
    )
    return Ending(activation=activation, bits=bits), EndingArrays(*made)


def dequantized(
    x: jax.Array, scale: jax.Array | None, zero: jax.Array | None
) -> jax.Array:
    """Images of int8 as the floats that they stand for, which round to them again."""
    if x.dtype != np.int8:
        return x
    assert scale is not None
    wide = x.astype(jnp.float32)
    return (wide if zero is None else wide - zero) * scale
