"""Scales for the channels of keys, some of which are much larger than the others."""

import jax
import jax.numpy as jnp
import numpy as np


def fit_key_scales(keys: jax.Array) -> jax.Array:
    """What to divide each channel of the keys by before they are rounded.

    In the keys of many language models a few channels are far larger than the others,
    the same ones for all tokens (Liu et al. 2024, section 3.1). A scale for each token
    then leaves the other channels few numbers. Divided by the largest size that each
    channel has in some examples, all channels have a like share; queries are multiplied
    by the same, so that attention computes what it did. Given to
    `init(..., key_scales=...)`, it costs nothing for each token, and no tokens have to
    wait as floats until a window of them is full, as they do where scales of channels
    are taken from windows of tokens.

    Args:
        keys: floats [..., H, size] of examples, as they are written into the cache
            (after rotary positions).

    Returns:
        Float32 [H, size], positive.

    Raises:
        ValueError: the keys have fewer than two axes, or there are none.

    Example:
        >>> import jax.numpy as jnp
        >>> fit_key_scales(jnp.array([[[1.0, -8.0]], [[-2.0, 4.0]]]))
        Array([[2., 8.]], dtype=float32)

    References:
        Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV
        Cache"; Xiao et al. 2023, "SmoothQuant", equation 3, of which this is the case
        of balancing keys alone.
    """
    if keys.ndim < 2 or keys.size == 0:
        raise ValueError(
            f"fit_key_scales: keys are [..., heads, size], not {list(keys.shape)}"
        )
    most = jnp.max(jnp.abs(keys.astype(jnp.float32)), axis=tuple(range(keys.ndim - 2)))
    return jnp.where(most > np.finfo(np.float32).tiny, most, np.float32(1))
