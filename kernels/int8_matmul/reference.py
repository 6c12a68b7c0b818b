"""The definition of `int8_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.kernels._integers import LONGEST


def reference(
    x: jax.Array,
    x_scale: jax.Array,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
) -> jax.Array:
    """Exact int32 sums, scaled in float32: int8 [M, K] -> float32 [M, N]."""
    left = x.astype(jnp.int32)
    if x_zero is not None:
        left = left - x_zero.astype(jnp.int32)
    right = values.astype(jnp.int32)
    if zeros is not None:
        right = right - zeros.astype(jnp.int32)
    total = jnp.zeros((x.shape[0], values.shape[0]), jnp.float32)
    for start in range(0, x.shape[1], LONGEST):
        part = slice(start, start + LONGEST)
        total = total + jnp.matmul(left[:, part], right[:, part].T).astype(jnp.float32)
    return total * x_scale * scales.T
