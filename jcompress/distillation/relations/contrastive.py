"""Telling a teacher's view of an example from its views of others (CRD)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.distillation._checks import (
    as_floats,
    blank,
    check_where,
    is_known,
    unit,
)


class Bank(NamedTuple):
    """The last embeddings of every example of a data set: a state that you carry.

    Attributes:
        student: `[N, D]`, rows of length 1.
        teacher: `[N, D]`, rows of length 1.
    """

    student: jax.Array
    teacher: jax.Array


def init_bank(key: jax.Array, *, examples: int, size: int, dtype: Any = None) -> Bank:
    """A bank of random directions, for the first epoch.

    Args:
        key: a key of `jax.random`.
        examples: how many the data set has, N.
        size: of an embedding, D.
        dtype: of the rows; float32 by default.

    Raises:
        ValueError: no examples, or embeddings of size 0.
    """
    if examples < 1 or size < 1:
        raise ValueError(
            f"init_bank: {examples} examples and embeddings of size {size}; both must "
            "be at least 1"
        )
    rows = jax.random.normal(key, (2, examples, size), jnp.float32)
    student, teacher = unit(rows).astype(jnp.float32 if dtype is None else dtype)
    return Bank(student, teacher)


def draw_negatives(
    key: jax.Array, indices: jax.Array, *, count: int, examples: int
) -> jax.Array:
    """For each example of a batch, the numbers of others to tell it from.

    Args:
        key: a key of `jax.random`.
        indices: int `[B]`, the numbers of the batch's examples in the data set.
        count: how many others for each.
        examples: how many the data set has; at least 2.

    Returns:
        int32 `[B, count]`, evenly drawn, never the example itself.
    """
    if examples < 2:
        raise ValueError(f"draw_negatives: {examples} examples have no others")
    shape = (len(indices), count)
    steps = jax.random.randint(key, shape, 1, examples, jnp.int32)
    return (jnp.asarray(indices).astype(jnp.int32)[:, None] + steps) % examples


def contrastive(
    student: jax.Array,
    teacher: jax.Array,
    *,
    bank: Bank,
    negatives: jax.Array,
    projections: tuple[jax.Array, jax.Array] | None = None,
    temperature: float = 0.07,
    where: jax.Array | None = None,
) -> jax.Array:
    """Pull an example's two embeddings together, and away from other examples' (CRD).

    With s and t the embeddings, scaled to length 1, K others, Z the mean of e^(s t / T)
    over random directions, and h(s, t) = e^(s t / T) / (e^(s t / T) + K Z), the loss of
    an example is

        -log h(s, t) - sum over others of log(1 - h(s, t_other))
        -log h(s, t) - sum over others of log(1 - h(s_other, t))

    the others' embeddings being those of the bank. h is the probability that a pair
    belongs together; its mean begins near 1 / (K + 1). The loss is neither 0 nor least
    where the student equals the teacher.

    Args:
        student: features `[B, D_s]`, of any floating dtype; computed in float32.
        teacher: features `[B, D_t]`; no gradient flows to them (but to the teacher's
            projection, which is trained with the student).
        bank: the embeddings of the data set; no gradient flows to them.
        negatives: int `[B, K]`, rows of the bank; `draw_negatives` makes them.
        projections: `[D_s, D]` and `[D_t, D]`, parameters trained with the student;
            None requires features of the bank's size.
        temperature: a number above 0.
        where: Boolean `[B]`, True at the examples that count; whatever stands at the
            others has no effect.

    Returns:
        Losses in nats `[B]`, float32 (float64 if `student` is); 0 where an example
        does not count.

    Raises:
        TypeError: features that are not floating point, negatives that are no integers,
            a `where` that is not Boolean.
        ValueError: shapes that do not fit; a temperature not above 0; known negatives
            that are no rows of the bank.

    References:
        Tian et al. 2020, "Contrastive Representation Distillation", section 3 (there K
        is called N; in its text Z is 1 over the number of examples, the authors' code
        takes the mean over the first batch).
    """
    name = "contrastive"
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"{name}: the temperature must be above 0 and finite, not {temperature}"
        )
    ours, theirs = _embedded(name, student, teacher, projections, bank, where)
    _check_negatives(name, negatives, bank, len(ours), where)
    rows = jnp.asarray(negatives)
    if where is not None:
        rows = jnp.where(where[:, None], rows, 0)
    others = [
        jax.lax.stop_gradient(side[rows]).astype(ours.dtype)
        for side in (bank.teacher, bank.student)
    ]
    level = math.log(rows.shape[1]) + _log_mean(temperature, ours.shape[-1])
    together = jnp.sum(ours * theirs, axis=-1) / temperature - level
    losses = 2 * jax.nn.softplus(-together)
    for anchor, other in zip((ours, theirs), others, strict=True):
        near = jnp.einsum("bd,bkd->bk", anchor, other) / temperature - level
        losses += jnp.sum(jax.nn.softplus(near), axis=-1)
    return blank(where, losses)


def update_bank(
    bank: Bank,
    student: jax.Array,
    teacher: jax.Array,
    *,
    indices: jax.Array,
    projections: tuple[jax.Array, jax.Array] | None = None,
    momentum: float = 0.5,
    where: jax.Array | None = None,
) -> Bank:
    """The bank after a step: the batch's rows move towards their new embeddings.

    Args:
        bank: the embeddings of the data set.
        student: as of `contrastive`.
        teacher: as of `contrastive`.
        indices: int `[B]`, the numbers of the batch's examples, all different.
        projections: as of `contrastive`.
        momentum: how much of the old rows stays, in [0, 1].
        where: as of `contrastive`; rows of examples that do not count stay.

    Returns:
        The new bank, its rows of length 1; no gradient flows through it.

    Raises:
        TypeError, ValueError: as `contrastive`.

    References:
        Tian et al. 2020, "Contrastive Representation Distillation", section 3; Wu et
        al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
        Discrimination", section 3.
    """
    name = "update_bank"
    if not 0 <= momentum <= 1:
        raise ValueError(f"{name}: the momentum must be from 0 to 1, not {momentum}")
    new = _embedded(name, student, teacher, projections, bank, where)
    if jnp.shape(indices) != (len(new[0]),):
        raise ValueError(
            f"{name}: the indices have shape {jnp.shape(indices)}, but a batch of "
            f"{len(new[0])} needs {(len(new[0]),)}"
        )
    sides = []
    for side, rows in zip(bank, new, strict=True):
        old = side[indices].astype(rows.dtype)
        moved = unit(momentum * old + (1 - momentum) * jax.lax.stop_gradient(rows))
        if where is not None:
            moved = jnp.where(where[:, None], moved, old)
        sides.append(side.at[indices].set(moved.astype(side.dtype)))
    return Bank(*sides)


def _embedded(
    loss: str,
    student: jax.Array,
    teacher: jax.Array,
    projections: tuple[jax.Array, jax.Array] | None,
    bank: Bank,
    where: jax.Array | None,
) -> list[jax.Array]:
    """Both embeddings [B, D], rows of length 1."""
    both = as_floats(loss, student, teacher)
    if both[0].ndim != 2 or both[1].ndim != 2 or len(both[0]) != len(both[1]):
        raise ValueError(
            f"{loss}: the student's features have shape {both[0].shape}, the teacher's "
            f"{both[1].shape}; both must be [batch, width]"
        )
    check_where(loss, where, both[0].shape[:1], "features")
    size = bank.student.shape[-1]
    made = []
    for number, owner in enumerate(("student", "teacher")):
        x = blank(where, both[number])
        if projections is not None:
            matrix = projections[number]
            if matrix.shape != (x.shape[-1], size):
                raise ValueError(
                    f"{loss}: the {owner}'s projection has shape {matrix.shape}, but "
                    f"features of width {x.shape[-1]} and a bank of width {size} need "
                    f"{(x.shape[-1], size)}"
                )
            x = x @ matrix.astype(x.dtype)
        elif x.shape[-1] != size:
            raise ValueError(
                f"{loss}: the {owner} is {x.shape[-1]} wide and the bank {size}; give "
                "projections"
            )
        made.append(unit(x))
    return made


def _log_mean(temperature: float, size: int) -> float:
    """The logarithm of the mean of e^(cosine / temperature) over random directions.

    By the power series of the mean: the even moments of a coordinate on the sphere.
    """
    k = np.arange(1, int(1 / temperature) + 100)
    ratios = -2 * math.log(2 * temperature) - np.log(k * (size / 2 + k - 1))
    return float(np.logaddexp.reduce(np.append(0.0, np.cumsum(ratios))))


def _check_negatives(
    loss: str, negatives: Any, bank: Bank, batch: int, where: Any
) -> None:
    examples = len(bank.student)
    dtype = jnp.result_type(negatives)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{loss}: the negatives are of dtype {dtype}; give row numbers")
    shape = jnp.shape(negatives)
    if len(shape) != 2 or shape[0] != batch or shape[1] < 1:
        raise ValueError(
            f"{loss}: the negatives have shape {shape}, but a batch of {batch} needs "
            f"({batch}, K) with K at least 1"
        )
    if is_known(negatives) and is_known(where):
        known = np.asarray(negatives)
        known = known if where is None else known[np.asarray(where)]
        if known.size and not (known.min() >= 0 and known.max() < examples):
            raise ValueError(
                f"{loss}: the negatives go from {known.min()} to {known.max()}, but "
                f"the bank has rows from 0 to {examples - 1}"
            )
