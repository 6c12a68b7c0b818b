"""The definition of `weight_only_matmul`."""

import jax
import jax.numpy as jnp

from jcompress.quantization.arithmetic import dequantize_matrix
from jcompress.tensors.packing import unpack_nibbles


def dense_weight(
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
    inputs: int,
) -> jax.Array:
    """The float32 [N, K] matrix that the stored arrays describe."""
    integers = unpack_nibbles(values, inputs) if bits <= 4 else values
    return dequantize_matrix(integers, scales, zeros, jnp.float32)


def reference(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
) -> jax.Array:
    """`x @ dense_weight.T` in float32: [M, K] -> [M, N]."""
    weight = dense_weight(values, scales, zeros, bits=bits, inputs=x.shape[-1])
    return jnp.matmul(
        x.astype(jnp.float32), weight.T, precision=jax.lax.Precision.HIGHEST
    )
