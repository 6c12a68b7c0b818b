"""Learning how features change from one layer to another."""

import jax
import jax.numpy as jnp

from jcompress.distillation._checks import as_floats, blank, check_where

Pair = tuple[jax.Array, jax.Array]


def solution_flow(
    student: Pair, teacher: Pair, *, where: jax.Array | None = None
) -> jax.Array:
    """Match the products of the features of two layers, the flow between them (FSP).

    With G_ij = mean over positions of first_i second_j,

        mean over i, j of (G_student - G_teacher)_ij^2

    Args:
        student: the features of an earlier and a later layer, `[B, ..., M]` and
            `[B, ..., N]`, at the same positions; computed in float32.
        teacher: the same shapes; no gradient flows to them.
        where: Boolean `[B, ...]`, True at the positions that count; whatever stands at
            the others has no effect.

    Returns:
        Losses `[B]`, float32 (float64 if the student's features are).

    Raises:
        TypeError: features that are not floating point, or that come not in pairs; a
            `where` that is not Boolean.
        ValueError: shapes that do not fit.

    References:
        Yim et al. 2017, "A Gift from Knowledge Distillation", equations 1 and 2 (there
        the sum over i and j, here the mean).
    """
    name = "solution_flow"
    for owner, pair in (("student", student), ("teacher", teacher)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                f"{name}: the {owner}'s features must be a pair, of an earlier and a "
                "later layer"
            )
    firsts = as_floats(name, student[0], teacher[0])
    seconds = as_floats(name, student[1], teacher[1])
    for which, (ours, theirs) in (("earlier", firsts), ("later", seconds)):
        if ours.ndim < 3 or ours.shape != theirs.shape:
            raise ValueError(
                f"{name}: the student's {which} features have shape {ours.shape}, the "
                f"teacher's {theirs.shape}; both must be [batch, positions..., "
                "channels]"
            )
    if firsts[0].shape[:-1] != seconds[0].shape[:-1]:
        raise ValueError(
            f"{name}: the earlier features have shape {firsts[0].shape}, the later "
            f"ones {seconds[0].shape}; all axes but the last must agree (pool the "
            "larger ones)"
        )
    check_where(name, where, firsts[0].shape[:-1], "features")
    ours, theirs = (
        _products(blank(where, first), blank(where, second), where)
        for first, second in zip(firsts, seconds, strict=True)
    )
    return jnp.mean(jnp.square(ours - theirs), axis=(1, 2))


def _products(
    first: jax.Array, second: jax.Array, where: jax.Array | None
) -> jax.Array:
    batch = len(first)
    flat = [x.reshape(batch, -1, x.shape[-1]) for x in (first, second)]
    sums = jnp.einsum("bpi,bpj->bij", *flat)
    if where is None:
        return sums / flat[0].shape[1]
    number = jnp.sum(where.reshape(batch, -1), axis=-1, dtype=sums.dtype)
    return sums / jnp.maximum(number, 1)[:, None, None]
