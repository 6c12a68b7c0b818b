"""From the outputs of several members to one: means and votes."""

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.ensembles._checks import as_members, as_weights


def mean_probabilities(
    logits: jax.Array, *, weights: jax.Array | None = None
) -> jax.Array:
    """The logarithm of the mean of the members' probabilities.

        log sum over e of weights[e] softmax(logits[e])

    Args:
        logits: [E, ..., C] of E members, of any floating dtype; computed in float32.
        weights: [E], not negative, summing to 1; None for all alike. They may be
            traced.

    Returns:
        Log-probabilities [..., C], float32 (float64 if the logits are).

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that do not fit, or weights that are negative or do not sum
            to 1.

    References:
        Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty
        Estimation using Deep Ensembles", section 2.4.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.ensembles import mean_probabilities
        >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
        >>> [round(float(p), 2) for p in jnp.exp(mean_probabilities(logits))]
        [0.7, 0.3]
    """
    wide = as_members("mean_probabilities", logits)
    shares = as_weights("mean_probabilities", weights, len(wide))
    log = jax.nn.log_softmax(wide, axis=-1)
    if shares is None:
        mean: jax.Array = jax.nn.logsumexp(log, axis=0) - jnp.asarray(
            np.log(len(wide)), log.dtype
        )
        return mean
    wanted = shares.astype(log.dtype).reshape(-1, *(1,) * (log.ndim - 1))
    # Of a member without weight nothing counts, a probability of 0 included.
    some = jnp.where(wanted > 0, log, jnp.zeros_like(log))
    return jax.nn.logsumexp(some, axis=0, b=jnp.broadcast_to(wanted, log.shape))


def mean_logits(logits: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """The mean of the members' logits: a normalised product of their probabilities.

    Args:
        logits: as of `mean_probabilities`. What the members return may also be
            predictions of numbers, whose mean it is.
        weights: as of `mean_probabilities`.

    Returns:
        Logits [..., C], float32 (float64 if the logits are).

    Raises:
        TypeError: as `mean_probabilities`.
        ValueError: as `mean_probabilities`.
    """
    wide = as_members("mean_logits", logits)
    shares = as_weights("mean_logits", weights, len(wide))
    if shares is None:
        return jnp.mean(wide, axis=0)
    return jnp.tensordot(shares.astype(wide.dtype), wide, axes=1)


def majority_vote(logits: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """The share of the members that prefer each class; without a gradient.

    Args:
        logits: as of `mean_probabilities`. Of equal ones the first is preferred.
        weights: what each member's vote counts, as of `mean_probabilities`.

    Returns:
        Shares [..., C] that sum to 1, float32 (float64 if the logits are). Where two
        classes have equal shares, `argmax` takes the first.

    Raises:
        TypeError: as `mean_probabilities`.
        ValueError: as `mean_probabilities`.
    """
    wide = as_members("majority_vote", logits)
    shares = as_weights("majority_vote", weights, len(wide))
    votes = jax.nn.one_hot(jnp.argmax(wide, axis=-1), wide.shape[-1], dtype=wide.dtype)
    if shares is None:
        return jnp.mean(votes, axis=0)
    return jnp.tensordot(shares.astype(wide.dtype), votes, axes=1)
