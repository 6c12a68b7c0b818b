"""One copy of a stacked weight after the other, and the error of its outputs."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import NumberFormat
from jcompress.rounding.solving import solve_each

Made = TypeVar("Made")


def over_copies(
    one: Callable[..., Made], matrix: jax.Array, *others: jax.Array | None
) -> Made:
    """Call a function on each copy of a stacked matrix, one at a time.

    Args:
        one: takes the arrays without the axes S, and gives arrays.
        matrix: [*S, N, K].
        *others: arrays that begin with the same S; None is handed on.

    Returns:
        What `one` gives, with S in front.
    """
    stacks = matrix.shape[:-2]
    copies = math.prod(stacks)
    given = (matrix, *others)
    if copies == 1:
        flat = jax.tree.map(lambda x: x.reshape(x.shape[len(stacks) :]), given)
        made = jax.tree.map(lambda x: x[None], one(*flat))
    else:
        flat = jax.tree.map(lambda x: x.reshape(copies, *x.shape[len(stacks) :]), given)
        made = jax.lax.map(lambda parts: one(*parts), flat)
    result: Made = jax.tree.map(lambda x: x.reshape(*stacks, *x.shape[1:]), made)
    return result


def counted(numbers: jax.Array, format: NumberFormat) -> jax.Array:
    """Numbers in units of the scale as the format holds them, of its dtype."""
    return (numbers * np.float32(1 / format.unit)).astype(format.dtype)


def spread(scales: jax.Array, outputs: int, inputs: int) -> jax.Array:
    """Scales [R, G] for each weight: [N, K], where R divides N and G divides K."""
    rows, groups = scales.shape
    tall = jnp.repeat(scales, outputs // rows, axis=0, total_repeat_length=outputs)
    return jnp.repeat(tall, inputs // groups, axis=1, total_repeat_length=inputs)


def dense(numbers: jax.Array, scales: jax.Array, zeros: jax.Array | None) -> jax.Array:
    """What numbers [N, K] stand for, in float32, with scales [R, G]."""
    shape = numbers.shape
    steps = numbers.astype(jnp.float32)
    if zeros is not None:
        steps = steps - spread(zeros.astype(jnp.float32), *shape)
    return steps * spread(scales, *shape)


def output_errors(change: jax.Array, moments: jax.Array) -> jax.Array:
    """The error of each output: `e H e^T` for the rows e of [N, K], float32 [N]."""
    passed = jnp.matmul(change, moments, precision="highest")
    return jnp.sum(passed * change, axis=1)


def least(kept: Any, other: Any, *, errors: tuple[jax.Array, jax.Array]) -> Any:
    """Of two ways to round a matrix the one that errs less, output by output.

    Args:
        kept: arrays [N, ...] or, of what R rows of scales serve, [R, ...].
        other: arrays of the same shapes.
        errors: those of the outputs either way, [N] each.

    Returns:
        The tree with the rows of `other` where its errors are smaller. Outputs that
        share a scale go together, for all arrays alike.
    """
    rows = min(leaf.shape[0] for leaf in jax.tree.leaves(kept))
    before, after = (error.reshape(rows, -1).sum(1) for error in errors)
    better = after < before

    def one(first: jax.Array, second: jax.Array) -> jax.Array:
        chosen = jnp.repeat(
            better, first.shape[0] // rows, total_repeat_length=first.shape[0]
        )
        return jnp.where(chosen.reshape(-1, *[1] * (first.ndim - 1)), second, first)

    return jax.tree.map(one, kept, other)


def per_weight(moments: jax.Array) -> jax.Array:
    """Moments of mean size 1, so that steps and penalties need not know theirs."""
    mean = jnp.mean(jnp.diagonal(moments))
    return moments / jnp.where(mean > 0, mean, np.float32(1))


def fitted_scales(
    matrix: jax.Array,
    numbers: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    moments: jax.Array,
) -> jax.Array:
    """The scales [R, G] with which given numbers make the least error of the outputs.

    The outputs are linear in the scales: with P_g the numbers of group g, and 0 for the
    other inputs, those of one output solve `sum_b (P_a H P_b^T) s_b = P_a H w^T`.
    Outputs that share scales add up their equations. Where the solution is not above
    0 the scales stay.

    Args:
        matrix: the weights, float32 [N, K].
        numbers: float32 [N, K].
        scales: float32 [R, G], those so far.
        zeros: integers of the shape of the scales, or None.
        moments: float32 [K, K].
    """
    outputs, inputs = matrix.shape
    rows, groups = scales.shape
    steps = dense(numbers, jnp.ones_like(scales), zeros)
    split = steps.reshape(outputs, groups, inputs // groups)

    def passed(group: jax.Array) -> jax.Array:
        """The products of all groups with one group, passed through H: [N, G]."""
        size = inputs // groups
        own = jax.lax.dynamic_slice_in_dim(moments, group * size, size, 0)
        mixed = jnp.matmul(split[:, group], own, precision="highest")
        return jnp.sum((mixed * steps).reshape(outputs, groups, size), axis=-1)

    left = jnp.moveaxis(jax.lax.map(passed, jnp.arange(groups)), 0, 1)
    wanted = jnp.matmul(matrix, moments, precision="highest")
    right = jnp.sum((wanted * steps).reshape(outputs, groups, -1), axis=-1)
    left = left.reshape(rows, -1, groups, groups).sum(1)
    right = right.reshape(rows, -1, groups).sum(1)
    # In units of the scales so far, and held to them: groups that hardly count stay.
    left = left * scales[:, :, None] * scales[:, None, :]
    right = right * scales
    size = jnp.trace(left, axis1=1, axis2=2)[:, None, None] / groups
    hold = np.float32(1e-6) * size + np.finfo(np.float32).tiny
    identity = jnp.eye(groups, dtype=jnp.float32)[None]
    solved = solve_each(left + hold * identity, (right + hold[..., 0])[..., None])
    ratio = solved[..., 0]
    usable = jnp.all(jnp.isfinite(ratio) & (ratio > 0), axis=1, keepdims=True)
    return scales * jnp.where(usable, ratio, np.float32(1))
