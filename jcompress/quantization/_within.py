"""Rounding of numbers that a symmetric range covers: there is nothing to clip."""

import functools
from typing import Any

import jax

from jcompress.formats import NumberFormat
from jcompress.tensors.once import once
from jcompress.tensors.rounding import fake_quantize


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def fake_quantize_within(
    x: jax.Array, scale: jax.Array, format: NumberFormat, turned: bool = False
) -> jax.Array:
    """`fake_quantize` of numbers whose own largest made the scale.

    The largest is `format.reach` steps but for the rounding of a quotient, so all are
    covered, and `fake_quantize` would find nothing clipped: the same values and the
    same derivative, 1. No mask has to be made and kept for it, which a training step
    is faster without.

    Args:
        x: floats of any shape.
        scale: of a symmetric range that holds all of `x`; broadcasts against it.
        format: a symmetric one.
        turned: whether a gradient reads the result in another order than the function
            does, as that of a convolution does with its data (see `once`).
    """
    return fake_quantize(x, scale, None, format)


@fake_quantize_within.defjvp
def _fake_quantize_within_jvp(
    format: NumberFormat,
    turned: bool,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    x, scale = primals

    def rounded(x: jax.Array) -> jax.Array:
        return fake_quantize_within(x, scale, format)

    out = once(rounded, x, scale) if turned else rounded(x)
    return out, tangents[0]
