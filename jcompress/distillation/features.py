"""Learning from a teacher's hidden states, which `jcompress.statistics.tap` returns."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import as_floats


def hidden_mse(
    student: jax.Array,
    teacher: jax.Array,
    *,
    projection: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Match hidden states by the mean squared error of their entries.

        mean over d of (student @ projection - teacher)_d^2

    Args:
        student: `[..., D_s]`, of any floating dtype; computed in float32.
        teacher: `[..., D_t]`, the leading axes those of `student`; no gradient flows
            to it.
        projection: `[D_s, D_t]`, a parameter trained with the student; None requires
            `D_s == D_t`.
        mask: Boolean `[..., T]`, all axes but the last, True at the tokens that count.
            With it the losses are averaged over these tokens, and whatever stands at
            the others has no effect.

    Returns:
        Losses, float32 (float64 if `student` is). Without a mask one for each
        position, `[...]`. With one, one for each sequence, the last axis of the mask
        being reduced; a sequence without a token that counts has loss 0.

    Raises:
        TypeError: an input that is not floating point, a mask that is not Boolean.
        ValueError: shapes that do not fit.

    References:
        Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3
        (there half the sum over d, here the mean).
    """
    student, teacher, mask = _aligned("hidden_mse", student, teacher, projection, mask)
    losses = jnp.mean(jnp.square(student - teacher), axis=-1)
    return _over_tokens(losses, mask)


def hidden_cosine(
    student: jax.Array,
    teacher: jax.Array,
    *,
    projection: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Match the directions of hidden states: one minus the cosine of their angle.

    The loss lies in [0, 2]; against a vector of zeros it is 1, without a gradient.

    Args:
        student: as in `hidden_mse`.
        teacher: as in `hidden_mse`.
        projection: as in `hidden_mse`.
        mask: as in `hidden_mse`.

    Returns:
        As `hidden_mse`.

    Raises:
        TypeError: as `hidden_mse`.
        ValueError: as `hidden_mse`.

    References:
        Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 2.
    """
    student, teacher, mask = _aligned(
        "hidden_cosine", student, teacher, projection, mask
    )
    cosine = jnp.sum(_unit(student) * _unit(teacher), axis=-1)
    return _over_tokens(1 - cosine, mask)


def _unit(x: jax.Array) -> jax.Array:
    # Scaled by the largest entry first, so that no square overflows or vanishes. The
    # direction does not depend on that scale, so neither does the gradient; divided
    # by infinity, a vector of zeros stays zero and gets no gradient.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    near = x / jnp.where(largest > 0, largest, jnp.inf)
    square = jnp.sum(jnp.square(near), axis=-1, keepdims=True)
    return near * jax.lax.rsqrt(jnp.where(square > 0, square, jnp.ones_like(square)))


def _aligned(
    loss: str,
    student: jax.Array,
    teacher: jax.Array,
    projection: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    wide, constant = as_floats(loss, student, teacher)
    _check_shapes(loss, wide, constant, projection, mask)
    if mask is not None:
        # Before any arithmetic, as 0 times a NaN is no 0 in the gradient.
        wide = jnp.where(mask[..., None], wide, jnp.zeros((), wide.dtype))
        constant = jnp.where(mask[..., None], constant, jnp.zeros((), wide.dtype))
    if projection is not None:
        wide = jnp.matmul(wide, projection.astype(wide.dtype))
    return wide, constant, mask


def _check_shapes(
    loss: str,
    student: jax.Array,
    teacher: jax.Array,
    projection: jax.Array | None,
    mask: jax.Array | None,
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
    if mask is None:
        return
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{loss}: the mask is of dtype {mask.dtype}; it must be bool")
    if mask.ndim == 0 or mask.shape != student.shape[:-1]:
        raise ValueError(
            f"{loss}: the mask has shape {mask.shape}, but hidden states of shape "
            f"{student.shape} need {student.shape[:-1]}, with at least one axis"
        )


def _over_tokens(losses: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return losses
    # The loss of two vectors of zeros need not be 0.
    counted = jnp.where(mask, losses, jnp.zeros((), losses.dtype))
    tokens = jnp.sum(mask, axis=-1, dtype=losses.dtype)
    return jnp.sum(counted, axis=-1) / jnp.maximum(tokens, jnp.ones_like(tokens))
