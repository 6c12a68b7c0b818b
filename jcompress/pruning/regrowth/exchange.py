"""Some weights go and as many others grow: RigL and SET."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.errors import MismatchError
from jcompress.pruning.patterns import NM
from jcompress.pruning.ranking import choose
from jcompress.pruning.regrowth.base import Masks, Regrowth
from jcompress.pruning.scores.base import Leaves
from jcompress.pruning.spec import PruningPlan, Schedule


class Growth(enum.Enum):
    """Which removed weights grow again."""

    GRADIENT = "gradient"
    """Those whose gradient is largest in magnitude."""
    RANDOM = "random"
    """Any, by chance."""

    def __repr__(self) -> str:
        return f"Growth.{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regrow(Regrowth):
    """Every so often the least weights go and as many others grow.

    The sparsity stays what the rules say at that step. Groups of a pattern go and grow
    as wholes. What has just been removed may grow again at once, and then keeps its
    value.

    Attributes:
        fraction: how many of the kept weights go, in (0, 1), or a schedule of it.
        every: steps between two changes.
        stop: the step from which on nothing changes any more; None for never.
        by: which weights grow.
        seed: of the choice by chance.

    Raises:
        ValueError: a fraction outside (0, 1), `every` or `stop` below 1.
    """

    fraction: float | Schedule = 0.3
    every: int = 100
    stop: int | None = None
    by: Growth = Growth.GRADIENT
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.fraction) and not 0 < self.fraction < 1:
            raise ValueError(f"Regrow: fraction is in (0, 1), not {self.fraction!r}")
        for name, value in (("every", self.every), ("stop", self.stop)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"Regrow: {name} is an int from 1 on, not {value!r}")

    def check(self, plan: PruningPlan) -> None:
        """Raise `MismatchError` for N:M, where there is no room, and thresholds."""
        for path, spec in plan.leaves.items():
            if spec.threshold is not None:
                raise MismatchError(
                    f"prune: {path!r} is pruned by {spec.threshold!r}, which does not "
                    "say how many weights are to grow; give it a sparsity"
                )
            if isinstance(spec.pattern, NM):
                raise MismatchError(
                    f"prune: {path!r} has the pattern {spec.pattern!r}, whose groups "
                    "are too small to drop and regrow; train N:M with "
                    "jcompress.pruning.training.sr_ste, or leave regrow out"
                )

    def is_due(self, step: jax.Array) -> jax.Array:
        """At each `every`-th step but the first, until `stop`."""
        due = (step > 0) & (step % self.every == 0)
        return due if self.stop is None else due & (step < self.stop)

    def choose(
        self,
        plan: PruningPlan,
        scores: Leaves,
        gradients: Leaves,
        masks: Masks,
        step: jax.Array,
    ) -> Masks:
        """Keep the best of what is there, and fill up with what grows."""
        fraction = self.fraction(step) if callable(self.fraction) else self.fraction
        fewer = dataclasses.replace(
            plan,
            amounts={
                index: 1 - (1 - value) * (1 - jnp.asarray(fraction, jnp.float32))
                for index, value in _sparsities(plan, step).items()
            },
        )
        least, most = jnp.float32(-jnp.inf), jnp.float32(jnp.inf)
        staying = choose(
            fewer,
            {path: jnp.where(masks[path], scores[path], least) for path in masks},
            step,
        )
        growing = {
            path: jnp.where(
                staying[path] & masks[path],
                most,
                self._wishes(number, gradients[path], step),
            )
            for number, path in enumerate(masks)
        }
        return choose(plan, growing, step)

    def _wishes(self, number: int, gradient: jax.Array, step: jax.Array) -> jax.Array:
        """Which weights of the leaf of a number grow: those with the most."""
        if self.by is Growth.GRADIENT:
            size: jax.Array = jnp.abs(gradient).astype(jnp.float32)
            # Below the infinity that says that a weight stays.
            return jnp.minimum(size, np.finfo(np.float32).max)
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        drawn: jax.Array = jax.random.uniform(
            jax.random.fold_in(key, number), gradient.shape
        )
        return drawn


def rigl(*, fraction: float = 0.3, every: int = 100, stop: int | None = None) -> Regrow:
    """RigL: the smallest weights go, those with the largest gradients grow.

    Begin with random masks: `prune(..., masks=make_masks(score_at_random(...), ...))`.
    Unlike the paper's, a step at which masks change also trains. Train with momentum,
    as there: second moments that begin at 0 in mid-training make Adam's first steps of
    a weight that grows three times the usual ones, and cost us more than RigL gains.

    Args:
        fraction: of the kept weights that go at first; with a `stop` it falls to 0 by
            half a cosine.
        every: steps between two changes.
        stop: the step from which on nothing changes; the paper takes three quarters of
            the training.

    References:
        Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", section 3.
    """
    falling: float | Schedule = fraction
    if stop is not None:
        falling = _half_cosine(fraction, stop)
    return Regrow(fraction=falling, every=every, stop=stop)


def sparse_evolution(
    *, fraction: float = 0.3, every: int = 100, stop: int | None = None, seed: int = 0
) -> Regrow:
    """SET: the smallest weights go, and as many grow by chance.

    Args:
        fraction: of the kept weights that go.
        every: steps between two changes.
        stop: the step from which on nothing changes.
        seed: of the choice.

    References:
        Mocanu et al. 2018, "Scalable training of artificial neural networks with
        adaptive sparse connectivity inspired by network science", algorithm 1.
    """
    return Regrow(
        fraction=fraction, every=every, stop=stop, by=Growth.RANDOM, seed=seed
    )


def _half_cosine(value: float, steps: int) -> Callable[[Any], Any]:
    schedule: Callable[[Any], Any] = optax.cosine_decay_schedule(value, steps)

    def at(step: Any) -> jax.Array:
        return jnp.asarray(schedule(jnp.asarray(step, jnp.float32)), jnp.float32)

    return at


def _sparsities(plan: PruningPlan, step: jax.Array) -> dict[int, jax.Array]:
    amounts: dict[int, Any] = dict(plan.amounts)
    return {
        index: jnp.asarray(value(step) if callable(value) else value, jnp.float32)
        for index, value in amounts.items()
    }
