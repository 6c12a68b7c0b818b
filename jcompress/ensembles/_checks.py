"""What the functions of this folder demand of logits, labels and weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_members(caller: str, logits: Any) -> jax.Array:
    """The outputs of members in float32 (float64 if they are).

    Raises:
        TypeError: they are not floating point.
        ValueError: they are not [E, ..., C] with a member and a class.
    """
    dtype = jnp.result_type(logits)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{caller}: logits are of dtype {dtype}, not floating point")
    if jnp.ndim(logits) < 2 or 0 in (jnp.shape(logits)[0], jnp.shape(logits)[-1]):
        raise ValueError(
            f"{caller}: logits have shape {jnp.shape(logits)}; they are "
            "[members, ..., classes], with at least one of both"
        )
    wide = jnp.asarray(logits)
    return wide if wide.dtype == jnp.float64 else wide.astype(jnp.float32)


def as_weights(caller: str, weights: Any, members: int) -> jax.Array | None:
    """Weights [E] as float32, those that are known checked; None stays None.

    Raises:
        ValueError: there is not one for each member, or, unless they are traced, one
            is negative or not finite or they do not sum to 1.
    """
    if weights is None:
        return None
    if not isinstance(weights, jax.Array):
        weights = np.asarray(weights, np.float32)
    if jnp.shape(weights) != (members,):
        raise ValueError(
            f"{caller}: weights have shape {jnp.shape(weights)}, but there are "
            f"{members} members: give [{members}]"
        )
    if not isinstance(weights, jax.core.Tracer):
        known = np.asarray(weights, np.float64)
        if not np.isfinite(known).all() or known.min() < 0:
            raise ValueError(f"{caller}: weights are finite and not negative: {known}")
        if abs(known.sum() - 1) > 1e-4:
            raise ValueError(
                f"{caller}: weights sum to {known.sum():.6g}, not to 1; divide them by "
                "their sum"
            )
    return jnp.asarray(weights).astype(jnp.float32)


def check_labels(caller: str, labels: Any, logits: jax.Array) -> jax.Array:
    """Labels int32 [B] for logits [..., B, C].

    Raises:
        TypeError: they are not integers.
        ValueError: there is not one for each example, or, unless they are traced, one
            names no class.
    """
    dtype = jnp.result_type(labels)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{caller}: labels are of dtype {dtype}; they are integers")
    if jnp.shape(labels) != (logits.shape[-2],) or logits.shape[-2] == 0:
        raise ValueError(
            f"{caller}: labels have shape {jnp.shape(labels)}, and logits of shape "
            f"{logits.shape} are of {logits.shape[-2]} examples"
        )
    if not isinstance(labels, jax.core.Tracer):
        known, classes = np.asarray(labels), logits.shape[-1]
        if known.min() < 0 or known.max() >= classes:
            raise ValueError(
                f"{caller}: labels go from {known.min()} to {known.max()}; with "
                f"{classes} classes they are 0 to {classes - 1}"
            )
    return jnp.asarray(labels).astype(jnp.int32)
