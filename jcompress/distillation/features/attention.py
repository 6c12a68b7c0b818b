"""Learning where a teacher looks: maps of activity, and scores of attention."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import (
    as_floats,
    blank,
    check_where,
    over_positions,
    unit,
)


def attention_transfer(
    student: jax.Array,
    teacher: jax.Array,
    *,
    power: int = 2,
    where: jax.Array | None = None,
) -> jax.Array:
    """Match where in an image (or a sequence) features are active, whatever channels.

    With q the vector over all positions of the sum over c of |feature_c|^power, scaled
    to length 1,

        sum over positions of (q_student - q_teacher)^2

    which is in [0, 2]. Numbers of channels may differ; no projection is needed.

    Args:
        student: features `[B, ..., C_s]`, of any floating dtype; computed in float32.
            Make the positions agree first, for example by `jax.image.resize`.
        teacher: features `[B, ..., C_t]`; no gradient flows to them.
        power: a positive even number or 1.
        where: Boolean `[B, ...]`, True at the positions that count; whatever stands at
            the others has no effect.

    Returns:
        Losses `[B]`, float32 (float64 if `student` is).

    Raises:
        TypeError: features that are not floating point, a `where` that is not Boolean.
        ValueError: shapes that do not fit; a power below 1.

    References:
        Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", equation 2
        with p = 2 (there the norm, here its square; the authors' code takes the mean
        over the positions).
    """
    name = "attention_transfer"
    student, teacher = as_floats(name, student, teacher)
    if student.ndim < 3 or student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"{name}: the student's features have shape {student.shape}, the teacher's "
            f"{teacher.shape}; both must be [batch, positions..., channels] and agree "
            "in all axes but the last"
        )
    if isinstance(power, bool) or not isinstance(power, int) or power < 1:
        raise ValueError(
            f"{name}: the power must be a whole number from 1, not {power!r}"
        )
    check_where(name, where, student.shape[:-1], "features")
    maps = [_activity(blank(where, x), power) for x in (student, teacher)]
    return jnp.sum(jnp.square(maps[0] - maps[1]), axis=-1)


def _activity(features: jax.Array, power: int) -> jax.Array:
    # The map does not depend on the scale, and powers of it overflow.
    axes = tuple(range(1, features.ndim))
    largest = jax.lax.stop_gradient(
        jnp.max(jnp.abs(features), axis=axes, keepdims=True)
    )
    near = jnp.abs(features / jnp.where(largest > 0, largest, jnp.inf))
    sums = jnp.sum(near**power, axis=-1)
    return unit(sums.reshape(len(sums), -1))


def attention_scores(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Match the scores of attention heads, before their softmax (TinyBERT).

        mean over heads, queries and keys of (student - teacher)^2

    Args:
        student: scores `[B, heads, T, T]`, finite, without the mask of the attention.
        teacher: the same shape; no gradient flows to them.
        where: Boolean `[B, T]`, True at the tokens that count, as queries and as keys;
            whatever stands at the others has no effect.

    Returns:
        Losses `[B]`, float32 (float64 if `student` is); 0 for an example without a
        token that counts.

    Raises:
        TypeError: scores that are not floating point, a `where` that is not Boolean.
        ValueError: shapes that do not fit.

    References:
        Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language
        Understanding", equation 7.
    """
    name = "attention_scores"
    student, teacher = as_floats(name, student, teacher)
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"{name}: the student's scores have shape {student.shape}, the teacher's "
            f"{teacher.shape}; both must be [batch, heads, queries, keys]"
        )
    batch, _, queries, keys = student.shape
    if where is not None and queries != keys:
        raise ValueError(
            f"{name}: where speaks of tokens, but there are {queries} queries and "
            f"{keys} keys"
        )
    check_where(name, where, (batch, queries), "scores")
    pairs = None
    if where is not None:
        pairs = where[:, None, :, None] & where[:, None, None, :]
        pairs = jnp.broadcast_to(pairs, student.shape)
    apart = jnp.square(blank(pairs, student) - blank(pairs, teacher))
    if pairs is None:
        return jnp.mean(apart, axis=(1, 2, 3))
    return over_positions(apart, pairs)
