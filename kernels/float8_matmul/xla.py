"""The forms of `float8_matmul` that XLA compiles."""

import jax
import jax.numpy as jnp

from jcompress.kernels._float8 import float8_rows, result_dtype

_CONTRACT_LAST = (((1,), (1,)), ((), ()))


def xla(
    x: jax.Array,
    x_scale: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """[M, K] -> [M, N], by the form that suits the platform."""
    q, scale = float8_rows(x, x_scale)
    sums: jax.Array = jax.lax.platform_dependent(
        q, values, tpu=in_float8, cuda=in_float8, default=in_floats
    )
    product = sums * scale * scales.T
    if bias is not None:
        product = product + bias[None]
    return product.astype(result_dtype(x))


def in_float8(q: jax.Array, values: jax.Array) -> jax.Array:
    """One product of float8 matrices: [M, K] x [N, K] -> float32 [M, N]."""
    return jax.lax.dot_general(
        q, values, _CONTRACT_LAST, preferred_element_type=jnp.float32
    )


def in_floats(q: jax.Array, values: jax.Array) -> jax.Array:
    """The same of matrices in bfloat16, in which every number of float8 is exact."""
    rows = q.shape[0]
    padded = jnp.pad(q, ((0, 1), (0, 0))) if rows == 1 else q
    return in_float8(padded.astype(jnp.bfloat16), values.astype(jnp.bfloat16))[:rows]
