"""What the losses of this folder demand of their inputs, and how they average."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_known(value: Any) -> bool:
    """Whether a value can be looked at: it is no argument of a program being traced."""
    return not isinstance(value, jax.core.Tracer)


def as_floats(loss: str, student: Any, teacher: Any) -> tuple[jax.Array, jax.Array]:
    """Both inputs in float32 (float64 if the student's is), the teacher's constant.

    Raises:
        TypeError: an input is not floating point.
        ValueError: an input is a scalar.
    """
    for owner, value in (("student", student), ("teacher", teacher)):
        check_float(loss, f"the {owner}'s input", value)
    dtype = wide(jnp.result_type(student))
    constant = jax.lax.stop_gradient(jnp.asarray(teacher).astype(dtype))
    return jnp.asarray(student).astype(dtype), constant


def wide(dtype: Any) -> Any:
    """The dtype in which numbers of a dtype are computed: float64 or float32."""
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")


def as_float(loss: str, student: Any) -> jax.Array:
    """The student's input alone, as `as_floats` has it."""
    check_float(loss, "the student's input", student)
    return jnp.asarray(student).astype(wide(jnp.result_type(student)))


def check_float(loss: str, what: str, value: Any) -> None:
    """Raise unless a value is an array of floats."""
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{loss}: {what} is of dtype {dtype}; it must be floating point"
        )
    if jnp.ndim(value) == 0:
        raise ValueError(f"{loss}: {what} is a scalar; give [..., D]")


