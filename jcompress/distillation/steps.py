"""`distill_step`: one training step of a student, jitted, for any scheme."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jcompress.distillation._checks import wide

__all__ = ["DistillState", "Loss", "Step", "distill_step", "init_state"]

LossFn = Callable[[Any, Any, Any], jax.Array]
"""`(student's outputs, teacher's outputs, batch) -> losses [B, ...]`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """One of the losses of a step, with its weight.

    Attributes:
        fn: `(student's outputs, teacher's outputs, batch)` to losses `[B, ...]`, one or
            more for each example; their mean counts.
        weight: a number, or an optax schedule, `step -> number`.
    """

    fn: LossFn
    weight: float | Callable[[jax.Array], Any] = 1.0

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"Loss: fn must be a function, not {self.fn!r}")
        if not callable(self.weight) and not -jnp.inf < self.weight < jnp.inf:
            raise ValueError(f"Loss: the weight must be finite, not {self.weight!r}")


class DistillState(NamedTuple):
    """What a training carries from step to step; a pytree.

    Attributes:
        params: the parameters that are trained.
        extra: what else the student carries: batch statistics, a memory bank; None if
            nothing.
        optimizer: the state of the optimizer.
        step: int32, how many steps were made.
    """

    params: Any
    extra: Any
    optimizer: Any
    step: jax.Array


class Step(Protocol):
    """`step(state, teacher_params, batch, key=None) -> (state, values)`."""

    def __call__(
        self,
        state: DistillState,
        teacher_params: Any,
        batch: Any,
        key: jax.Array | None = None,
    ) -> tuple[DistillState, dict[str, jax.Array]]:
        """The next state, and the mean of each loss by name, with their "total"."""


def init_state(
    params: Any, optimizer: optax.GradientTransformation, *, extra: Any = None
) -> DistillState:
    """The state before the first step."""
    return DistillState(params, extra, optimizer.init(params), jnp.zeros((), jnp.int32))


