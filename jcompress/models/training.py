"""The step of a recipe that trains what the steps before it left."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress import checkpoint
from jcompress.distillation import DistillState, distill_step, init_state
from jcompress.leaves import named_leaves
from jcompress.models.steps import Step
from jcompress.models.storing import finished, stored
from jcompress.models.teaching import Teaching, check_lessons, losses_of
from jcompress.models.trainable import Parts, in_training, put_together, take_apart
from jcompress.models.work import Curve, Lessons, Work
from jcompress.pruning import Prune, Unstructured, prune
from jcompress.sensitivity.resuming import fingerprint
from jcompress.tensors import is_compressed

Rate = float | Callable[[Any], Any]
"""A learning rate, or an optax schedule of it."""

Optimizer = Callable[[Callable[[Any], Any]], optax.GradientTransformation]
"""Makes an optimizer from a schedule of the learning rate, as `optax.adamw` does."""

PARTS = 25
"""A training is told of, and can be gone on with, so many times."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep(Step):
    """Train the model as it is by now: zeros stay, and what is quantized is rounded.

    Attributes:
        steps: how many batches are learnt from, one after the other.
        learning_rate: a number is the highest: the rate rises to it for a twentieth of
            the steps, and falls to 0 by a cosine.
        optimizer: makes one from that schedule.
        seed: of the order of the batches, another in each pass over them.
        teaching: what is learnt from the model as it was; None if nothing.
    """

    steps: int
    learning_rate: Rate
    optimizer: Optimizer
    seed: int
    teaching: Teaching | None = None

    @property
    def kind(self) -> str:
        """What recipes call it."""
        return "train" if self.teaching is None else "distil"

    @property
    def rate(self) -> Callable[[Any], Any]:
        """The learning rate by step."""
        if callable(self.learning_rate):
            return self.learning_rate
        warmup = self.steps // 20
        schedule: Callable[[Any], Any] = optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(self.steps, warmup + 1),
        )
        return schedule

    def made(self) -> optax.GradientTransformation:
        """The optimizer."""
        made = optax.with_extra_args_support(self.optimizer(self.rate))

        def update(*args: Any, **kwargs: Any) -> Any:
            # Those of optax mix integers and floats, whatever the model may do.
            with jax.numpy_dtype_promotion("standard"):
                return made.update(*args, **kwargs)

        return optax.GradientTransformationExtraArgs(made.init, update)

    def apply(self, work: Work) -> Work:
        """Train; after the last training, quantize what was rounded in it."""
        assert work.lessons is not None
        parts = take_apart(work)
        # What could not be stored is refused before it is trained.
        finished(stored(work))
        name = _free_name(self.kind, [curve.name for curve in work.curves])
        carried, ends = self._carried(name, work, work.lessons, parts)
        curve = Curve(name, self.steps, ends, carried.values, carried.seconds)
        params = put_together(Parts(carried.state.params, parts.rest))
        trained = dataclasses.replace(work, params=params, curves=(*work.curves, curve))
        return trained if work.trains else stored(trained)

    def _carried(
        self, name: str, work: Work, lessons: Lessons, parts: Parts
    ) -> tuple[checkpoint.Carried, tuple[int, ...]]:
        optimizer = _keeping_zeros(self.made(), work, parts.trained)
        losses = losses_of(self.teaching, lessons)
        step = self._step(work, lessons, losses, optimizer)
        ends = _ends(self.steps)

        def part(state: Any, number: int) -> tuple[Any, Mapping[str, float]]:
            begin = ends[number - 1] if number else 0
            values = []
            for batch in self._batches(lessons, len(work.curves), begin, ends[number]):
                state, own = step(state, lessons.params, batch)
                values.append(own)
            return state, _means(name, jax.device_get(values), begin, self)

        folder = lessons.folder
        tell = lessons.tell or _silent
        return checkpoint.in_parts(
            part,
            lambda: init_state(parts.trained, optimizer, extra=parts.rest),
            parts=len(ends),
            values=(*losses, "total"),
            folder=None if folder is None else pathlib.Path(folder) / name,
            about={} if folder is None else self._about(work, lessons),
            begun=lambda done: tell(name, done, len(ends), ""),
            told=lambda done, own: tell(
                name,
                done,
                len(ends),
                f"{ends[done - 1]} of {self.steps} steps, loss {own['total']:.3g}",
            ),
        ), ends

    def _step(
        self,
        work: Work,
        lessons: Lessons,
        losses: Mapping[str, Any],
        optimizer: optax.GradientTransformation,
    ) -> Callable[..., tuple[DistillState, dict[str, jax.Array]]]:
        run = in_training(work)

        def student(trained: Any, rest: Any, batch: Any) -> tuple[Any, Any]:
            return run(put_together(Parts(trained, rest)), *batch["inputs"]), rest

        def teacher(params: Any, batch: Any) -> Any:
            return lessons.teacher(params, *batch["inputs"])

        return distill_step(
            student,
            None if self.teaching is None else teacher,
            losses,
            optimizer,
            stateful=True,
        )

    def _batches(
        self, lessons: Lessons, number: int, begin: int, end: int
    ) -> Iterator[dict[str, Any]]:
        """Those of some steps: their order follows from the seed and the pass alone."""
        count = len(lessons.batches)
        order: Any = None
        for step in range(begin, end):
            if order is None or step % count == 0:
                random = np.random.default_rng([self.seed, number, step // count])
                order = random.permutation(count)
            inputs, targets = lessons.batches[order[step % count]]
            yield {"inputs": inputs, "targets": targets}

    def _about(self, work: Work, lessons: Lessons) -> dict[str, str]:
        """What must be the same to go on."""
        shapes = {
            path: f"{leaf.dtype}{leaf.shape}"
            for path, leaf in named_leaves(work.params)
        }
        zeros = {path: int(jnp.sum(~mask)) for path, mask in _masks(work).items()}
        rates = [float(self.rate(n)) for n in (0, self.steps // 2, self.steps - 1)]
        made = getattr(self.optimizer, "func", self.optimizer)
        own = (
            *(self.steps, self.seed, self.teaching, rates),
            *(made.__name__, sorted(getattr(self.optimizer, "keywords", {}).items())),
            *(shapes, zeros, sorted(work.pending.specs.items())),
            sorted(work.pending.factors.items()),
        )
        return {
            "model": fingerprint(lessons.params),
            "recipe": fingerprint(str(own)),
            "list of batches": fingerprint(
                (len(lessons.batches), lessons.batches[0], lessons.batches[-1])
            ),
        }


def check_trainings(
    steps: Sequence[Step], lessons: Lessons, *, smaller: bool = False
) -> None:
    """Refuse trainings that have nothing to learn, or nothing to learn from.

    Args:
        steps: of a recipe.
        lessons: what they learn from.
        smaller: whether the model becomes smaller before those steps.

    Raises:
        ValueError: names the step by its number.
    """
    for number, step in enumerate(steps, 1):
        if isinstance(step, TrainStep):
            where = f"step {number}, {step.kind}"
            before = steps[:number]
            if not smaller and all(isinstance(one, TrainStep) for one in before):
                raise ValueError(
                    f"{where}: no step before it makes the model smaller, so that "
                    "there is nothing to recover; put it after those"
                )
            check_lessons(where, step.teaching, lessons)


def _keeping_zeros(
    optimizer: optax.GradientTransformation, work: Work, trained: Any
) -> optax.GradientTransformation:
    """The optimizer, under which removed weights stay zero."""
    named = {path for path, _ in named_leaves(trained)}
    masks = {path: mask for path, mask in _masks(work).items() if path in named}
    if not masks:
        return optimizer
    rules = [
        (
            functools.partial(_is_of, path),
            Prune(pattern=Unstructured(), sparsity=float(1 - jnp.mean(mask))),
        )
        for path, mask in masks.items()
    ]
    return prune(optimizer, rules, sites=work.sites, masks=masks)


def _is_of(path: str, site: Any) -> bool:
    return bool(site.path == path)


def _masks(work: Work) -> dict[str, jax.Array]:
    """What was not removed of the leaves that were pruned, where there are zeros."""
    masks = {
        path: jnp.asarray(leaf) != 0
        for path, leaf in named_leaves(work.params)
        if path in work.pruned and not is_compressed(leaf)
    }
    return {path: mask for path, mask in masks.items() if not mask.all()}


def _means(
    name: str, values: Sequence[Mapping[str, Any]], begin: int, step: TrainStep
) -> dict[str, float]:
    """The mean of each loss.

    Raises:
        ValueError: one is not finite.
    """
    for number, own in enumerate(values, begin + 1):
        if not np.isfinite(own["total"]):
            raise ValueError(
                f"{name}: the loss is {float(own['total'])} at step {number} of "
                f"{step.steps}; a learning_rate below {float(step.rate(begin)):.3g} "
                "may help, or a look at the data"
            )
    return {key: float(np.mean([own[key] for own in values])) for key in values[0]}


def _ends(steps: int) -> tuple[int, ...]:
    count = min(steps, PARTS)
    return tuple(steps * (n + 1) // count for n in range(count))


def _free_name(kind: str, taken: Sequence[str]) -> str:
    count = sum(name.split()[0] == kind for name in taken)
    return kind if not count else f"{kind} {count + 1}"


def _silent(name: str, done: int, total: int, note: str) -> None:
    """Tells nobody."""
