"""The definition of `max_pool`."""

import jax
import numpy as np

from jcompress.kernels.quantized_conv.window import Window


def reference(x: jax.Array, *, window: Window) -> jax.Array:
    """[B, X] -> [B, Y]: the largest number of each window, by channel."""
    # A number that JAX knows beforehand: only then is there a gradient.
    lowest = np.asarray(-128 if x.dtype == np.int8 else -np.inf, x.dtype)
    y: jax.Array = jax.lax.reduce_window(
        window.images(x),
        lowest,
        jax.lax.max,
        (1, *window.kernel, 1),
        (1, *window.strides, 1),
        ((0, 0), *window.padding, (0, 0)),
    )
    return y.reshape(x.shape[0], window.positions * window.channels)
