"""How the sparsity rises over the steps of a training.

Each function returns an optax schedule, from the step to the sparsity, for
`Prune(sparsity=...)`. Between `begin` and `begin + steps` it rises from the initial to
the final sparsity, s_i and s_f; before it is s_i, and after s_f, so that the masks stay
as they are. With x the fraction of the way, (t - begin) / steps clipped to [0, 1]:

    cubic         s_f + (s_i - s_f) (1 - x)^3
    linear        s_i + (s_f - s_i) x
    cosine        s_i + (s_f - s_i) (1 - cos(pi x)) / 2
    exponential   1 - (1 - s_i) ((1 - s_f) / (1 - s_i))^x
    one shot      s_i before `step`, s_f from it on

Any other optax schedule serves as well. How often masks are chosen on the way is
`every` of `prune`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jcompress.pruning.spec import Schedule

__all__ = [
    "cosine_schedule",
    "cubic_schedule",
    "exponential_schedule",
    "linear_schedule",
    "one_shot_schedule",
]


def cubic_schedule(
    *,
    final_sparsity: float,
    steps: int,
    initial_sparsity: float = 0.0,
    begin: int = 0,
) -> Schedule:
    """Raise the sparsity fast at first, and ever slower near its end.

    Args:
        final_sparsity: the fraction removed in the end, in [0, 1).
        steps: updates from the first rise to the end.
        initial_sparsity: the fraction removed from the start, in [0, 1).
        begin: updates before the first rise.

    Returns:
        A function from the step to the sparsity, float32.

    Raises:
        ValueError: a sparsity outside [0, 1), an initial one above the final one,
            `steps` below 1 or `begin` below 0.

    Example:
        >>> schedule = cubic_schedule(final_sparsity=0.8, steps=100)
        >>> [round(float(schedule(t)), 2) for t in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]

    References:
        Zhu & Gupta 2017, "To prune, or not to prune: exploring the efficacy of
        pruning for model compression", equation 1.
    """
    _check("cubic_schedule", initial_sparsity, final_sparsity, steps, begin)
    schedule: Schedule = optax.polynomial_schedule(
        init_value=initial_sparsity,
        end_value=final_sparsity,
        power=3,
        transition_steps=steps,
        transition_begin=begin,
    )
    return schedule


def linear_schedule(
    *,
    final_sparsity: float,
    steps: int,
    initial_sparsity: float = 0.0,
    begin: int = 0,
) -> Schedule:
    """Raise the sparsity by the same amount at each step.

    Args and errors are those of `cubic_schedule`.

    Example:
        >>> schedule = linear_schedule(final_sparsity=0.8, steps=100)
        >>> [round(float(schedule(t)), 2) for t in (0, 50, 100, 200)]
        [0.0, 0.4, 0.8, 0.8]
    """
    _check("linear_schedule", initial_sparsity, final_sparsity, steps, begin)
    rise = final_sparsity - initial_sparsity
    return _between(steps, begin, final_sparsity, lambda x: initial_sparsity + rise * x)


def cosine_schedule(
    *,
    final_sparsity: float,
    steps: int,
    initial_sparsity: float = 0.0,
    begin: int = 0,
) -> Schedule:
    """Raise the sparsity slowly at both ends and fastest halfway.

    Args and errors are those of `cubic_schedule`.

    Example:
        >>> schedule = cosine_schedule(final_sparsity=0.8, steps=100)
        >>> [round(float(schedule(t)), 2) for t in (0, 25, 50, 100, 200)]
        [0.0, 0.12, 0.4, 0.8, 0.8]
    """
    _check("cosine_schedule", initial_sparsity, final_sparsity, steps, begin)
    rise = final_sparsity - initial_sparsity

    def at(x: jax.Array) -> jax.Array:
        return initial_sparsity + rise * (1 - jnp.cos(jnp.pi * x)) / 2

    return _between(steps, begin, final_sparsity, at)


def exponential_schedule(
    *,
    final_sparsity: float,
    steps: int,
    initial_sparsity: float = 0.0,
    begin: int = 0,
) -> Schedule:
    """Remove the same fraction of what is left at each step.

    Args and errors are those of `cubic_schedule`.

    Example:
        >>> schedule = exponential_schedule(final_sparsity=0.75, steps=100)
        >>> [round(float(schedule(t)), 2) for t in (0, 50, 100, 200)]
        [0.0, 0.5, 0.75, 0.75]

    References:
        Frankle & Carbin 2019, "The Lottery Ticket Hypothesis", section 1: iterative
        pruning removes p^(1/n) of the weights that survive each round.
    """
    _check("exponential_schedule", initial_sparsity, final_sparsity, steps, begin)
    ratio = (1 - final_sparsity) / (1 - initial_sparsity)

    def at(x: jax.Array) -> jax.Array:
        return 1 - (1 - initial_sparsity) * jnp.asarray(ratio, jnp.float32) ** x

    return _between(steps, begin, final_sparsity, at)


def one_shot_schedule(
    *, final_sparsity: float, step: int, initial_sparsity: float = 0.0
) -> Schedule:
    """Remove everything at one step: train, prune once, fine-tune.

    Args:
        final_sparsity: the fraction removed from `step` on, in [0, 1).
        step: the step.
        initial_sparsity: the fraction removed before, in [0, 1).

    Raises:
        ValueError: as `cubic_schedule`; a `step` below 0.

    Example:
        >>> schedule = one_shot_schedule(final_sparsity=0.8, step=100)
        >>> [round(float(schedule(t)), 2) for t in (0, 99, 100)]
        [0.0, 0.0, 0.8]
    """
    _check("one_shot_schedule", initial_sparsity, final_sparsity, 1, step)

    def schedule(count: Any) -> jax.Array:
        late = jnp.asarray(count) >= step
        return jnp.where(late, jnp.float32(final_sparsity), initial_sparsity)

    return schedule


def _between(
    steps: int, begin: int, final: float, value: Callable[[jax.Array], jax.Array]
) -> Schedule:
    def schedule(count: Any) -> jax.Array:
        # Not by optax.linear_schedule: its sums need promotion of integers.
        gone = jnp.asarray(count).astype(jnp.float32) - begin
        rising = value(jnp.clip(gone / steps, 0, 1)).astype(jnp.float32)
        # In the end it is the final sparsity to the bit.
        return jnp.where(gone >= steps, jnp.float32(final), rising)

    return schedule


def _check(name: str, initial: float, final: float, steps: int, begin: int) -> None:
    if not 0 <= initial <= final < 1:
        raise ValueError(
            f"{name}: 0 <= initial_sparsity <= final_sparsity < 1 does not hold "
            f"for {initial} and {final}"
        )
    if steps < 1 or begin < 0:
        raise ValueError(
            f"{name}: it ends before it begins, or begins before step 0: steps must be "
            f"at least 1 and begin at least 0, not {steps} and {begin}"
        )
