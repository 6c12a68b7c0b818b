"""How sure an ensemble is, and how much its members differ."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.ensembles._checks import as_members, check_labels

_HALVINGS = 50
_COLDEST, _HOTTEST = 2.0**-10, 2.0**10


def calibration_error(
    logits: jax.Array, labels: jax.Array, *, bins: int = 15
) -> jax.Array:
    """By how much confidence and accuracy differ: the expected calibration error.

    Examples fall into equally wide bins by the probability of the class that is
    predicted; the error is the mean over examples of the absolute difference between a
    bin's mean confidence and its accuracy.

    Args:
        logits: [B, C]; log-probabilities are logits, too.
        labels: integers [B].
        bins: how many there are between 0 and 1.

    Returns:
        A float32 between 0 and 1.

    Raises:
        TypeError: logits that are not floating point, labels that are not integers.
        ValueError: shapes that do not fit, labels that name no class, `bins` below 1.

    References:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.ensembles import calibration_error
        >>> logits = jnp.log(jnp.array([[0.75, 0.25]] * 4))
        >>> round(float(calibration_error(logits, jnp.array([0, 0, 0, 1]))), 3)
        0.0
    """
    wide = _of_examples("calibration_error", logits)
    labels = check_labels("calibration_error", labels, wide)
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"calibration_error: bins is 1 or more, not {bins!r}")
    probabilities = jax.nn.softmax(wide, axis=-1)
    sure = jnp.max(probabilities, axis=-1)
    right = (jnp.argmax(probabilities, axis=-1) == labels).astype(jnp.float32)
    # A bin holds what is above its lower and up to its upper end.
    place = jnp.clip(
        jnp.ceil(sure * np.float32(bins)).astype(jnp.int32) - 1, 0, bins - 1
    )
    gaps = jax.ops.segment_sum(right - sure.astype(jnp.float32), place, bins)
    return jnp.sum(jnp.abs(gaps)) / np.float32(len(wide))


def fit_temperature(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The temperature that makes held-out labels most likely.

    `softmax(logits / temperature)` keeps every prediction and changes how sure it is.
    The likelihood is concave in the inverse temperature, whose derivative is halved
    down to where it is 0, between 1/1024 and 1024.

    Args:
        logits: [B, C], for examples that were not trained on.
        labels: integers [B].

    Returns:
        A float32 scalar.

    Raises:
        TypeError: logits that are not floating point, labels that are not integers.
        ValueError: shapes that do not fit, labels that name no class.

    References:
        Guo et al. 2017, section 4.2.
    """
    wide = _of_examples("fit_temperature", logits).astype(jnp.float32)
    labels = check_labels("fit_temperature", labels, wide)
    chosen = jnp.take_along_axis(wide, labels[:, None], axis=-1)[:, 0]

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = jnp.sqrt(low * high)
        expected = jnp.sum(jax.nn.softmax(wide * middle, axis=-1) * wide, axis=-1)
        colder = jnp.mean(chosen - expected) >= 0
        return jnp.where(colder, middle, low), jnp.where(colder, high, middle)

    ends = (np.float32(1 / _HOTTEST), np.float32(1 / _COLDEST))
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, jax.tree.map(jnp.asarray, ends))
    return np.float32(1) / jnp.sqrt(low * high)


class Diversity(NamedTuple):
    """How much the members of an ensemble differ; float32 scalars.

    Attributes:
        disagreement: on what share of the examples two members predict different
            classes, the mean over all pairs; 0 for one member.
        information: nats by which the entropy of the mean of the probabilities exceeds
            the mean of their entropies; at most the logarithm of the members' number.
    """

    disagreement: jax.Array
    information: jax.Array


def diversity(logits: jax.Array) -> Diversity:
    """Measure how much members differ: equal ones have 0 of everything.

    Args:
        logits: [E, ..., C] of E members on the same examples.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: they are not [E, ..., C].

    References:
        Fort et al. 2019, "Deep Ensembles: A Loss Landscape Perspective", section 3
        (disagreement); Depeweg et al. 2018, "Decomposition of Uncertainty in Bayesian
        Deep Learning", section 3 (information).
    """
    wide = as_members("diversity", logits)
    members, classes = len(wide), wide.shape[-1]
    votes = jax.nn.one_hot(jnp.argmax(wide, axis=-1), classes, dtype=jnp.float32)
    counts = jnp.sum(votes, axis=0)
    # Ordered pairs that agree, each member with itself among them.
    alike = jnp.mean(jnp.sum(jnp.square(counts), axis=-1))
    pairs = max(members * (members - 1), 1)
    apart = (np.float32(members**2) - alike) / np.float32(pairs)
    log = jax.nn.log_softmax(wide, axis=-1)
    mean = jax.nn.logsumexp(log, axis=0) - np.log(members).astype(log.dtype)
    information = jnp.mean(_entropy(mean)) - jnp.mean(_entropy(log))
    return Diversity(
        apart if members > 1 else jnp.zeros(()),
        jnp.maximum(information, 0).astype(jnp.float32),
    )


def _entropy(log: jax.Array) -> jax.Array:
    some = jnp.where(log > -jnp.inf, log, jnp.zeros_like(log))
    return -jnp.sum(jnp.exp(log) * some, axis=-1)


def _of_examples(caller: str, logits: jax.Array) -> jax.Array:
    dtype = jnp.result_type(logits)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{caller}: logits are of dtype {dtype}, not floating point")
    if jnp.ndim(logits) != 2 or 0 in jnp.shape(logits):
        raise ValueError(
            f"{caller}: logits have shape {jnp.shape(logits)}; they are [examples, "
            "classes], with at least one of both"
        )
    return jnp.asarray(logits).astype(jnp.float32)
