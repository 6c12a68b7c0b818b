"""Scores that a training gathers step by step, as `prune` uses them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Leaves = Mapping[str, jax.Array]
"""Arrays by the names of the leaves that are pruned."""


class TrainingScore(NamedTuple):
    """A score that needs the gradients of some steps, in the manner of optax.

    `prune(..., score=...)` calls `init` once, `update` at every step, and `score` only
    at the steps at which masks change, all of them traced. The gradients are those that
    the optimizer gets, of the function of the pruned parameters, those of removed
    weights included.

    Attributes:
        init: parameters -> state; any pytree of arrays.
        update: (gradients, state, parameters) -> state.
        score: (state, parameters) -> float32 scores of the shapes of the parameters;
            the lowest are removed first. A removed weight stays removed whatever its
            score says, unless weights grow again (`prune(..., regrow=...)`).
    """

    init: Callable[[Leaves], Any]
    update: Callable[[Leaves, Any, Leaves], Any]
    score: Callable[[Any, Leaves], Leaves]
