"""How much of what flows through a network passes a weight; no data are needed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import replace_leaves
from jcompress.errors import MismatchError
from jcompress.pruning.scores._trees import place_scores, scored_leaves


def score_by_synflow(fn: Callable[..., Any], params: Any, *args: Any) -> Any:
    """Score every weight by the share of the network's paths that pass it; no data.

    Of the parameters' absolute values, and of ones in place of the inputs, R is the sum
    of all outputs; the score is |w| dR/d|w|. In rounds, with scores of what is left
    (`jcompress.pruning.training.prune_in_rounds`), no layer loses all of its weights
    before the others do.

    Args:
        fn: the function of the tree, such as `model.apply`. Take it as it is used for
            inference: batch norm with a mean of 0 and a variance of 1, as at the start.
        params: a tree of arrays; leaves of other numbers than floats are as they are.
        *args: further arguments of `fn`; arrays of floats stand for their shapes only
            and may be `jax.ShapeDtypeStruct`, other arguments are given to `fn`.

    Returns:
        float32 arrays of the leaves' shapes; None elsewhere.

    Raises:
        MismatchError: the outputs hold no floats, or the sum of all paths exceeds the
            range of floats (checked outside of tracing).

    References:
        Tanaka et al. 2020, "Pruning neural networks without any data by iteratively
        conserving synaptic flow", equation 1 and algorithm 1.
    """
    free = scored_leaves("score_by_synflow", params, jnp.floating)
    sizes = {name: jnp.abs(jnp.asarray(leaf)) for name, leaf in free.items()}
    ones = jax.tree.map(_one, args)

    def flow(sizes: Any) -> jax.Array:
        outs = jax.tree.leaves(fn(replace_leaves(params, sizes), *ones))
        floats = [x for x in outs if jnp.issubdtype(x.dtype, jnp.floating)]
        if not floats:
            raise MismatchError("score_by_synflow: the outputs of fn hold no floats")
        return sum(
            (jnp.sum(x.astype(jnp.float32)) for x in floats[1:]),
            jnp.sum(floats[0].astype(jnp.float32)),
        )

    total, gradients = jax.value_and_grad(flow)(sizes)
    if not isinstance(total, jax.core.Tracer) and not bool(jnp.isfinite(total)):
        raise MismatchError(
            "score_by_synflow: the sum of all paths is not finite in float32; divide "
            "the weights of each layer by a constant, which changes no order in it, or "
            "enable float64"
        )
    made = {name: (sizes[name] * gradients[name]).astype(jnp.float32) for name in sizes}
    return place_scores(params, made)


def _one(x: Any) -> Any:
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return x
    return jnp.ones(x.shape, dtype)