def as_logits(
    loss: str, student: Any, teacher: Any, where: Any, *, least: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Logits of one shape `[..., C]`, zeros where they do not count.

    Raises:
        TypeError: as `as_floats` and `check_where`.
        ValueError: the shapes differ, or there are fewer than `least` classes.
    """
    student, teacher = as_floats(loss, student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"{loss}: the student's logits have shape {student.shape}, the "
            f"teacher's {teacher.shape}; both must be [..., classes]"
        )
    check_classes(loss, student, least)
    check_where(loss, where, student.shape[:-1])
    return blank(where, student), blank(where, teacher)


def check_classes(loss: str, logits: jax.Array, least: int = 1) -> None:
    """Raise ValueError unless there are at least so many classes."""
    if logits.shape[-1] < least:
        wanted = "no classes" if least == 1 else f"at least {least} classes are needed"
        raise ValueError(f"{loss}: logits of shape {logits.shape}: {wanted}")


def as_heat(loss: str, temperature: Any, dtype: Any) -> jax.Array:
    """A temperature as a scalar.

    Raises:
        ValueError: it is no scalar, or known and not above 0 and finite.
    """
    if jnp.ndim(temperature) != 0:
        raise ValueError(
            f"{loss}: the temperature must be a scalar, not of shape "
            f"{jnp.shape(temperature)}"
        )
    if is_known(temperature) and not 0 < float(temperature) < float("inf"):
        raise ValueError(
            f"{loss}: the temperature must be above 0 and finite, not {temperature}"
        )
    return jnp.asarray(temperature).astype(dtype)


def check_fraction(loss: str, name: str, value: Any, *, ends: bool) -> None:
    """Raise ValueError unless a number is known and in [0, 1], or within it."""
    inside = 0 <= value <= 1 if ends else 0 < value < 1
    if not inside:
        bounds = "from 0 to 1" if ends else "between 0 and 1"
        raise ValueError(f"{loss}: {name} must be {bounds}, not {value!r}")


def as_labels(
    loss: str, labels: Any, where: Any, shape: tuple[int, ...], classes: int
) -> tuple[jax.Array, jax.Array]:
    """Labels, 0 where they do not count; and which of them are classes.

    Raises:
        TypeError: they are no integers.
        ValueError: they have another shape than `shape`, or are known and one that
            counts is no class.
    """
    dtype = jnp.result_type(labels)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{loss}: the labels are of dtype {dtype}; give class numbers")
    if jnp.shape(labels) != shape:
        raise ValueError(
            f"{loss}: the labels have shape {jnp.shape(labels)}, but logits of shape "
            f"{(*shape, classes)} need {shape}"
        )
    if is_known(labels) and is_known(where):
        known = np.asarray(labels)
        counted = known if where is None else known[np.asarray(where)]
        wrong = counted[(counted < 0) | (counted >= classes)]
        if wrong.size:
            raise ValueError(
                f"{loss}: the label {wrong[0]} is no class; logits of {classes} "
                f"classes need labels from 0 to {classes - 1}"
            )
    labels = jnp.asarray(labels).astype(jnp.int32)
    if where is not None:
        labels = jnp.where(where, labels, 0)
    valid = (labels >= 0) & (labels < classes)
    return jnp.where(valid, labels, 0), valid


def as_weights(loss: str, weights: Any, count: int, dtype: Any) -> jax.Array:
    """Weights of a mean, `[count]`; equal ones for None.

    Raises:
        ValueError: there are not `count`, or they are known and negative, or do not
            sum to 1.
    """
    if weights is None:
        return jnp.full(count, 1 / count, dtype)
    if isinstance(weights, tuple | list):
        weights = np.asarray(weights, np.float64)
    if jnp.shape(weights) != (count,):
        raise ValueError(
            f"{loss}: the weights have shape {jnp.shape(weights)}, but {count} "
            f"teachers need {(count,)}"
        )
    if is_known(weights):
        known = np.asarray(weights, np.float64)
        if not (known >= 0).all() or abs(known.sum() - 1) > 1e-4:
            raise ValueError(
                f"{loss}: the weights must not be negative and sum to 1, not "
                f"{known.tolist()}"
            )
    return jnp.asarray(weights).astype(dtype)


def check_where(
    loss: str, where: Any, shape: Sequence[int], name: str = "inputs"
) -> None:
    """Raise unless `where` is None, or Boolean and of this shape."""
    if where is None:
        return
    if jnp.result_type(where) != jnp.bool_:
        raise TypeError(
            f"{loss}: where is of dtype {jnp.result_type(where)}; it must be bool"
        )
    if jnp.ndim(where) == 0 or jnp.shape(where) != tuple(shape):
        raise ValueError(
            f"{loss}: where has shape {jnp.shape(where)}, but these {name} need "
            f"{tuple(shape)}, with at least one axis"
        )


def blank(where: Any, x: jax.Array) -> jax.Array:
    """Zeros where `where`, the first axes of `x`, is False.

    Before any arithmetic, as 0 times a NaN is no 0 in the gradient.
    """
    if where is None:
        return x
    where = jnp.asarray(where)
    shape = where.shape + (1,) * (x.ndim - where.ndim)
    return jnp.where(where.reshape(shape), x, jnp.zeros((), x.dtype))


def over_positions(losses: jax.Array, where: Any) -> jax.Array:
    """One loss for each example: the mean over its positions that count, or 0."""
    if where is None:
        return losses
    # The loss of two vectors of zeros need not be 0.
    counted = blank(where, losses)
    axes = tuple(range(1, losses.ndim))
    number = jnp.sum(jnp.asarray(where), axis=axes, dtype=losses.dtype)
    return jnp.sum(counted, axis=axes) / jnp.maximum(number, jnp.ones_like(number))


def unit(x: jax.Array) -> jax.Array:
    """Vectors along the last axis, scaled to length 1; zeros stay zeros."""
    # Scaled by the largest entry first, so that no square overflows or vanishes. The
    # direction does not depend on that scale, so neither does the gradient; divided
    # by infinity, a vector of zeros stays zero and gets no gradient.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    near = x / jnp.where(largest > 0, largest, jnp.inf)
    square = jnp.sum(jnp.square(near), axis=-1, keepdims=True)
    return near * jax.lax.rsqrt(jnp.where(square > 0, square, jnp.ones_like(square)))


def divergence(teacher_log: jax.Array, student_log: jax.Array) -> jax.Array:
    """KL(teacher || student) over the last axis, of logarithms of probabilities."""
    # optax.losses.kl_divergence_with_log_targets is 0 * inf for an impossible class.
    possible = teacher_log > -jnp.inf
    surplus = jnp.where(possible, teacher_log - student_log, 0)
    return jnp.sum(jnp.exp(teacher_log) * surplus, axis=-1)
