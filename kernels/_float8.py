"""Rows of activations as 8-bit floats, and their products as XLA computes them."""

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kernels._integers import row_scale
from jcompress.quantization.arithmetic import quantize_values
from jcompress.tensors.packing import FLOAT8


def is_float(x: jax.Array) -> bool:
    """Whether the dtype is one to compute in, and not one to store only."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.dtype.itemsize > 1


def result_dtype(x: jax.Array) -> np.dtype:
    """The dtype of a product: that of float activations, float32 for float8."""
    return np.dtype(x.dtype if is_float(x) else jnp.float32)


def float8_rows(x: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The numbers of rows in float8, with their scales.

    Args:
        x: floats [..., M, K]; or float8_e4m3fn, which stays as it is.
        scale: float32 [..., M, 1]; None, for floats, takes each row's `row_scale`.
    """
    if x.dtype == FLOAT8:
        assert scale is not None
        return x, scale
    if scale is None:
        scale = row_scale(x, 8, floating=True)
    q = quantize_values(x, scale, None, bits=8, symmetric=True, floating=True)
    return q.astype(FLOAT8), scale
