"""How the sparsity rises over the steps of a training."""

import optax

from jcompress.pruning.spec import Schedule


def cubic_schedule(
    *,
    final_sparsity: float,
    steps: int,
    initial_sparsity: float = 0.0,
    begin: int = 0,
) -> Schedule:
    """Raise the sparsity fast at first, and ever slower near its end.

    With s_i and s_f the initial and the final sparsity and t the step,

        s(t) = s_f + (s_i - s_f) (1 - (t - begin) / steps)^3

    between `begin` and `begin + steps`; s_i before and s_f after.

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
    if not 0 <= initial_sparsity <= final_sparsity < 1:
        raise ValueError(
            "cubic_schedule: 0 <= initial_sparsity <= final_sparsity < 1 does not hold "
            f"for {initial_sparsity} and {final_sparsity}"
        )
    if steps < 1 or begin < 0:
        raise ValueError(
            "cubic_schedule: steps must be at least 1 and begin at least 0, not "
            f"{steps} and {begin}"
        )
    schedule: Schedule = optax.polynomial_schedule(
        init_value=initial_sparsity,
        end_value=final_sparsity,
        power=3,
        transition_steps=steps,
        transition_begin=begin,
    )
    return schedule
