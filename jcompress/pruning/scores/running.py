"""Scores that a training gathers: movement, and running means of other scores."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.pruning.scores._trees import score_pairs
from jcompress.pruning.scores.base import Leaves, TrainingScore
from jcompress.pruning.scores.taylor import score_by_taylor


def movement() -> TrainingScore:
    """Score every weight by how far training has moved it away from zero.

    That is minus the sum over the steps of weight times gradient: positive where steps
    against the gradient make a weight larger, whatever its size is. For fine-tuning,
    where weights hardly change their order by size.

    References:
        Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning",
        equation 3 (without the learning rate).
    """

    def update(gradients: Leaves, state: Any, params: Leaves) -> Any:
        changes = score_by_taylor(params, gradients)
        return {name: state[name] - change for name, change in changes.items()}

    return TrainingScore(_zeros, update, lambda state, params: state)


def average_scores(
    score: Callable[[Any, Any], Any], *, decay: float = 0.9
) -> TrainingScore:
    """Score every weight by the running mean of another score over the steps.

    After a step, mean = decay mean + (1 - decay) score(params, gradients), from 0 on.
    `average_scores(score_by_snip)` is the running size of the first-order Taylor term,
    and `average_scores(lambda params, gradients: score_by_magnitude(gradients))` that
    of the gradient.

    Args:
        score: takes the parameters and their gradients by name, and gives float32
            scores of their shapes.
        decay: of the mean, in [0, 1).

    Raises:
        ValueError: `decay` is outside [0, 1).
    """
    _check_decay("average_scores", decay)

    def update(gradients: Leaves, state: Any, params: Leaves) -> Any:
        return _mixed(decay, state, score(params, gradients))

    return TrainingScore(_zeros, update, lambda state, params: state)


def average_fisher(*, decay: float = 0.9) -> TrainingScore:
    """Score every weight by its square times the running mean of its squared gradient.

    As `score_by_fisher` on the way, with the gradients of batches in place of those of
    examples: the score is w^2 / 2 times the mean, w being the weight when it is asked.

    Args:
        decay: of the mean, in [0, 1).

    Raises:
        ValueError: `decay` is outside [0, 1).

    References:
        Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher
        pruning", equation 6.
    """
    _check_decay("average_fisher", decay)

    def update(gradients: Leaves, state: Any, params: Leaves) -> Any:
        squares = score_pairs(
            "average_fisher", params, gradients, lambda _, g: jnp.square(jnp.abs(g))
        )
        return _mixed(decay, state, squares)

    def score(state: Any, params: Leaves) -> Any:
        return score_pairs(
            "average_fisher", params, state, lambda w, s: jnp.square(jnp.abs(w)) * s / 2
        )

    return TrainingScore(_zeros, update, score)


def _zeros(params: Leaves) -> dict[str, jax.Array]:
    return {
        name: jnp.zeros(jnp.shape(leaf), jnp.float32) for name, leaf in params.items()
    }


def _mixed(decay: float, state: Any, scores: Any) -> dict[str, jax.Array]:
    return {
        name: decay * mean + (1 - decay) * scores[name] for name, mean in state.items()
    }


def _check_decay(name: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"{name}: decay is in [0, 1), not {decay}")
