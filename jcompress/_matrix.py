"""The canonical matrix of a weight: independent copies of [outputs, inputs]."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcompress.sites import PRODUCTS, WEIGHTS, Site


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


def leaf_axes(sites: Sequence[Site]) -> Axes:
    """Say what each axis of a leaf is, over all the sites at which it is a weight.

    An axis that any product sums over is an input axis; else it is a stack axis if it
    is one at any product; else an output axis. Lookups count only for a leaf that no
    product uses, so a tied embedding has the axes of its product.

    Args:
        sites: sites of one leaf, such as `Sites.of(path)`.

    Returns:
        The axes, each field in increasing order.

    Raises:
        ValueError: no product or lookup is among the sites, or they are of more than
            one leaf.
    """
    paths = {site.path for site in sites}
    if len(paths) > 1:
        raise ValueError(f"these are sites of several leaves: {sorted(paths)}")
    products = [site for site in sites if site.operation in PRODUCTS]
    used = products or [site for site in sites if site.operation in WEIGHTS]
    if not used:
        name = f"of {paths.pop()!r} " if paths else ""
        raise ValueError(
            f"no site {name}is a product or a lookup, so no axis has a role"
        )
    summed = {axis for site in used for axis in site.input_axes}
    stacked = {axis for site in used for axis in site.stack_axes} - summed
    every = range(len(used[0].shape))
    return Axes(
        stack=tuple(axis for axis in every if axis in stacked),
        output=tuple(axis for axis in every if axis not in summed | stacked),
        input=tuple(axis for axis in every if axis in summed),
    )


def matrix_shape(
    shape: tuple[int, ...], axes: Axes
) -> tuple[tuple[int, ...], int, int]:
    """The stack sizes, N and K of the canonical matrix of a leaf of this shape."""
    stack = tuple(shape[axis] for axis in axes.stack)
    outputs = math.prod(shape[axis] for axis in axes.output)
    inputs = math.prod(shape[axis] for axis in axes.input)
    return stack, outputs, inputs


def to_matrix(x: jax.Array, axes: Axes) -> jax.Array:
    """Bring a leaf into its canonical matrix form, `[*S, N, K]`.

    S are the sizes of the stack axes, N is the product of the output sizes and K that
    of the input sizes (1 where there is no such axis), each in leaf-axis order.
    """
    stack, outputs, inputs = matrix_shape(x.shape, axes)
    ordered = jnp.transpose(x, axes.stack + axes.output + axes.input)
    return ordered.reshape(*stack, outputs, inputs)


def from_matrix(matrix: jax.Array, axes: Axes, shape: tuple[int, ...]) -> jax.Array:
    """Undo `to_matrix`: bring `[*S, N, K]` back to a leaf of `shape`."""
    order = axes.stack + axes.output + axes.input
    ordered = matrix.reshape(tuple(shape[axis] for axis in order))
    return jnp.transpose(
        ordered, tuple(order.index(axis) for axis in range(len(shape)))
    )
