"""What the loss gains when a weight goes, from its second derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import replace_leaves
from jcompress.errors import MismatchError
from jcompress.pruning.scores._trees import place_scores, scored_leaves


def score_by_fisher(
    loss: Callable[[Any, Any], jax.Array], params: Any, examples: Any
) -> Any:
    """Score every weight by the diagonal of the Fisher information at it.

    With g_n the gradient for one example the score is w^2 / 2 times the mean of g_n^2.
    The squares of single examples stand for the second derivative of the loss where it
    is a negative log-likelihood near its minimum. Examples are taken one by one: the
    memory of one gradient and one sum.

    Args:
        loss: takes the parameters and one example, and gives a number.
        params: a tree of arrays; leaves of other numbers than floats are not scored.
        examples: a pytree of arrays with a leading axis of examples.

    Returns:
        float32 arrays of the leaves' shapes; None elsewhere.

    Raises:
        MismatchError: `examples` holds no array, or of different lengths.

    References:
        Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher
        pruning", equation 6.
    """
    free = scored_leaves("score_by_fisher", params, jnp.floating)
    free = {name: jnp.asarray(leaf) for name, leaf in free.items()}
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(examples)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise MismatchError(
            "score_by_fisher: examples is a tree of arrays with one leading axis of "
            f"examples; these lead with {sorted(lengths) or 'nothing'}"
        )

    def step(total: Any, example: Any) -> Any:
        gradients = jax.grad(lambda free: loss(replace_leaves(params, free), example))(
            free
        )
        squares = jax.tree.map(
            lambda t, g: t + jnp.square(g.astype(jnp.float32)), total, gradients
        )
        return squares, None

    zeros = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in free.items()}
    total, _ = jax.lax.scan(step, zeros, examples)
    ((count,),) = lengths
    means = {name: square / count for name, square in total.items()}
    return place_scores(params, _saliencies(free, means))


def score_by_hessian(
    loss: Callable[..., jax.Array],
    params: Any,
    *args: Any,
    key: jax.Array,
    draws: int = 8,
) -> Any:
    """Score every weight by the diagonal of the Hessian: w^2 / 2 times d2L/dw2.

    The diagonal is estimated from products of the Hessian with random signs z, as the
    mean of z (H z) (Bekas et al. 2007). It is exact for a diagonal Hessian; else its
    error falls with the root of `draws`.

    Args:
        loss: takes the parameters and `args`, and gives a number.
        params: a tree of arrays; leaves of other numbers than floats are not scored.
        *args: further arguments of `loss`, such as a batch.
        key: a key of `jax.random`.
        draws: of random signs.

    Returns:
        float32 arrays of the leaves' shapes, of either sign; None elsewhere.

    Raises:
        ValueError: `draws` is below 1.

    References:
        LeCun et al. 1990, "Optimal Brain Damage", equation 5.
    """
    if draws < 1:
        raise ValueError(f"score_by_hessian: draws is at least 1, not {draws}")
    free = scored_leaves("score_by_hessian", params, jnp.floating)
    free = {name: jnp.asarray(leaf) for name, leaf in free.items()}

    def gradient(free: Any) -> Any:
        return jax.grad(lambda free: loss(replace_leaves(params, free), *args))(free)

    def step(total: Any, key: jax.Array) -> Any:
        keys = jax.random.split(key, len(free))
        signs = {
            name: jax.random.rademacher(one, leaf.shape, leaf.dtype)
            for one, (name, leaf) in zip(keys, free.items(), strict=True)
        }
        _, curved = jax.jvp(gradient, (free,), (signs,))
        more = {
            name: total[name] + (signs[name] * curved[name]).astype(jnp.float32)
            for name in free
        }
        return more, None

    zeros = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in free.items()}
    total, _ = jax.lax.scan(step, zeros, jax.random.split(key, draws))
    means = {name: each / draws for name, each in total.items()}
    return place_scores(params, _saliencies(free, means))


def _saliencies(free: Any, second: Any) -> dict[str, jax.Array]:
    return {
        name: jnp.square(leaf.astype(jnp.float32)) * second[name] * 0.5
        for name, leaf in free.items()
    }
