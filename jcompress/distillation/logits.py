"""Learning from a teacher's output distribution."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import as_floats


def soft_targets(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float | jax.Array,
) -> jax.Array:
    """Compare two distributions over classes, both softened by a temperature.

    With T the temperature,

        T^2 KL(softmax(teacher / T) || softmax(student / T))

    The factor T^2 keeps the size of the gradient as T changes; for T well above the
    logits it tends to that of half the squared error of centred logits over the
    number of classes. A class whose teacher logit is minus infinity counts for nothing.

    Args:
        student_logits: `[..., C]`, of any floating dtype; computed in float32.
        teacher_logits: `[..., C]`; no gradient flows to them.
        temperature: a scalar above 0; it may be traced.

    Returns:
        Losses in nats, `[...]`, float32 (float64 if the student's logits are).

    Raises:
        TypeError: logits that are not floating point.
        ValueError: the shapes differ, are scalar or have no class; a temperature that
            is no scalar or not above 0.

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    student, teacher = as_floats("soft_targets", student_logits, teacher_logits)
    if student.shape != teacher.shape:
        raise ValueError(
            f"soft_targets: the student's logits have shape {student.shape}, the "
            f"teacher's {teacher.shape}; both must be [..., classes]"
        )
    if student.shape[-1] == 0:
        raise ValueError(f"soft_targets: logits of shape {student.shape}: no classes")
    if jnp.ndim(temperature) != 0:
        raise ValueError(
            "soft_targets: the temperature must be a scalar, not of shape "
            f"{jnp.shape(temperature)}"
        )
    if isinstance(temperature, int | float) and not 0 < temperature < float("inf"):
        raise ValueError(
            f"soft_targets: the temperature must be above 0 and finite, not "
            f"{temperature}"
        )
    heat = jnp.asarray(temperature).astype(student.dtype)
    student_log = jax.nn.log_softmax(student / heat, axis=-1)
    teacher_log = jax.nn.log_softmax(teacher / heat, axis=-1)
    # optax.losses.kl_divergence_with_log_targets is 0 * inf for an impossible class.
    possible = teacher_log > -jnp.inf
    surplus = jnp.where(possible, teacher_log - student_log, jnp.zeros_like(heat))
    return heat**2 * jnp.sum(jnp.exp(teacher_log) * surplus, axis=-1)
