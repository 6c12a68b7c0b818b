"""Softmax attention over a cache, block by block of stored tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kv_cache.cache import KVCache, Stored, checked_position
from jcompress.kv_cache.parts import in_parts, unscaled_parts

BLOCK = 128
"""Tokens that are made dense at once."""


def attend(
    cache: KVCache,
    queries: jax.Array,
    position: Any,
    *,
    mask: jax.Array | None = None,
    scale: float | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """Attention of new queries over what is in a cache.

    With n(t, d) the numbers of key t less its zero point and s(t) its scale, the scores
    are `q . k = s(t) sum_d q_d n(t, d)`. Only `block` tokens are dense at a time; the
    sums of the softmax go from one block to the next, and blocks that no query sees
    are left out. Everything is summed in float32.

    Args:
        cache: the cache, with the keys and values of the new tokens already in it.
        queries: floats [B, N, Q, size] of N tokens. Q is a multiple of the heads H of
            the cache: query head h meets key head `h // (Q / H)`.
        position: that of the first of these tokens, an int or int [B]. Query n sees
            positions 0 to `position + n`.
        mask: bool [B, T], False for positions that no query may see, such as padding.
            A query that sees nothing gets zeros.
        scale: what scores are multiplied by; `size ** -0.5` if None.
        block: tokens of the cache that are taken at once.

    Returns:
        [B, N, Q, size] of the queries' dtype. With a traced position there is no
        reverse-mode derivative.

    Raises:
        ValueError: shapes or dtypes do not fit the cache, or the position is known and
            its tokens are not within the cache.

    References:
        Milakov and Gimelshein 2018, "Online normalizer calculation for softmax",
        algorithm 3; Dao et al. 2022, "FlashAttention", section 3.1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jcompress import kv_cache
        >>> cache = kv_cache.init(kv_cache.CacheFormat(), 1, 16, 2, 4)
        >>> new = jnp.ones((1, 3, 2, 4))
        >>> cache = jax.jit(kv_cache.update)(cache, new, new, 0)
        >>> jax.jit(kv_cache.attend)(cache, jnp.ones((1, 3, 8, 4)), 0).shape
        (1, 3, 8, 4)
    """
    batch, heads, length = cache.keys.numbers.shape[:3]
    size = cache.keys.size
    fits = queries.ndim == 4 and (queries.shape[0], queries.shape[3]) == (batch, size)
    floats = jnp.issubdtype(queries.dtype, jnp.floating)
    if not fits or queries.shape[2] % heads or not floats:
        raise ValueError(
            f"kv_cache.attend: queries are {queries.dtype} {list(queries.shape)}; this "
            f"cache takes floats [{batch}, N, a multiple of {heads}, {size}]"
        )
    if mask is not None and (mask.shape != (batch, length) or mask.dtype != bool):
        raise ValueError(
            f"kv_cache.attend: mask is bool [{batch}, {length}], not {mask.dtype} "
            f"{list(mask.shape)}"
        )
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"kv_cache.attend: block is a positive int, not {block!r}")
    count = queries.shape[1]
    at = checked_position("kv_cache.attend", position, count, batch, length)
    block = min(block, length)

    # [B, H, queries of a key's head, N, size]
    q = queries.astype(jnp.float32) * np.float32(size**-0.5 if scale is None else scale)
    q = q.reshape(batch, count, heads, -1, size).transpose(0, 2, 3, 1, 4)
    if cache.key_scales is not None:
        q = q * cache.key_scales[None, :, None, None]
    count_k, count_v = in_parts(cache.keys), in_parts(cache.values)
    queried = [q[..., n::count_k] for n in range(count_k)]
    # Against [., N, block]: the last position that each query sees.
    last = at.reshape(-1, 1, 1) + jnp.arange(count, dtype=jnp.int32)[None, :, None]

    def add(number: jax.Array, sums: "_Sums") -> "_Sums":
        first = number * np.int32(block)
        # The last block ends with the cache, and leaves out what was there before.
        start = jnp.minimum(first, np.int32(length - block))
        places = start + jnp.arange(block, dtype=jnp.int32)
        seen = (places[None, None] <= last) & (places >= first)[None, None]
        if mask is not None:
            part = jax.lax.dynamic_slice_in_dim(mask, start, block, axis=1)
            seen = seen & part[:, None]
        keys, key_scale = unscaled_parts(_part(cache.keys, start, block))
        # With the keys on the left XLA's CPU compiler makes them as they are stored,
        # else turned, a number at a time.
        scores = sum(
            jax.lax.dot_general(part, own, (((3,), (4,)), ((0, 1), (0, 1))))
            for part, own in zip(keys, queried, strict=True)
        )
        scores = jnp.moveaxis(jnp.asarray(scores), 2, -1)
        if key_scale is not None:
            scores = scores * _over_tokens(key_scale)
        scores = jnp.where(seen[:, None, None], scores, -np.float32(np.inf))
        most, total, mixed = sums
        higher = jnp.maximum(most, jnp.max(scores, axis=-1, keepdims=True))
        # Where nothing was seen yet there is nothing to subtract either.
        base = jnp.where(jnp.isfinite(higher), higher, np.float32(0))
        weights, before = jnp.exp(scores - base), jnp.exp(most - base)
        total = total * before + jnp.sum(weights, axis=-1, keepdims=True)
        values, value_scale = unscaled_parts(_part(cache.values, start, block))
        if value_scale is not None:
            weights = weights * _over_tokens(value_scale)
        mixed = [
            now * before + jnp.einsum("bhrnt,bhtd->bhrnd", weights, part)
            for now, part in zip(mixed, values, strict=True)
        ]
        return higher, total, mixed

    lead = q.shape[:-1]
    sums = (
        jnp.full((*lead, 1), -np.inf, jnp.float32),
        jnp.zeros((*lead, 1), jnp.float32),
        [jnp.zeros((*lead, size // count_v), jnp.float32)] * count_v,
    )
    if block == length:
        _, total, mixed = add(jnp.int32(0), sums)
    else:
        ends = jnp.clip(jnp.max(at) + np.int32(count), 1, length)
        blocks = (ends + np.int32(block - 1)) // np.int32(block)
        _, total, mixed = jax.lax.fori_loop(jnp.int32(0), blocks, add, sums)
    whole = jnp.stack(mixed, axis=-1).reshape(q.shape)
    out = whole / jnp.where(total > 0, total, np.float32(1))
    out = out.transpose(0, 3, 1, 2, 4).reshape(queries.shape)
    return out.astype(queries.dtype)


_Sums = tuple[jax.Array, jax.Array, list[jax.Array]]
"""The highest score, the sum of weights and the weighted values so far, in parts."""


def _part(stored: Stored, start: jax.Array, block: int) -> Stored:
    part: Stored = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, block, axis=2), stored
    )
    return part


def _over_tokens(scales: jax.Array) -> jax.Array:
    """[B, H, T, 1] against [B, H, queries, N, T]."""
    return scales[:, :, None, None, :, 0]
