"""What the loss loses with a weight, to first order."""

from typing import Any

import jax
import jax.numpy as jnp


def score_by_taylor(params: Any, gradients: Any) -> Any:
    """Score every weight by the change of the loss if it were zero, to first order.

    Signed, so that `jcompress.shrinking.score_units` adds up the changes of a unit.

    Args:
        params: a tree of arrays of floats or complex numbers.
        gradients: of the loss, on as many examples as are at hand.

    Returns:
        float32 arrays of the leaves' shapes: weight times gradient; of complex ones the
        real part of it.
    """

    def change(weight: Any, gradient: jax.Array) -> Any:
        weight = jnp.asarray(weight)
        if jnp.issubdtype(weight.dtype, jnp.complexfloating):
            return jnp.real(weight * gradient)
        return weight.astype(jnp.float32) * gradient.astype(jnp.float32)

    return jax.tree.map(change, params, gradients)
