"""The mean of a model's weights over its training, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.merging.averaging import wide_dtype


class AverageState(NamedTuple):
    """State of `average_weights`.

    Attributes:
        average: the mean of the weights, a tree like the parameters.
        taken: how many weights are in it, int32.
        updates: how many there were, int32.
    """

    average: Any
    taken: jax.Array
    updates: jax.Array


def average_weights(
    decay: optax.ScalarOrSchedule | None = None, *, start: int = 0, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Keep the mean of the weights after the updates, and change no update.

    The last link of a chain; read the mean with `optax.tree.get(state, "average")`.
    Until `start` updates are done it is the weights themselves, then, after every
    `every`-th update,

        average <- decay average + (1 - decay) weights          (exponential)
        average <- average + (weights - average) / (taken + 1)  (decay None: stochastic
                                                                 weight averaging)

    Recompute the statistics of a batch norm for the mean. The mean is kept in float32
    where the weights are narrower.

    Args:
        decay: the share of the past, in [0, 1), also as a schedule of the number of
            updates; None for equal weights.
        start: the updates before the first weights that count.
        every: the updates from one to the next, such as the length of a cycle.

    Raises:
        ValueError: a number is out of range; or, on an update, without the parameters.

    References:
        Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by
        Averaging"; Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and
        Better Generalization", algorithm 1.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jcompress.merging import average_weights
        >>> optimizer = optax.chain(optax.sgd(1.0), average_weights())
        >>> params = {"w": jnp.zeros(1)}
        >>> state = optimizer.init(params)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update({"w": -jnp.ones(1)}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> optax.tree.get(state, "average")["w"].tolist()  # of 1, 2 and 3
        [2.0]
    """
    if decay is not None and not callable(decay) and not 0 <= float(decay) < 1:
        raise ValueError(f"average_weights: decay is in [0, 1), not {decay!r}")
    for name, number, least in (("start", start, 0), ("every", every, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(
                f"average_weights: {name} is an int from {least} on, not {number!r}"
            )

    def wide(leaf: Any) -> jax.Array:
        array: jax.Array = jnp.asarray(leaf)
        kind = array.dtype
        if not jnp.issubdtype(kind, jnp.inexact) or wide_dtype(kind) == kind:
            return array
        # Under `jit` XLA may leave out the rounding to a narrow dtype before a cast.
        exact, narrow = array.astype(jnp.float32), jnp.finfo(kind)
        rounded: jax.Array = jax.lax.reduce_precision(exact, narrow.nexp, narrow.nmant)
        return rounded

    def init(params: Any) -> AverageState:
        none = jnp.zeros((), jnp.int32)
        return AverageState(jax.tree.map(wide, params), none, none)

    def update(
        updates: Any, state: AverageState, params: Any = None, **extra: Any
    ) -> tuple[Any, AverageState]:
        del extra
        if params is None:
            raise ValueError("average_weights: update needs the parameters")
        weights = jax.tree.map(wide, optax.apply_updates(params, updates))
        count = optax.safe_increment(state.updates)
        since = count - np.int32(start)
        counts = (since > 0) & ((since - np.int32(1)) % np.int32(every) == 0)
        if decay is None:
            share = 1 / (state.taken.astype(jnp.float32) + np.float32(1))
        else:
            rate = decay(state.updates) if callable(decay) else decay
            share = jnp.float32(1) - jnp.asarray(rate, jnp.float32)
        # The first that count replace what stood there before.
        share = jnp.where(state.taken == 0, jnp.ones_like(share), share)

        def mixed(mean: jax.Array, now: jax.Array) -> jax.Array:
            if not jnp.issubdtype(now.dtype, jnp.inexact):
                return now
            moved = mean + share.astype(mean.dtype) * (now - mean)
            early = since <= 0
            return jnp.where(counts, moved, jnp.where(early, now, mean))

        average = jax.tree.map(mixed, state.average, weights)
        taken = state.taken + counts.astype(jnp.int32)
        return updates, AverageState(average, taken, count)

    return optax.GradientTransformationExtraArgs(init, update)
