"""What a training minimizes: the loss of the labels, and what a teacher says."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.distillation import Loss
from jcompress.distillation.logits import soft_targets
from jcompress.models.work import Lessons

Batch = dict[str, Any]
"""`inputs`, the arguments of the model, and `targets`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teaching:
    """What is learnt from the model as it was before the recipe.

    Attributes:
        temperature: softens the classes that it and the student tell; None for squared
            differences of all outputs, over the mean square of the teacher's.
        weight: of this, in (0, 1]; the rest is for the loss of the targets.
    """

    temperature: float | None
    weight: float

    @property
    def name(self) -> str:
        """What curves call it."""
        return "squares" if self.temperature is None else "soft targets"

    def loss(self, student: Any, teacher: Any) -> jax.Array:
        """One loss for each example, or more."""
        if self.temperature is None:
            return relative_squares(student, teacher)
        return soft_targets(student, teacher, temperature=self.temperature)


def relative_squares(student: Any, teacher: Any) -> jax.Array:
    """Squared differences of outputs, over the mean square of the teacher's.

    Args:
        student: arrays `[B, ...]`; those that hold no floats have no say.
        teacher: the same.

    Returns:
        float32 `[B]`, the sum over the arrays, each of which is a mean.
    """
    total: Any = 0.0
    pairs = zip(jax.tree.leaves(student), jax.tree.leaves(teacher), strict=True)
    for own, other in pairs:
        if not jnp.issubdtype(own.dtype, jnp.floating):
            continue
        own, wanted = own.astype(jnp.float32), other.astype(jnp.float32)
        scale = jnp.maximum(jnp.mean(jnp.square(wanted)), jnp.float32(1e-30))
        rows = jnp.square(own - wanted).reshape(own.shape[0], -1)
        total = total + jnp.mean(rows, axis=1) / scale
    return jnp.asarray(total)


def losses_of(teaching: Teaching | None, lessons: Lessons) -> dict[str, Loss]:
    """The losses of `jcompress.distillation.distill_step`, by name."""
    found: dict[str, Loss] = {}
    if teaching is not None:
        found[teaching.name] = Loss(
            fn=lambda student, teacher, batch: teaching.loss(student, teacher),
            weight=teaching.weight,
        )
    rest = 1.0 if teaching is None else 1 - teaching.weight
    if rest > 0:
        assert lessons.loss is not None
        found["targets"] = Loss(fn=_labelled(lessons.loss), weight=rest)
    return found


def _labelled(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Batch], Any]:
    def each(student: Any, teacher: Any, batch: Batch) -> jax.Array:
        size = jax.tree.leaves(batch["inputs"])[0].shape[0]
        value = jnp.asarray(loss(student, batch["targets"]))
        # A loss that is a mean already counts as often as there are examples.
        return value if value.ndim else jnp.broadcast_to(value, (size,))

    return each


def check_lessons(where: str, teaching: Teaching | None, lessons: Lessons) -> None:
    """Refuse batches, a loss or outputs that do not fit; nothing is computed.

    Args:
        where: begins the message.
        teaching: what is learnt from the model as it was.
        lessons: what is learnt from.

    Raises:
        ValueError: says what is missing, or of the wrong shape.
    """
    needs_loss = teaching is None or teaching.weight < 1
    if needs_loss and lessons.loss is None:
        rest = "" if teaching is None else f", which have {1 - teaching.weight:.3g}"
        other = "" if teaching is None else ", or weight = 1"
        raise ValueError(
            f"{where}: there is no loss of the targets{rest}; give 'loss', a function "
            f"loss(outputs, targets), and 'training'{other}"
        )
    if not lessons.batches:
        raise ValueError(
            f"{where}: there is nothing to learn from; give 'training', a list of "
            "pairs (inputs, targets)"
        )
    seen = set()
    for number, (inputs, targets) in enumerate(lessons.batches):
        batch = {"inputs": inputs, "targets": targets}
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), batch
        )
        key = str(shapes)
        if key not in seen:
            seen.add(key)
            _check_batch(f"{where}: training batch {number}", teaching, lessons, shapes)


def _check_batch(
    where: str, teaching: Teaching | None, lessons: Lessons, batch: Batch
) -> None:
    leaves = jax.tree.leaves(batch)
    first = {x.shape[:1] for x in leaves}
    if () in first or len(first) != 1:
        told = ", ".join(str(list(x.shape)) for x in leaves)
        raise ValueError(
            f"{where}: all its arrays need the same first axis, the examples; they are "
            f"{told}"
        )
    outputs = jax.eval_shape(lessons.teacher, lessons.params, *batch["inputs"])
    if teaching is not None:
        _check_outputs(where, teaching, outputs, *first)
    if teaching is None or teaching.weight < 1:
        assert lessons.loss is not None
        loss = jax.eval_shape(lessons.loss, outputs, batch["targets"])
        floats = hasattr(loss, "dtype") and jnp.issubdtype(loss.dtype, jnp.floating)
        if not floats or loss.shape[:1] not in {(), *first}:
            raise ValueError(
                f"{where}: the loss is {loss}; it must be a float, or one or more for "
                "each example"
            )


def _check_outputs(
    where: str, teaching: Teaching, outputs: Any, first: tuple[int, ...]
) -> None:
    leaves = jax.tree.leaves(outputs)
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    told = ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves)
    if not floats or any(x.shape[:1] != first for x in floats):
        raise ValueError(
            f"{where}: the outputs are {told}; a teacher needs floats, with the "
            "examples along the first axis"
        )
    if teaching.temperature is None:
        return
    if len(leaves) > 1 or leaves[0].ndim < 2:
        raise ValueError(
            f"{where}: the outputs are {told}; soft targets need one array of logits "
            "[B, ..., classes]. squares = true takes any outputs"
        )
