"""The forms of `float8_matmul` that XLA compiles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jcompress.kernels._float8 import float8_rows, result_dtype

_CONTRACT_LAST = (((1,), (1,)), ((), ()))
_ON_TPU = 8
"""Rows that fill a vector register; a product of one is made of vectors, slower."""


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
        q, values, tpu=on_tpu, cuda=in_float8, default=in_floats
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


def on_tpu(q: jax.Array, values: jax.Array) -> jax.Array:
    """The same, with several rows for one."""
    return _for_one_row(in_float8, q, values, _ON_TPU)


def in_floats(q: jax.Array, values: jax.Array) -> jax.Array:
    """The same of matrices in bfloat16, in which every number of float8 is exact."""
    q, values = q.astype(jnp.bfloat16), values.astype(jnp.bfloat16)
    return _for_one_row(in_float8, q, values, 2)


def _for_one_row(
    dot: Callable[..., jax.Array], q: jax.Array, values: jax.Array, filled: int
) -> jax.Array:
    """A product in which one row is followed by zeros up to so many rows."""
    rows = q.shape[0]
    if rows == 1:
        q = jnp.pad(q, ((0, filled - 1), (0, 0)))
    return dot(q, values)[:rows]
