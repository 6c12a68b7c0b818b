"""Weights as a fake-quantized function meets them, with learned scales and noise."""

import dataclasses

import jax
import jax.numpy as jnp

from jcompress.formats import Float8, FloatScales, Int
from jcompress.quantization._within import fake_quantize_within
from jcompress.quantization.learned import (
    Step,
    fake_quantize_learned,
    learned_range,
    sharing,
)
from jcompress.quantization.noise import WeightNoise
from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.outliers import split_outliers
from jcompress.tensors.range_specs import FullRange
from jcompress.tensors.ranges import scale_and_zero
from jcompress.tensors.rounding import fake_quantize
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import (
    fake_quantize_weight,
    grouped,
    spread,
    weight_scales,
)


def simulate_weight(
    leaf: jax.Array,
    axes: Axes,
    spec: Weights,
    step: Step | None,
    noise: WeightNoise | None,
    path: str,
) -> jax.Array:
    """A leaf in the numbers of a format: `fake_quantize_weight`, for training.

    Args:
        leaf: floats of any shape.
        axes: the role of each of its axes.
        spec: the format.
        step: its learned scales, if it has them.
        noise: what chance does.
        path: the leaf's name, of which its random numbers depend.
    """
    if spec.outliers:
        matrix, places, values = split_outliers(to_matrix(leaf, axes), spec.outliers)
        plain = dataclasses.replace(spec, outliers=0.0)
        rest = from_matrix(matrix, axes, leaf.shape)
        faked = simulate_weight(rest, axes, plain, step, noise, path)
        shape = matrix.shape
        flat = to_matrix(faked, axes).reshape(*shape[:-2], shape[-2] * shape[-1])
        whole = jnp.put_along_axis(flat, places, values, axis=-1, inplace=False)
        return from_matrix(whole.reshape(shape), axes, leaf.shape)
    covered = spec.format.symmetric and isinstance(spec.range, FullRange)
    covered = covered and isinstance(spec.format, Int | Float8)
    covered = covered and spec.scales == FloatScales()
    if step is None and noise is None and not covered:
        return fake_quantize_weight(leaf, axes, spec)
    matrix = to_matrix(leaf, axes)
    if step is None:
        scales, zeros = weight_scales(jax.lax.stop_gradient(matrix), spec)
    else:
        scales, zeros = scale_and_zero(learned_range(step, spec.format), spec.format)
    weights = grouped(matrix, scales.shape)
    rounded, chosen = weights, None
    if noise is not None:
        shifting, choosing = jax.random.split(noise.key_of(path))
        shift = noise.shift(shifting, weights.shape)
        chosen = noise.chosen(choosing, weights.shape)
        if shift is not None:
            # In float32: a narrower dtype would round the sum before we do.
            steps = spread(jax.lax.stop_gradient(scales))
            rounded = weights.astype(jnp.float32) + shift * steps
    if step is None and noise is None and zeros is None:
        faked = fake_quantize_within(rounded, spread(scales), spec.format)
    elif step is None:
        zero = None if zeros is None else spread(zeros)
        faked = fake_quantize(rounded, spread(scales), zero, spec.format)
    else:
        wide: Step = jax.tree.map(spread, step)
        count = sharing(matrix.shape, scales.shape)
        faked = fake_quantize_learned(rounded, wide, spec.format, count)
    faked = faked.astype(leaf.dtype)
    if chosen is not None:
        faked = jnp.where(chosen, faked, weights)
    return from_matrix(faked.reshape(matrix.shape), axes, leaf.shape)
