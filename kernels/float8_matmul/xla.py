"""The forms of `float8_matmul` that XLA compiles.

One product of float8 matrices where there are instructions for it, or where XLA's
compiler does the conversion best itself; elsewhere one of bfloat16. A TPU of generation
7 gets to within 1.07 of the rooflines of `benchmarks/tpu_compiled.py` so, which leaves
nothing for a kernel of our own. XLA multiplies a single row without matrix units, or
by slow loops, so one row is followed by rows of zeros.
"""

import functools

import jax
import jax.numpy as jnp

from jcompress.kernels._float8 import dot_by_blocks, float8_rows, result_dtype


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
        q,
        values,
        tpu=functools.partial(product, least=8),
        cuda=functools.partial(product, least=16),
        cpu=lambda q, values: dot_by_blocks(q.astype(jnp.bfloat16), values),
        default=in_bfloat16,
    )
    total = sums * scale * scales.T
    if bias is not None:
        total = total + bias[None]
    return total.astype(result_dtype(x))


def product(q: jax.Array, values: jax.Array, *, least: int) -> jax.Array:
    """[M, K] x [N, K] -> float32 [M, N]; one row is filled up to `least` rows."""
    rows = q.shape[0]
    if rows == 1:
        q = jnp.pad(q, ((0, least - 1), (0, 0)))
    contract = (((1,), (1,)), ((), ()))
    sums = jax.lax.dot_general(q, values, contract, preferred_element_type=jnp.float32)
    return sums[:rows]


def in_bfloat16(q: jax.Array, values: jax.Array) -> jax.Array:
    """The product in bfloat16, in which every number of float8 is exact."""
    return product(q.astype(jnp.bfloat16), values.astype(jnp.bfloat16), least=2)
