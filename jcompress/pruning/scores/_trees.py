"""What all scores share: which leaves they speak of, and where their data are."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.tensors import is_compressed


def scored_leaves(
    transform: str, params: Any, dtypes: Any = jnp.inexact
) -> dict[str, Any]:
    """The leaves of these dtypes by name; compressed ones are left out.

    Raises:
        MismatchError: there is none.
    """
    found = {
        name: leaf
        for name, leaf in named_leaves(params)
        if not is_compressed(leaf) and jnp.issubdtype(jnp.result_type(leaf), dtypes)
    }
    if not found:
        raise MismatchError(f"{transform}: the tree holds no array of floats to score")
    return found


def place_scores(params: Any, scores: Mapping[str, Any]) -> Any:
    """A tree of the structure of the parameters with scores by name, None elsewhere."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: scores.get(path_name(path)), params, is_leaf=is_compressed
    )


def score_pairs(
    transform: str,
    params: Any,
    gradients: Any,
    score: Callable[[jax.Array, jax.Array], jax.Array],
) -> Any:
    """Score each leaf from itself and its gradient.

    Args:
        transform: the caller's name, for the errors.
        params: the parameters.
        gradients: of a loss by them; leaves are matched by name.
        score: takes a leaf and its gradient, both float32 or both complex.

    Raises:
        MismatchError: a leaf of floats has no gradient of its shape.
    """
    given = dict(named_leaves(gradients))
    made: dict[str, jax.Array] = {}
    for name, leaf in scored_leaves(transform, params).items():
        if name not in given:
            raise MismatchError(
                f"{transform}: {name!r} has no gradient; the gradients are those of "
                f"{', '.join(list(given)[:8]) or 'no leaf'}"
            )
        if np.shape(given[name]) != np.shape(leaf):
            raise MismatchError(
                f"{transform}: {name!r} is {list(np.shape(leaf))} in the parameters "
                f"and {list(np.shape(given[name]))} in the gradients"
            )
        made[name] = score(_wide(leaf), _wide(given[name]))
    return place_scores(params, made)


def _wide(x: Any) -> jax.Array:
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return array
    return array.astype(jnp.float32)
