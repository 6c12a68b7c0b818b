"""The definition of `attention`."""

from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels.attention.axes import FEATURE, KEY, VALUE, Axes


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    axes: Axes,
    scale: float,
    fill: float,
) -> jax.Array:
    """In float32, as the formula says."""
    wide_q, wide_k, wide_v = (jnp.asarray(a, jnp.float32) for a in (q, k, v))
    out = formula(
        wide_q,
        wide_k,
        wide_v,
        bias,
        mask,
        axes=axes,
        scale=scale,
        fill=fill,
        precision=jax.lax.Precision.HIGHEST,
    )
    return out.astype(q.dtype)


def formula(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    axes: Axes,
    scale: float,
    fill: float,
    precision: Any = None,
) -> jax.Array:
    """Products in the operands' dtype, summed up in float32, and all else in float32.

    Returns:
        Of the dtype of `q`.
    """
    sizes = axes.sizes((q, k, v, bias, mask))
    for_q, for_k, for_v, for_bias, for_mask = axes.operands
    q, for_q = _without_repeats(q, for_q, sizes, keep=FEATURE)
    k, for_k = _without_repeats(k, for_k, sizes, keep=FEATURE + KEY)
    v, for_v = _without_repeats(v, for_v, sizes, keep=KEY)
    wanted = axes.shared + KEY
    letters = "".join(c for c in wanted if c in for_q + for_k)
    scores = jnp.einsum(
        f"{for_q},{for_k}->{letters}",
        q,
        k,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    scores = _spread(scores * jnp.float32(scale), letters, wanted)
    if bias is not None:
        added = _spread(bias.astype(jnp.float32), for_bias, wanted)
        scores, added = jnp.broadcast_arrays(scores, added)
        scores = scores + added
    if mask is not None:
        kept = _spread(mask, for_mask, wanted)
        scores, kept = jnp.broadcast_arrays(scores, kept)
        scores = jnp.where(kept, scores, jnp.float32(fill))
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights, letters = _without_repeats(weights, wanted, sizes, keep=KEY)
    found = "".join(c for c in axes.result if c in letters + for_v)
    out = jnp.einsum(
        f"{letters},{for_v}->{found}",
        weights,
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    shape = tuple(sizes[c] for c in axes.result)
    return jnp.broadcast_to(_spread(out, found, axes.result), shape).astype(q.dtype)


def _without_repeats(
    array: jax.Array, letters: str, sizes: dict[str, Any], *, keep: str
) -> tuple[jax.Array, str]:
    """Leave out axes that only repeat, but for some, which are repeated."""
    kept = [
        c in keep or array.shape[i] == sizes[c] or c == VALUE
        for i, c in enumerate(letters)
    ]
    shape = tuple(
        sizes[c] if c in keep else array.shape[i] for i, c in enumerate(letters)
    )
    array = jnp.broadcast_to(array, shape)
    array = jnp.squeeze(array, tuple(i for i, here in enumerate(kept) if not here))
    return array, "".join(c for c, here in zip(letters, kept, strict=True) if here)


def _spread(array: jax.Array, letters: str, wanted: str) -> jax.Array:
    """Bring axes in order, and put 1 for those that are not there."""
    order = [letters.index(c) for c in wanted if c in letters]
    missing = [i for i, c in enumerate(wanted) if c not in letters]
    return jnp.expand_dims(jnp.transpose(array, order), missing)
