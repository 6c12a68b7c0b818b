"""Learning features by how much the student's tell of the teacher's."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import over_positions
from jcompress.distillation.features._aligning import aligned

LEAST = 1e-5
"""The least variance, so that no division overflows."""


def variational_information(
    student: jax.Array,
    teacher: jax.Array,
    *,
    spread: jax.Array,
    projection: jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """Raise a bound on the information that the student has of the teacher (VID).

    The student predicts the teacher's features with a variance for each channel, so
    that channels that it cannot predict cost less. With v = 1e-5 + softplus(spread),

        mean over c of (log v_c / 2 + (teacher - student @ projection)_c^2 / (2 v_c))

    That is the negative logarithm of a Gaussian, without its constant; it can be
    negative, and for a given spread it is least where the prediction is right.

    Args:
        student: features `[..., D_s]`, or predictions that a network of yours makes of
            them, `[..., D_t]`; of any floating dtype; computed in float32.
        teacher: `[..., D_t]`; no gradient flows to them.
        spread: `[D_t]`, a parameter trained with the student; 5 is a fair start.
        projection: `[D_s, D_t]`, a parameter trained with the student; None requires
            `D_s == D_t`.
        where: as of `hidden_mse`.

    Returns:
        As `hidden_mse`.

    Raises:
        TypeError: features that are not floating point, a `where` that is not Boolean.
        ValueError: shapes that do not fit.

    References:
        Ahn et al. 2019, "Variational Information Distillation for Knowledge
        Transfer", section 2.
    """
    name = "variational_information"
    student, teacher = aligned(name, student, teacher, projection, where)
    if jnp.shape(spread) != teacher.shape[-1:]:
        raise ValueError(
            f"{name}: the spread has shape {jnp.shape(spread)}, but features of shape "
            f"{teacher.shape} need {teacher.shape[-1:]}"
        )
    variance = LEAST + jax.nn.softplus(spread.astype(student.dtype))
    variance = variance.reshape((1,) * (student.ndim - 1) + variance.shape)
    each = jnp.log(variance) / 2 + jnp.square(teacher - student) / (2 * variance)
    return over_positions(jnp.mean(each, axis=-1), where)
