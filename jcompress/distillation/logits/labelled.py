"""Losses that know the right class: labels alone, or beside what a teacher says."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import (
    as_float,
    as_heat,
    as_labels,
    as_logits,
    blank,
    check_classes,
    check_fraction,
    check_where,
    divergence,
    over_positions,
)


def smoothed_labels(
    student: jax.Array,
    labels: jax.Array,
    *,
    smoothing: float = 0.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Learn from labels, or from sequences that a teacher wrote: cross-entropy.

    With e the smoothing and C classes,

        -(1 - e) log p_label - e / C sum over c of log p_c

    Distillation at the level of sequences is this loss on tokens that the teacher
    generated (`jcompress.distillation.sequences.sample_tokens`).

    Args:
        student: logits `[..., C]`, of any floating dtype; computed in float32.
        labels: integers `[...]` from 0 to C - 1; the loss of another is NaN where it
            is traced, so that its value is not known beforehand.
        smoothing: how much of the probability all classes share, in [0, 1].
        where: as of `soft_targets`; a label where it is False may be any number.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: logits that are not floating point, labels that are no integers, a
            `where` that is not Boolean.
        ValueError: shapes that do not fit, a smoothing out of [0, 1], a known label
            that is no class.

    References:
        Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer
        Vision", section 7; Kim and Rush 2016, "Sequence-Level Knowledge
        Distillation", section 3.2.
    """
    name = "smoothed_labels"
    check_fraction(name, "the smoothing", smoothing, ends=True)
    student = as_float(name, student)
    check_classes(name, student)
    check_where(name, where, student.shape[:-1])
    labels, valid = as_labels(
        name, labels, where, student.shape[:-1], student.shape[-1]
    )
    log = jax.nn.log_softmax(blank(where, student), axis=-1)
    losses = -(1 - smoothing) * _at(log, labels)
    if smoothing:
        losses -= smoothing * jnp.mean(log, axis=-1)
    return over_positions(jnp.where(valid, losses, jnp.nan), where)


def decoupled_targets(
    student: jax.Array,
    teacher: jax.Array,
    *,
    labels: jax.Array,
    temperature: float | jax.Array,
    target: float = 1.0,
    others: float = 8.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Weigh what a teacher says of the right class apart from the rest (DKD).

    With b the softened probabilities of the right class and of all others together,
    and q those of the others among themselves,

        T^2 (target KL(b_teacher || b_student) + others KL(q_teacher || q_student))

    `soft_targets` is the same with `others` replaced by the teacher's doubt, 1 less its
    probability of the right class, which hides what a confident teacher knows.

    Args:
        student: logits `[..., C]`, of at least two classes.
        teacher: logits `[..., C]`; no gradient flows to them.
        labels: as of `smoothed_labels`.
        temperature: as of `soft_targets`.
        target: weight of the first part, alpha of the paper.
        others: weight of the second part, beta of the paper, there between 1 and 10.
        where: as of `smoothed_labels`.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: as `soft_targets` and `smoothed_labels`.
        ValueError: as `soft_targets` and `smoothed_labels`; or a single class.

    References:
        Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7.
    """
    name = "decoupled_targets"
    student, teacher = as_logits(name, student, teacher, where, least=2)
    heat = as_heat(name, temperature, student.dtype)
    labels, valid = as_labels(
        name, labels, where, student.shape[:-1], student.shape[-1]
    )
    pairs = []
    for logits in (student / heat, teacher / heat):
        own, rest = _at(logits, labels), _without(logits, labels)
        pair = jnp.stack([own, jax.nn.logsumexp(rest, axis=-1)], axis=-1)
        pairs.append((jax.nn.log_softmax(pair), jax.nn.log_softmax(rest)))
    (student_pair, student_rest), (teacher_pair, teacher_rest) = pairs
    losses = target * divergence(teacher_pair, student_pair)
    losses += others * divergence(teacher_rest, student_rest)
    return over_positions(jnp.where(valid, heat**2 * losses, jnp.nan), where)


def normalized_targets(
    student: jax.Array,
    teacher: jax.Array,
    *,
    labels: jax.Array,
    temperature: float | jax.Array = 1.0,
    others: float = 1.5,
    where: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy with the label as far as the teacher trusts it, and the rest (NKD).

    With p the probabilities, y the label and q the softened probabilities of the other
    classes among themselves,

        -p_teacher(y) log p_student(y)
        - others T^2 sum over c of q_teacher(c) log q_student(c)

    It is a cross-entropy and holds the label's part already: it is not 0, and not
    least, where the student equals the teacher.

    Args:
        student: logits `[..., C]`, of at least two classes.
        teacher: logits `[..., C]`; no gradient flows to them.
        labels: as of `smoothed_labels`.
        temperature: as of `soft_targets`; of the second part alone.
        others: weight of the second part, gamma of the paper.
        where: as of `smoothed_labels`.

    Returns:
        As `soft_targets`.

    Raises:
        TypeError: as `decoupled_targets`.
        ValueError: as `decoupled_targets`.

    References:
        Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation:
        A Unified Approach with Normalized Loss and Customized Soft Labels" (NKD).
    """
    name = "normalized_targets"
    student, teacher = as_logits(name, student, teacher, where, least=2)
    heat = as_heat(name, temperature, student.dtype)
    labels, valid = as_labels(
        name, labels, where, student.shape[:-1], student.shape[-1]
    )
    log = _at(jax.nn.log_softmax(student, axis=-1), labels)
    losses = -_at(jax.nn.softmax(teacher, axis=-1), labels) * log
    student_rest, teacher_rest = (
        jax.nn.log_softmax(_without(logits / heat, labels), axis=-1)
        for logits in (student, teacher)
    )
    possible = teacher_rest > -jnp.inf
    cross = jnp.exp(teacher_rest) * jnp.where(possible, student_rest, 0)
    losses -= others * heat**2 * jnp.sum(cross, axis=-1)
    return over_positions(jnp.where(valid, losses, jnp.nan), where)


def _at(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def _without(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logits [..., C] without those of the labels, [..., C - 1]."""
    classes = logits.shape[-1]
    index = jnp.arange(classes - 1, dtype=labels.dtype)
    index = jnp.broadcast_to(index, (*labels.shape, classes - 1))
    index = index + (index >= labels[..., None]).astype(index.dtype)
    return jnp.take_along_axis(logits, index, axis=-1)
