"""Scores that choose at random: the baseline of every other score."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.pruning.scores._trees import place_scores, scored_leaves


def score_at_random(params: Any, *, key: jax.Array) -> Any:
    """Score every weight by a random number: the baseline of every other score.

    Args:
        params: a tree of arrays.
        key: a key of `jax.random`.

    Returns:
        A tree of the same structure: float32 in [0, 1) at the leaves of floats or
        complex numbers, each leaf with numbers of its own, and None elsewhere.
    """
    leaves = scored_leaves("score_at_random", params)
    keys = jax.random.split(key, len(leaves))
    made = {
        name: jax.random.uniform(one, jnp.shape(leaf), jnp.float32)
        for one, (name, leaf) in zip(keys, leaves.items(), strict=True)
    }
    return place_scores(params, made)
