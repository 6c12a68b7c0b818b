"""A student's hidden states, projected to be compared with a teacher's."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import as_floats, blank, check_where


def aligned(
    loss: str,
    student: jax.Array,
    teacher: jax.Array,
    projection: jax.Array | None,
    where: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Both in floats, the student projected, zeros where they do not count.

    Raises:
        TypeError: not floating point, or a `where` that is not Boolean.
        ValueError: shapes that do not fit.
    """
    wide, constant = as_floats(loss, student, teacher)
    _check_shapes(loss, wide, constant, projection, where)
    wide, constant = blank(where, wide), blank(where, constant)
    if projection is not None:
        wide = jnp.matmul(wide, projection.astype(wide.dtype))
    return wide, constant


def _check_shapes(
    loss: str,
    student: jax.Array,
    teacher: jax.Array,
    projection: jax.Array | None,
    where: jax.Array | None,
) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"{loss}: the student's hidden states have shape {student.shape}, the "
            f"teacher's {teacher.shape}; all axes but the last must agree"
        )
    widths = (student.shape[-1], teacher.shape[-1])
    if projection is None and widths[0] != widths[1]:
        raise ValueError(
            f"{loss}: the student is {widths[0]} wide and the teacher {widths[1]}; "
            f"give a projection of shape {widths}"
        )
    if projection is not None and projection.shape != widths:
        raise ValueError(
            f"{loss}: the projection has shape {projection.shape}, but hidden states "
            f"of widths {widths} need {widths}"
        )
    if 0 in widths:
        raise ValueError(f"{loss}: hidden states of widths {widths} are empty")
    check_where(loss, where, student.shape[:-1], "hidden states")
