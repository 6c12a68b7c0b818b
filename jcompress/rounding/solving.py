"""Many small systems of equations at once, without LAPACK.

A batched LAPACK call of jaxlib waits, on a thread of XLA's pool, for parts of its work
that it hands to the same pool. Two such calls at once, of one program or of two, wait
forever on a machine with two cores (seen with jaxlib 0.10.2). What solves many systems
does it with this module, or one after the other.
"""

import jax
import jax.numpy as jnp


def solve_each(matrices: jax.Array, right: jax.Array) -> jax.Array:
    """Solve `A x = b` for many small matrices, by elimination without exchanges.

    Args:
        matrices: A, positive definite or triangular, [..., n, n].
        right: b, [..., n, k].

    Returns:
        x, [..., n, k].
    """
    size = matrices.shape[-1]

    def eliminate(
        i: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        a, b = state
        row = jax.lax.dynamic_slice_in_dim(a, i, 1, -2)
        pivot = jax.lax.dynamic_slice_in_dim(row, i, 1, -1)
        row = row / pivot
        value = jax.lax.dynamic_slice_in_dim(b, i, 1, -2) / pivot
        # Row i itself becomes the one that was divided.
        column = jax.lax.dynamic_slice_in_dim(a, i, 1, -1)
        own = (jnp.arange(size) == i).reshape(size, 1)
        own = jnp.broadcast_to(own, column.shape)
        column = jnp.where(own, column - 1, column)
        return a - column * row, b - column * value

    solved: jax.Array = jax.lax.fori_loop(0, size, eliminate, (matrices, right))[1]
    return solved
