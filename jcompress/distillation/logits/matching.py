"""Matching a teacher's logits themselves, and their correlations."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import (
    as_heat,
    as_logits,
    over_positions,
    unit,
)


def squared_logits(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Match logits by the mean squared error over the classes.

        mean over c of (student - teacher)_c^2

    Unlike a divergence it also fixes the sum of the logits, and it cares as much for
    classes that are out of the question as for the others.

    Args:
        student: logits `[..., C]`, of any floating dtype; computed in float32.
        teacher: logits `[..., C]`, finite; no gradient flows to them.
        where: as of `soft_targets`.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: as `soft_targets`.
        ValueError: the shapes differ, are scalar or have no class; a `where` of
            another shape.

    References:
        Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", section 2.2.
    """
    student, teacher = as_logits("squared_logits", student, teacher, where)
    return over_positions(jnp.mean(jnp.square(student - teacher), axis=-1), where)


def correlated_targets(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    between: float = 1.0,
    within: float = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Match which classes, and which examples, are likelier than others (DIST).

    With p the softened probabilities and r Pearson's correlation,

        T^2 (between (1 - r(p_student, p_teacher) over the classes of an example)
             + within (1 - r over the examples, the mean over the classes))

    The values may differ by scale and offset, which suits teachers that are much
    stronger than the student. The second part is the same for all examples of the
    batch. The loss needs a batch: it changes if the batch is cut into parts. A vector
    that is constant correlates with nothing.

    Args:
        student: logits `[..., C]`, all axes but the last being examples and positions.
        teacher: logits `[..., C]`; no gradient flows to them.
        temperature: as of `soft_targets`.
        between: weight of the relations between the classes of each example.
        within: weight of the relations within each class.
        where: as of `soft_targets`.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: as `soft_targets`.
        ValueError: as `soft_targets`; or logits without a batch axis.

    References:
        Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher" (DIST; the
        square of the temperature is in the authors' code).
    """
    name = "correlated_targets"
    student, teacher = as_logits(name, student, teacher, where)
    if student.ndim < 2:
        raise ValueError(
            f"{name}: logits of shape {student.shape} have no axis of examples; give "
            "[batch, ..., classes]"
        )
    heat = as_heat(name, temperature, student.dtype)
    likely = [jax.nn.softmax(z / heat, axis=-1) for z in (student, teacher)]
    rows = [unit(p - jnp.mean(p, axis=-1, keepdims=True)) for p in likely]
    across = 1 - jnp.sum(rows[0] * rows[1], axis=-1)
    counted = jnp.ones(student.shape[:-1], jnp.bool_) if where is None else where
    flat = jnp.asarray(counted).reshape(1, -1)
    number = jnp.maximum(jnp.sum(flat, dtype=student.dtype), 1)
    columns = []
    for p in likely:
        by_class = jnp.where(flat, p.reshape(-1, p.shape[-1]).T, 0)
        mean = jnp.sum(by_class, axis=-1, keepdims=True) / number
        columns.append(unit(jnp.where(flat, by_class - mean, 0)))
    down = 1 - jnp.mean(jnp.sum(columns[0] * columns[1], axis=-1))
    return over_positions(heat**2 * (between * across + within * down), where)
