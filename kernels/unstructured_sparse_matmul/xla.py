"""`unstructured_sparse_matmul` as XLA compiles it.

The values are put in their places, and the matrix is multiplied. It keeps the weight
small at rest and gains no time: XLA has no product that skips single zeros.
"""

import jax
import jax.numpy as jnp

from jcompress.tensors.unstructured_sparse import place_values, scaled


def xla(
    x: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    starts: jax.Array,
    scales: jax.Array | None,
) -> jax.Array:
    """[M, K] -> [M, N] in the dtype of `x`."""
    matrix = place_values(values, mask, starts, inputs=x.shape[1])
    if scales is not None and scales.shape[-1] > 1:
        matrix, scales = scaled(matrix, scales), None
    narrow = x.dtype == matrix.dtype or matrix.dtype == jnp.int8
    dtype = x.dtype if narrow else jnp.dtype(jnp.float32)
    product = jax.lax.dot_general(
        x.astype(dtype),
        matrix.astype(dtype),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    if scales is not None:
        product = product * scales.T
    return product.astype(x.dtype)
