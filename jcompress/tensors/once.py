"""Arrays that are computed once, whoever reads them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def once(
    fn: Callable[[jax.Array], jax.Array], x: jax.Array, scale: jax.Array
) -> jax.Array:
    """`fn(x)`, of which a program for a CPU makes one array that all readers share.

    XLA's CPU compiler fuses a chain of element-wise operations into each reader of the
    result, and so makes it anew in the order of each: a convolution reads rounded data
    as it is, the gradient of its kernel reads the same turned, number by number. In
    the training step of a small ResNet that was a third of all time. The compiler takes
    `jax.lax.optimization_barrier` away before it fuses; what a branch takes and gives
    are arrays, so this is a branch that is always taken. Elsewhere it is `fn(x)`.

    Args:
        fn: keeps shape and dtype.
        x: an array.
        scale: floats above 0, which the compiler does not know; NaN counts as above.
    """
    if x.size == 0 or scale.size == 0:
        return fn(x)

    def branch(x: jax.Array) -> jax.Array:
        taken = ~(jnp.min(scale) <= 0)
        made: jax.Array = jax.lax.cond(taken, fn, lambda x: x, x)
        return made

    made: jax.Array = jax.lax.platform_dependent(x, cpu=branch, default=fn)
    return made