def distill_step(
    student: Callable[..., Any],
    teacher: Callable[[Any, Any], Any] | None,
    losses: Mapping[str, Loss | LossFn],
    optimizer: optax.GradientTransformation,
    *,
    stateful: bool = False,
    keyed: bool = False,
    microbatches: int = 1,
    remember: Callable[[Any, Any, Any, Any], Any] | None = None,
) -> Step:
    """Build the step that trains a student against a teacher, jitted.

    The loss is the sum of the means of the losses times their weights. Teacher and
    student are functions of yours and their trees; the teacher's tree is an argument of
    the step, so that the teacher may be in bfloat16, compressed, an ensemble, a moving
    average of the student, or another student that learns in turn (deep mutual
    learning). No gradient flows to it.

    Args:
        student: `(params, batch) -> outputs`, any tree that the losses understand. Of
            a Linen model: `lambda p, batch: model.apply(p, batch["x"])`; in NNX a
            function that merges the model and calls it. What losses learn beside the
            student, such as a projection, is part of `params`, and the student hands it
            out with its outputs.
        teacher: `(teacher_params, batch) -> outputs`; None if there is none: the losses
            then get None.
        losses: by name; each a function `(student's outputs, teacher's outputs, batch)
            -> [B, ...]`, or a `Loss` that gives it a weight.
        optimizer: of optax.
        stateful: the student is `(params, extra, batch) -> (outputs, extra)`, for batch
            statistics; their part of the state is `extra`.
        keyed: the student takes `key=`, for dropout: the key of the step, folded with
            the number of the microbatch.
        microbatches: in how many equal parts, one after the other, the batch is
            evaluated; losses that need a batch (`jcompress.distillation.relations`)
            see one part. Gradients are the mean over the parts, which is that of the
            whole batch for all other losses.
        remember: `(extra, student's outputs, teacher's outputs, batch) -> extra`, after
            each part: what losses remember, such as the bank of
            `jcompress.distillation.relations.update_bank`. No gradient flows through.

    Returns:
        `step(state, teacher_params, batch, key=None)`, which gives the next state and
        the mean of each loss by name, with the weighted sum as "total". All leaves of
        `batch` have the same first axis. `jax.jit(step, donate_argnums=0)` gives the
        memory of the old state to the new one.

    Raises:
        TypeError: a loss that is no function; no key for a student that takes one.
        ValueError: no losses, or one named "total"; `microbatches` below 1. When
            traced: a batch whose leaves do not agree, or that `microbatches` does not
            divide; losses that are not one or more for each example.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jcompress.distillation import distill_step, init_state
        >>> from jcompress.distillation.logits import soft_targets
        >>> model = lambda params, batch: batch["x"] @ params
        >>> step = distill_step(
        ...     model,
        ...     model,
        ...     {"soft": lambda s, t, batch: soft_targets(s, t, temperature=2.0)},
        ...     optax.sgd(1.0),
        ... )
        >>> state = init_state(jnp.zeros((4, 3)), optax.sgd(1.0))
        >>> state, values = step(state, jnp.eye(4, 3), {"x": jnp.ones((8, 4))})
        >>> sorted(values), int(state.step)
        (['soft', 'total'], 1)
    """
    terms = _checked(losses)
    if isinstance(microbatches, bool) or not isinstance(microbatches, int):
        raise ValueError(f"distill_step: microbatches is an int, not {microbatches!r}")
    if microbatches < 1:
        raise ValueError(
            f"distill_step: microbatches is at least 1, not {microbatches}"
        )

    def part(
        params: Any, extra: Any, teacher_params: Any, batch: Any, key: Any, step: Any
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Gradients, extra and values of one part of the batch."""
        size = _size(batch)
        told = None if teacher is None else teacher(teacher_params, batch)
        told = jax.lax.stop_gradient(told)

        def total(params: Any) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
            given = (params, extra, batch) if stateful else (params, batch)
            more = {"key": key} if keyed else {}
            outputs = student(*given, **more)
            outputs, after = outputs if stateful else (outputs, extra)
            values = {
                name: _mean(name, term.fn(outputs, told, batch), size)
                for name, term in terms.items()
            }
            values = _alike(values)
            whole = sum(
                (value * _weight(terms[name], step, value.dtype))
                for name, value in values.items()
            )
            if remember is not None:
                seen = jax.lax.stop_gradient((after, outputs))
                after = remember(seen[0], seen[1], told, batch)
            return jnp.asarray(whole), (after, {**values, "total": jnp.asarray(whole)})

        gradients, (after, values) = jax.grad(total, has_aux=True)(params)
        return gradients, after, values

    @jax.jit
    def step(
        state: DistillState,
        teacher_params: Any,
        batch: Any,
        key: jax.Array | None = None,
    ) -> tuple[DistillState, dict[str, jax.Array]]:
        if keyed and key is None:
            raise TypeError("distill_step: the student takes a key; give the step one")

        def one(extra: Any, batch: Any, number: Any) -> tuple[Any, Any, Any]:
            own = None if key is None else jax.random.fold_in(key, number)
            return part(state.params, extra, teacher_params, batch, own, state.step)

        if microbatches == 1:
            gradients, extra, values = one(state.extra, batch, 0)
        else:
            gradients, extra, values = _in_parts(one, state, batch, microbatches)
        updates, inner = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return DistillState(params, extra, inner, state.step + 1), values

    return step


def _in_parts(one: Any, state: DistillState, batch: Any, count: int) -> Any:
    """Mean gradients and values over equal parts of a batch, one after the other."""
    size = _size(batch)
    if size % count:
        raise ValueError(
            f"distill_step: {count} microbatches do not divide a batch of {size}"
        )
    parts = jax.tree.map(
        lambda x: jnp.reshape(x, (count, size // count, *jnp.shape(x)[1:])), batch
    )

    def body(carry: Any, each: Any) -> tuple[Any, Any]:
        summed, extra = carry
        number, here = each
        gradients, extra, values = one(extra, here, number)
        summed = jax.tree.map(
            lambda total, new: total + new.astype(total.dtype), summed, gradients
        )
        return (summed, extra), values

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x.dtype)), state.params)
    numbers = jnp.arange(count, dtype=jnp.int32)
    (summed, extra), values = jax.lax.scan(body, (zeros, state.extra), (numbers, parts))
    gradients = jax.tree.map(
        lambda total, x: (total / count).astype(x.dtype), summed, state.params
    )
    return gradients, extra, jax.tree.map(lambda x: jnp.mean(x, axis=0), values)


def _checked(losses: Any) -> dict[str, Loss]:
    if not isinstance(losses, Mapping):
        raise TypeError(
            "distill_step: losses are a mapping from names to functions, not "
            f"{losses!r}"
        )
    if not losses:
        raise ValueError("distill_step: there are no losses")
    if "total" in losses:
        raise ValueError('distill_step: "total" is the sum; name the loss otherwise')
    return {
        name: each if isinstance(each, Loss) else Loss(fn=each)
        for name, each in losses.items()
    }


def _size(batch: Any) -> int:
    """How many examples a batch has."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
        for path, leaf in leaves
    }
    if not shapes:
        raise ValueError("distill_step: the batch holds no arrays")
    if () in shapes.values() or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(
            "distill_step: all leaves of a batch need the same first axis, the "
            f"examples; they have {shapes}"
        )
    return int(next(iter(shapes.values()))[0])


def _mean(name: str, losses: Any, size: int) -> jax.Array:
    shape = jnp.shape(losses)
    if not shape or shape[0] != size:
        raise ValueError(
            f"distill_step: the loss {name!r} returns shape {shape}; it must be "
            f"[{size}, ...], one or more for each example, without a mean over them"
        )
    losses = jnp.asarray(losses)
    return jnp.mean(losses.astype(wide(losses.dtype)))


def _alike(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    dtypes = [value.dtype for value in values.values()]
    widest = jnp.float64 if jnp.dtype("float64") in dtypes else jnp.float32
    return {name: value.astype(widest) for name, value in values.items()}


def _weight(term: Loss, step: jax.Array, dtype: Any) -> jax.Array:
    weight = term.weight(step) if callable(term.weight) else term.weight
    return jnp.asarray(weight).astype(dtype)
