"""Learning from a teacher's hidden states, which `jcompress.statistics.tap` returns."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import over_positions, unit
from jcompress.distillation.features._aligning import aligned


def hidden_mse(
    student: jax.Array,
    teacher: jax.Array,
    *,
    projection: jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """Match hidden states by the mean squared error of their entries.

        mean over d of (student @ projection - teacher)_d^2

    Args:
        student: `[..., D_s]`, of any floating dtype; computed in float32.
        teacher: `[..., D_t]`, the leading axes those of `student`; no gradient flows
            to it.
        projection: `[D_s, D_t]`, a parameter trained with the student; None requires
            `D_s == D_t`.
        where: Boolean `[B, ...]`, all axes but the last, True at the positions (such
            as tokens) that count; whatever stands at the others has no effect.

    Returns:
        Losses, float32 (float64 if `student` is). Without `where` one for each
        position, `[...]`. With it one for each example, `[B]`: the mean over its
        positions that count, 0 if none does.

    Raises:
        TypeError: an input that is not floating point, a `where` that is not Boolean.
        ValueError: shapes that do not fit.

    References:
        Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3
        (there half the sum over d, here the mean).
    """
    student, teacher = aligned("hidden_mse", student, teacher, projection, where)
    losses = jnp.mean(jnp.square(student - teacher), axis=-1)
    return over_positions(losses, where)


def hidden_cosine(
    student: jax.Array,
    teacher: jax.Array,
    *,
    projection: jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """Match the directions of hidden states: one minus the cosine of their angle.

    The loss lies in [0, 2]; against a vector of zeros it is 1, without a gradient.

    Args:
        student: as in `hidden_mse`.
        teacher: as in `hidden_mse`.
        projection: as in `hidden_mse`.
        where: as in `hidden_mse`.

    Returns:
        As `hidden_mse`.

    Raises:
        TypeError: as `hidden_mse`.
        ValueError: as `hidden_mse`.

    References:
        Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 2.
    """
    student, teacher = aligned("hidden_cosine", student, teacher, projection, where)
    cosine = jnp.sum(unit(student) * unit(teacher), axis=-1)
    return over_positions(1 - cosine, where)
