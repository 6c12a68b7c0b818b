"""The fastest form of `vector_codebook_matmul` that XLA compiles.

Entries are looked up, D weights with one index, and multiplied; scales come last. XLA's
CPU compiler writes the values to memory before it multiplies, so that a CPU without the
library's own code gains memory, not time: it takes what making the leaf dense and
multiplying it takes.
"""

import jax
import jax.numpy as jnp

from jcompress.tensors.vector_codebook import decode


def xla(
    x: jax.Array, codes: jax.Array, tables: jax.Array, scales: jax.Array
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`."""
    rows, inputs = x.shape
    # One row takes another way through XLA's CPU compiler, ten times slower with
    # factors that are not float32.
    padded = jnp.pad(x, ((0, 1 if rows == 1 else 0), (0, 0)))
    weight = decode(codes, tables, inputs=inputs)
    # Entries of half precision are multiplied as such; sums are float32.
    total = jax.lax.dot_general(
        padded,
        weight.astype(x.dtype) if x.dtype.itemsize < 4 else weight,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return (total[:rows] * scales.T).astype(x.dtype)
