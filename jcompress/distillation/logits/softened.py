"""Learning from a teacher's output distribution, softened by a temperature."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import (
    as_heat,
    as_logits,
    as_weights,
    check_fraction,
    divergence,
    over_positions,
)


def soft_targets(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float | jax.Array,
    where: jax.Array | None = None,
) -> jax.Array:
    """Compare two distributions over classes, both softened by a temperature.

    With T the temperature,

        T^2 KL(softmax(teacher / T) || softmax(student / T))

    The factor T^2 keeps the size of the gradient as T changes; for T well above the
    logits it tends to that of half the squared error of centred logits over the
    number of classes. A class whose teacher logit is minus infinity counts for nothing.

    Args:
        student: logits `[..., C]`, of any floating dtype; computed in float32.
        teacher: logits `[..., C]`; no gradient flows to them.
        temperature: a scalar above 0; it may be traced.
        where: Boolean `[B, ...]`, all axes but the last, True at the positions (such
            as tokens) that count; whatever stands at the others has no effect.

    Returns:
        Losses in nats, float32 (float64 if the student's logits are). Without `where`
        one for each position, `[...]`. With it one for each example, `[B]`: the mean
        over its positions that count, 0 if none does.

    Raises:
        TypeError: logits that are not floating point, a `where` that is not Boolean.
        ValueError: the shapes differ, are scalar or have no class; a temperature that
            is no scalar or not above 0; a `where` of another shape.

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    name = "soft_targets"
    student, teacher = as_logits(name, student, teacher, where)
    heat = as_heat(name, temperature, student.dtype)
    student_log = jax.nn.log_softmax(student / heat, axis=-1)
    teacher_log = jax.nn.log_softmax(teacher / heat, axis=-1)
    return over_positions(heat**2 * divergence(teacher_log, student_log), where)


def reverse_kl(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Keep the student to what the teacher finds likely: the divergence turned round.

        T^2 KL(softmax(student / T) || softmax(teacher / T))

    A student too small to cover every mode of its teacher learns to cover some of them
    well. The loss is infinite if the student gives probability to a class whose
    teacher logit is minus infinity.

    Args:
        student: as of `soft_targets`.
        teacher: as of `soft_targets`.
        temperature: as of `soft_targets`.
        where: as of `soft_targets`.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: as `soft_targets`.
        ValueError: as `soft_targets`.

    References:
        Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models";
        Agarwal et al. 2024, "On-Policy Distillation of Language Models".
    """
    name = "reverse_kl"
    student, teacher = as_logits(name, student, teacher, where)
    heat = as_heat(name, temperature, student.dtype)
    student_log = jax.nn.log_softmax(student / heat, axis=-1)
    teacher_log = jax.nn.log_softmax(teacher / heat, axis=-1)
    return over_positions(heat**2 * divergence(student_log, teacher_log), where)


def jensen_shannon(
    student: jax.Array,
    teacher: jax.Array,
    *,
    beta: float = 0.5,
    temperature: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Lie anywhere between `soft_targets` and `reverse_kl`: generalised Jensen-Shannon.

    With P the softened teacher, Q the softened student and M = beta P + (1 - beta) Q,

        T^2 (beta KL(P || M) + (1 - beta) KL(Q || M))

    It is bounded, also where one of the two is zero. Over `beta` it tends to
    `soft_targets` as beta goes to 0, and over `1 - beta` to `reverse_kl` as beta goes
    to 1.

    Args:
        student: as of `soft_targets`.
        teacher: as of `soft_targets`.
        beta: the teacher's part of the mixture, between 0 and 1.
        temperature: as of `soft_targets`.
        where: as of `soft_targets`.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: as `soft_targets`.
        ValueError: as `soft_targets`; or `beta` is not between 0 and 1.

    References:
        Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from
        Self-Generated Mistakes" (GKD), equation 1.
    """
    name = "jensen_shannon"
    check_fraction(name, "beta", beta, ends=False)
    student, teacher = as_logits(name, student, teacher, where)
    heat = as_heat(name, temperature, student.dtype)
    q = jax.nn.log_softmax(student / heat, axis=-1)
    p = jax.nn.log_softmax(teacher / heat, axis=-1)
    # What is impossible for both would be inf - inf in the gradient.
    either = (p > -jnp.inf) | (q > -jnp.inf)
    low = jnp.finfo(q.dtype).min / 2
    mixed = jnp.logaddexp(
        jnp.maximum(p, low) + math.log(beta), jnp.maximum(q, low) + math.log1p(-beta)
    )
    mixed = jnp.where(either, mixed, -jnp.inf)
    losses = beta * divergence(p, mixed) + (1 - beta) * divergence(q, mixed)
    return over_positions(heat**2 * losses, where)


def mixed_targets(
    student: jax.Array,
    teachers: Sequence[jax.Array] | jax.Array,
    *,
    temperature: float | jax.Array,
    weights: jax.Array | Sequence[float] | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """Learn from several teachers at once: from the mean of what they find likely.

    With w the weights,

        T^2 KL(sum over m of w_m softmax(teacher_m / T) || softmax(student / T))

    Args:
        student: logits `[..., C]`.
        teachers: logits of each teacher `[..., C]`, a sequence or `[M, ..., C]`.
        temperature: as of `soft_targets`.
        weights: `[M]`, not negative, summing to 1; by default all are equal.
        where: as of `soft_targets`.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: as `soft_targets`.
        ValueError: as `soft_targets`; or there is no teacher, or weights that are not
            one for each teacher, are negative or do not sum to 1 (unless they are
            traced, when their values are not known).

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 1
        (an ensemble into one).
    """
    name = "mixed_targets"
    every = list(teachers)
    if not every:
        raise ValueError(f"{name}: there are no teachers")
    pairs = [as_logits(name, student, teacher, where) for teacher in every]
    student = pairs[0][0]
    shares = as_weights(name, weights, len(every), student.dtype)
    heat = as_heat(name, temperature, student.dtype)
    student_log = jax.nn.log_softmax(student / heat, axis=-1)
    likely = jnp.stack([jax.nn.softmax(t / heat, axis=-1) for _, t in pairs])
    shares = shares.reshape(-1, *[1] * student.ndim)
    mixed = jax.lax.stop_gradient(jnp.log(jnp.sum(shares * likely, axis=0)))
    return over_positions(heat**2 * divergence(mixed, student_log), where)
