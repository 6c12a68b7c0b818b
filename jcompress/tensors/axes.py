"""The canonical matrix of a weight: independent copies of [outputs, inputs]."""

import math
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray[Any, Any])


class Axes(NamedTuple):
    """The axes of a leaf by role; each axis of the leaf is in exactly one field.

    Attributes:
        stack: axes that number independent copies (layers of a scan, experts).
        output: axes that number output units.
        input: axes that are summed over.
    """

    stack: tuple[int, ...]
    output: tuple[int, ...]
    input: tuple[int, ...]


def matrix_shape(
    shape: tuple[int, ...], axes: Axes
) -> tuple[tuple[int, ...], int, int]:
    """The stack sizes, N and K of the canonical matrix of a leaf of this shape."""
    stack = tuple(shape[axis] for axis in axes.stack)
    outputs = math.prod(shape[axis] for axis in axes.output)
    inputs = math.prod(shape[axis] for axis in axes.input)
    return stack, outputs, inputs


def to_matrix(x: Array, axes: Axes) -> Array:
    """Bring a leaf into its canonical matrix form, `[*S, N, K]`.

    S are the sizes of the stack axes, N is the product of the output sizes and K that
    of the input sizes (1 where there is no such axis), each in leaf-axis order.
    """
    stack, outputs, inputs = matrix_shape(x.shape, axes)
    ordered = x.transpose(axes.stack + axes.output + axes.input)
    return ordered.reshape(*stack, outputs, inputs)


def from_matrix(matrix: Array, axes: Axes, shape: tuple[int, ...]) -> Array:
    """Undo `to_matrix`: bring `[*S, N, K]` back to a leaf of `shape`."""
    order = axes.stack + axes.output + axes.input
    ordered = matrix.reshape(tuple(shape[axis] for axis in order))
    return ordered.transpose(tuple(order.index(axis) for axis in range(len(shape))))
