"""What the loss, or its gradient, loses with a weight, to first order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import replace_leaves
from jcompress.pruning.scores._trees import place_scores, score_pairs, scored_leaves


def score_by_taylor(params: Any, gradients: Any) -> Any:
    """Score every weight by the change of the loss if it were zero, to first order.

    Signed, so that `jcompress.shrinking.score_units` adds up the changes of a unit. To
    rank single weights, or groups of a pattern, take the absolute values,
    `score_by_snip`.

    Args:
        params: a tree of arrays; leaves of other numbers than floats and complex ones
            are not scored.
        gradients: of the loss, on as many examples as are at hand.

    Returns:
        float32 arrays of the leaves' shapes: weight times gradient; of complex ones the
        real part of it.

    Raises:
        MismatchError: a leaf has no gradient of its shape.

    References:
        Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource
        Efficient Inference", equation 4.
    """
    return score_pairs("score_by_taylor", params, gradients, _change)


def score_by_snip(params: Any, gradients: Any) -> Any:
    """Score every weight by how strongly the loss reacts to removing it.

    That is |w dL/dw| divided by its sum over all leaves. With the gradients of one
    batch at the start of a training it is SNIP; with those of many batches later on the
    size of the first-order Taylor term.

    Args:
        params: a tree of arrays.
        gradients: of the loss.

    Returns:
        float32 arrays of the leaves' shapes whose sum is 1; None for a leaf of other
        numbers than floats or complex ones.

    Raises:
        MismatchError: a leaf has no gradient of its shape.

    References:
        Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection
        Sensitivity", equations 5 and 6.
    """
    sizes = score_pairs(
        "score_by_snip", params, gradients, lambda w, g: jnp.abs(_change(w, g))
    )
    total = sum((jnp.sum(size) for size in jax.tree.leaves(sizes)), jnp.float32(0))
    return jax.tree.map(lambda size: size / jnp.where(total > 0, total, 1), sizes)


def score_by_grasp(loss: Callable[..., jax.Array], params: Any, *args: Any) -> Any:
    """Score every weight by how much of the gradient's norm would go with it.

    With g the gradient and H the Hessian of the loss the score is w (H g). Removing the
    lowest ones keeps the flow of gradients, or raises it, so that a network pruned at
    its start trains well. One product of the Hessian with a vector, no matrix.

    Args:
        loss: takes the parameters and `args`, and gives a number.
        params: a tree of arrays; leaves of other numbers than floats are not scored.
        *args: further arguments of `loss`, such as a batch.

    Returns:
        float32 arrays of the leaves' shapes, of either sign; None elsewhere.

    References:
        Wang et al. 2020, "Picking Winning Tickets Before Training by Preserving
        Gradient Flow", equation 8 (with the sign turned: there the highest go first).
    """
    free = scored_leaves("score_by_grasp", params, jnp.floating)
    free = {name: jnp.asarray(leaf) for name, leaf in free.items()}

    def gradient(free: Any) -> Any:
        return jax.grad(lambda free: loss(replace_leaves(params, free), *args))(free)

    _, product = jax.jvp(gradient, (free,), (gradient(free),))
    return score_pairs(
        "score_by_grasp", place_scores(params, free), product, lambda w, hg: w * hg
    )


def _change(weight: jax.Array, gradient: jax.Array) -> jax.Array:
    return jnp.real(weight * gradient).astype(jnp.float32)
