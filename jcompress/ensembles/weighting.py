"""Weights of an ensemble's members: by how well each does, or learned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.ensembles._checks import as_members, check_labels


def weights_by_score(scores: Any, *, sharpness: float = 1.0) -> jax.Array:
    """Weights that grow with the members' validation scores.

        weights[e] = scores[e]^sharpness / sum over i of scores[i]^sharpness

    Args:
        scores: [E], not negative, more is better, such as accuracies on data that no
            member was trained on.
        sharpness: 0 makes all alike; the larger, the more the best count.

    Returns:
        Weights float32 [E] that sum to 1.

    Raises:
        ValueError: scores that are not [E], negative, not finite or all 0; a sharpness
            that is negative or not finite.
    """
    known = np.asarray(scores, np.float64)
    if known.ndim != 1 or not known.size:
        raise ValueError(f"weights_by_score: scores are [members], not {known.shape}")
    if not np.isfinite(known).all() or known.min() < 0 or known.max() == 0:
        raise ValueError(
            f"weights_by_score: scores are finite, not negative and not all 0: {known}"
        )
    if not np.isfinite(sharpness) or sharpness < 0:
        raise ValueError(f"weights_by_score: sharpness is 0 or more, not {sharpness}")
    powers = (known / known.max()) ** sharpness
    return jnp.asarray(powers / powers.sum(), jnp.float32)


def fit_weights(logits: jax.Array, labels: jax.Array, *, steps: int = 200) -> jax.Array:
    """Weights on the simplex that make held-out labels most likely.

    They maximise the mean of `log sum over e of weights[e] p_e(label)`, which is
    concave; each step of expectation maximisation raises it and keeps the weights on
    the simplex, without a learning rate:

        weights[e] <- mean over examples of weights[e] p_e / sum_i weights[i] p_i

    Use them as `functools.partial(mean_probabilities, weights=weights)`.

    Args:
        logits: [E, B, C] of E members, for examples that no member was trained on.
        labels: integers [B].
        steps: of expectation maximisation, from equal weights.

    Returns:
        Weights float32 [E] that sum to 1.

    Raises:
        TypeError: logits that are not floating point, labels that are not integers.
        ValueError: shapes that do not fit, labels that name no class, `steps` below 1.

    References:
        Dempster et al. 1977, "Maximum Likelihood from Incomplete Data via the EM
        Algorithm", section 4.3 (mixtures with known components).

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.ensembles import fit_weights
        >>> sure, wrong = [[9.0, 0.0], [0.0, 9.0]], [[0.0, 9.0], [9.0, 0.0]]
        >>> logits = jnp.array([sure, wrong])
        >>> [round(float(w), 3) for w in fit_weights(logits, jnp.array([0, 1]))]
        [1.0, 0.0]
    """
    wide = as_members("fit_weights", logits)
    if wide.ndim != 3:
        raise ValueError(
            f"fit_weights: logits have shape {wide.shape}, not [members, examples, "
            "classes]"
        )
    labels = check_labels("fit_weights", labels, wide)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"fit_weights: steps is an int of 1 or more, not {steps!r}")
    return _fit_weights(wide.astype(jnp.float32), labels, steps)


def _fit_weights(logits: jax.Array, labels: jax.Array, steps: int) -> jax.Array:
    log = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log, labels[None, :, None], axis=-1)[..., 0]
    # Against the best member of each example, so that none underflows everywhere.
    shares = jnp.exp(chosen - jnp.max(chosen, axis=0, keepdims=True))

    def step(_: Any, weights: jax.Array) -> jax.Array:
        joint = weights[:, None] * shares
        total = jnp.sum(joint, axis=0, keepdims=True)
        # All members that are left may call a label impossible.
        part = jnp.where(total > 0, joint / jnp.where(total > 0, total, 1.0), 0.0)
        means = jnp.sum(part, axis=1)
        whole = jnp.sum(means)
        return jnp.where(whole > 0, means / jnp.where(whole > 0, whole, 1.0), weights)

    members = len(logits)
    start = jnp.full((members,), np.float32(1 / members))
    found: jax.Array = jax.lax.fori_loop(0, steps, step, start)
    return found
