"""The definition of `normalize`."""

import jax
import jax.numpy as jnp


def reference(
    x: jax.Array,
    residual: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: float,
    centered: bool,
    keep_sum: bool,
) -> tuple[jax.Array, ...]:
    """[..., C] normalised, computed in float32; the sum behind it if it is kept."""
    total = x if residual is None else x + residual
    rows = total.astype(jnp.float32)
    if centered:
        rows = rows - rows.mean(axis=-1, keepdims=True)
    square = jnp.square(rows).mean(axis=-1, keepdims=True)
    y = rows * jax.lax.rsqrt(square + jnp.float32(epsilon))
    lead = (1,) * (x.ndim - 1)
    if scale is not None:
        y = y * scale.astype(jnp.float32).reshape(*lead, -1)
    if bias is not None:
        y = y + bias.astype(jnp.float32).reshape(*lead, -1)
    result = y.astype(x.dtype)
    return (result, total) if keep_sum else (result,)
