"""The likeliest classes of a teacher, and the loss that learns from them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.distillation._checks import (
    as_float,
    as_heat,
    blank,
    check_classes,
    check_float,
    check_where,
    divergence,
    over_positions,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("indices", "logs", "rest"),
    meta_fields=("classes", "temperature"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TopProbabilities:
    """The k largest of each position's softened probabilities; a pytree.

    Attributes:
        indices: integers `[..., k]`, class numbers.
        logs: floats `[..., k]`, logarithms of their probabilities, largest first.
        rest: float32 `[...]`, the logarithm of the sum of all other probabilities.
        classes: how many there are, C.
        temperature: by which the logits were divided.
    """

    indices: Any
    logs: Any
    rest: Any
    classes: int
    temperature: float

    def __getitem__(self, item: Any) -> "TopProbabilities":
        """Some of the positions, by indices of the leading axes."""
        indices, logs, rest = (x[item] for x in (self.indices, self.logs, self.rest))
        return dataclasses.replace(self, indices=indices, logs=logs, rest=rest)

    def dense_log(self) -> jax.Array:
        """Logarithms of probabilities `[..., C]`; the rest is shared out evenly."""
        logs = jnp.asarray(self.logs).astype(jnp.float32)
        spare = self.classes - logs.shape[-1]
        even = jnp.asarray(self.rest) - np.float32(np.log(max(spare, 1)))
        whole = jnp.broadcast_to(even[..., None], (*even.shape, self.classes))
        index = jnp.asarray(self.indices).astype(jnp.int32)
        return jnp.put_along_axis(whole, index, logs, axis=-1, inplace=False)


def keep_top(
    teacher: jax.Array, k: int, *, temperature: float = 1.0
) -> TopProbabilities:
    """Keep the k likeliest classes of each position, and how likely the rest is.

    Args:
        teacher: logits `[..., C]`; no gradient flows to them.
        k: how many, from 1 to C.
        temperature: of the loss that will be used; a number above 0. It cannot be
            changed afterwards, as what is left would have to be known in full.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: a `k` or a temperature out of range.
    """
    name = "keep_top"
    check_float(name, "the teacher's input", teacher)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher).astype(jnp.float32))
    classes = teacher.shape[-1]
    check_classes(name, teacher)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= classes:
        raise ValueError(f"{name}: k must be from 1 to {classes} classes, not {k!r}")
    heat = as_heat(name, temperature, teacher.dtype)
    log = jax.nn.log_softmax(teacher / heat, axis=-1)
    logs, indices = jax.lax.top_k(log, k)
    kept = jax.nn.one_hot(indices, classes, dtype=jnp.bool_, axis=-1).any(axis=-2)
    rest = jax.nn.logsumexp(jnp.where(kept, -jnp.inf, log), axis=-1)
    small = jnp.uint16 if classes <= 2**16 else jnp.int32
    return TopProbabilities(
        indices=indices.astype(small),
        logs=logs.astype(jnp.float16),
        rest=rest,
        classes=classes,
        temperature=float(temperature),
    )


def top_targets(
    student: jax.Array,
    teacher: TopProbabilities,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """Learn from stored probabilities: `soft_targets` with the rest as one class.

    With p the stored probabilities, r what they leave, and T their temperature,

        T^2 (sum over stored c of p_c log(p_c / q_c) + r log(r / (1 - sum of q_c)))

    where q are the softened probabilities of the student. It is at most `soft_targets`
    of the whole distributions, and equals it if all classes are stored (up to the
    rounding of the file).

    Args:
        student: logits `[..., C]`, of any floating dtype; computed in float32.
        teacher: of the same positions.
        where: as of `jcompress.distillation.logits.soft_targets`.

    Returns:
        As `jcompress.distillation.logits.soft_targets`.

    Raises:
        TypeError: logits that are not floating point, a `where` that is not Boolean.
        ValueError: other positions or classes than those stored; a `where` of another
            shape.
    """
    name = "top_targets"
    student = as_float(name, student)
    shape = (*jnp.shape(teacher.rest), teacher.classes)
    if student.shape != shape:
        raise ValueError(
            f"{name}: the student's logits have shape {student.shape}, those stored "
            f"{shape}"
        )
    check_where(name, where, shape[:-1])
    student = blank(where, student)
    index = blank(where, jnp.asarray(teacher.indices).astype(jnp.int32))
    logs = blank(where, jax.lax.stop_gradient(_joined(teacher, student.dtype)))
    log = jax.nn.log_softmax(student / teacher.temperature, axis=-1)
    own = jnp.take_along_axis(log, index, axis=-1)
    kept = jnp.put_along_axis(
        jnp.zeros(log.shape, jnp.bool_), index, True, axis=-1, inplace=False
    )
    # Where all classes are stored nothing is left, and its logarithm has no gradient.
    left = jnp.where(kept, jnp.finfo(log.dtype).min, log)
    rest = jax.nn.logsumexp(left, axis=-1, keepdims=True)
    losses = divergence(logs, jnp.concatenate([own, rest], axis=-1))
    return over_positions(teacher.temperature**2 * losses, where)


def _joined(teacher: TopProbabilities, dtype: Any) -> jax.Array:
    """The stored logarithms and that of the rest, [..., k + 1], of sum 1."""
    rest = jnp.asarray(teacher.rest).astype(dtype)[..., None]
    logs = jnp.asarray(teacher.logs).astype(dtype)
    joined = jnp.concatenate([logs, rest], axis=-1)
    return jax.nn.log_softmax(joined, axis=-1)  # what float16 has rounded
