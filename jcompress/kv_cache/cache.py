"""The cache itself: a pytree of fixed size that keys and values are written into."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.kv_cache.spec import CacheFormat, Vectors
from jcompress.tensors.ranges import Range, range_of, scale_and_zero
from jcompress.tensors.rounding import (
    dequantize_values,
    quantize_values,
    round_to,
    within_range,
)

_STATIC: dict[str, Any] = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """Vectors as they are stored, [B, H, T] of `size` numbers each.

    With `group = size / G` and in float32:

        vectors[b, h, t, d] = (numbers[b, h, t, d] - zeros[b, h, t, d // group])
            * scales[b, h, t, d // group] * unit

    Attributes:
        numbers: packed along the last axis, [B, H, T, stored_size(size)]; floats of
            `dtype` if `spec` is None.
        scales: [B, H, T, G] of the dtype of `spec.scales`; None if `spec` is.
        zeros: the integers that stand for 0, of the shape of the scales; None if the
            format is symmetric.
        spec: how they are stored.
        size: numbers of a vector.
        dtype: what they are read as.
    """

    numbers: jax.Array
    scales: jax.Array | None
    zeros: jax.Array | None
    spec: Vectors | None = dataclasses.field(metadata=_STATIC)
    size: int = dataclasses.field(metadata=_STATIC)
    dtype: np.dtype[Any] = dataclasses.field(metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of up to `length` tokens; made by `init`.

    Attributes:
        keys: the stored keys, divided by `key_scales` if there are any.
        values: the stored values.
        key_scales: float32 [H, size], by what each channel of the keys is divided
            before it is rounded; None for 1.
    """

    keys: Stored
    values: Stored
    key_scales: jax.Array | None

    @property
    def length(self) -> int:
        """The number of tokens for which there is room."""
        return int(self.keys.numbers.shape[2])

    @property
    def stored_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays = jax.tree.leaves(self)
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays)


def init(
    format: CacheFormat,
    batch: int,
    length: int,
    heads: int,
    size: int,
    dtype: Any = jnp.float32,
    *,
    key_scales: jax.Array | None = None,
) -> KVCache:
    """Make an empty cache, of zeros.

    Args:
        format: how keys and values are stored.
        batch: sequences, B.
        length: the most tokens of a sequence, T.
        heads: heads of keys and values, H.
        size: numbers of a head's vector.
        dtype: float dtype that they are read as, and stored as where `format` says so.
        key_scales: float32 [H, size] of `fit_key_scales`, for keys some of whose
            channels are much larger than others.

    Returns:
        The cache; its arrays are [B, H, T, ...].

    Raises:
        TypeError: `format` is no `CacheFormat`.
        ValueError: a size is not a positive int, the dtype is not one of floats, the
            groups do not divide `size`, or `key_scales` has another shape.

    Example:
        >>> from jcompress import kv_cache
        >>> from jcompress.formats import Int
        >>> four = kv_cache.Vectors(format=Int(4))
        >>> small = kv_cache.CacheFormat(keys=four, values=four)
        >>> kv_cache.init(small, 1, 100, 8, 64).stored_bytes  # 2 8 100 (32 + 2)
        54400
    """
    if not isinstance(format, CacheFormat):
        raise TypeError(f"kv_cache.init: format is a CacheFormat, not {format!r}")
    sizes = {"batch": batch, "length": length, "heads": heads, "size": size}
    for name, number in sizes.items():
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not whole or number < 1:
            raise ValueError(f"kv_cache.init: {name} is a positive int, not {number!r}")
    kind = np.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"kv_cache.init: dtype is one of floats, not {kind}")
    if key_scales is not None:
        if tuple(key_scales.shape) != (heads, size):
            raise ValueError(
                f"kv_cache.init: key_scales is [heads, size] = [{heads}, {size}], not "
                f"{list(key_scales.shape)}"
            )
        key_scales = jnp.asarray(key_scales, jnp.float32)
    lead = (batch, heads, length)
    return KVCache(
        keys=_empty(format.keys, lead, size, kind),
        values=_empty(format.values, lead, size, kind),
        key_scales=key_scales,
    )


def _empty(
    spec: Vectors | None, lead: tuple[int, ...], size: int, dtype: np.dtype[Any]
) -> Stored:
    scales = zeros = None
    if spec is None:
        numbers = jnp.zeros((*lead, size), dtype)
    else:
        width = spec.format.stored_size(size)
        numbers = jnp.zeros((*lead, width), spec.format.stored_dtype)
        shared = (*lead, spec.groups(size))
        scales = jnp.zeros(shared, spec.scales.dtype)
        if not spec.format.symmetric:
            zeros = jnp.zeros(shared, spec.format.dtype)
    return Stored(
        numbers=numbers, scales=scales, zeros=zeros, spec=spec, size=size, dtype=dtype
    )


def update(
    cache: KVCache, keys: jax.Array, values: jax.Array, position: Any
) -> KVCache:
    """Write the keys and values of new tokens into a cache.

    Under `jit` with the cache donated, and in the carry of a `scan`, the arrays are
    changed in place. Like `lax.dynamic_update_slice`, a traced position at which the
    tokens do not fit any more moves back to the last one at which they do, and what
    was there is lost: see to it that generation ends in time.

    Args:
        cache: the cache.
        keys: floats [B, N, H, size] of N tokens.
        values: floats [B, N, H, size].
        position: that of the first token, an int; or int [B], one for each sequence.

    Returns:
        The cache with the tokens at `position` to `position + N - 1`.

    Raises:
        ValueError: shapes or dtypes do not fit the cache, or the tokens do not fit
            behind a position that is known when the function is traced.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jcompress import kv_cache
        >>> cache = kv_cache.init(kv_cache.CacheFormat(), 1, 8, 2, 4)
        >>> new = jnp.ones((1, 3, 2, 4))
        >>> cache = jax.jit(kv_cache.update)(cache, new, new, 2)
        >>> keys, _ = jax.jit(kv_cache.read)(cache)
        >>> [round(float(x), 2) for x in keys[0, :, 0, 0]]
        [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    batch, heads, length = cache.keys.numbers.shape[:3]
    for name, given in (("keys", keys), ("values", values)):
        wanted = (batch, keys.shape[1] if keys.ndim > 1 else 1, heads, cache.keys.size)
        if given.shape != wanted or not jnp.issubdtype(given.dtype, jnp.floating):
            raise ValueError(
                f"kv_cache.update: {name} are {given.dtype} {list(given.shape)}; this "
                f"cache takes floats [{batch}, N, {heads}, {cache.keys.size}], as many "
                "tokens of both"
            )
    count = keys.shape[1]
    at = checked_position("kv_cache.update", position, count, batch, length)
    # Written by hand since a position below 0 would count from the end.
    at = jnp.clip(at, np.int32(0), np.int32(length - count))
    if cache.key_scales is not None:
        keys = keys.astype(jnp.float32) * (np.float32(1) / cache.key_scales)[None, None]
    return dataclasses.replace(
        cache,
        keys=_written(cache.keys, keys, at),
        values=_written(cache.values, values, at),
    )


def checked_position(
    what: str, position: Any, count: int, batch: int, length: int
) -> jax.Array:
    """A position as int32, [] or [B].

    Raises:
        ValueError: it is not one of integers, has another shape, or `count` tokens do
            not fit behind it, if it is known.
    """
    found = position if isinstance(position, jax.Array) else np.asarray(position)
    if not jnp.issubdtype(found.dtype, jnp.integer) or found.shape not in (
        (),
        (batch,),
    ):
        raise ValueError(
            f"{what}: position is an int or int [{batch}], one for each sequence, not "
            f"{found.dtype} {list(found.shape)}"
        )
    if count > length:
        raise ValueError(f"{what}: {count} tokens are more than the cache's {length}")
    if not isinstance(found, jax.core.Tracer):
        known = np.asarray(found)
        low, high = int(known.min()), int(known.max())
        if low < 0 or high + count > length:
            raise ValueError(
                f"{what}: tokens {low if low < 0 else high} to "
                f"{(low if low < 0 else high) + count - 1} are not all within the "
                f"{length} of the cache; make it longer with kv_cache.init"
            )
    return jnp.asarray(found).astype(jnp.int32)


def _written(stored: Stored, vectors: jax.Array, at: jax.Array) -> Stored:
    new = _rounded(stored, jnp.swapaxes(vectors, 1, 2))

    def put(array: jax.Array, part: jax.Array) -> jax.Array:
        zero = jnp.int32(0)
        if at.ndim == 0:
            return jax.lax.dynamic_update_slice(array, part, (zero, zero, at, zero))

        def one(array: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(array, part, (zero, at, zero))

        written: jax.Array = jax.vmap(one)(array, part, at)
        return written

    changed: Stored = jax.tree.map(put, stored, new)
    return changed


def _rounded(stored: Stored, x: jax.Array) -> Stored:
    """Vectors [B, H, N, size] as they are stored."""
    spec = stored.spec
    if spec is None:
        return dataclasses.replace(stored, numbers=x.astype(stored.dtype))
    groups = spec.groups(stored.size)
    grouped = x.reshape(*x.shape[:-1], groups, stored.size // groups)
    span = Range(*(end[..., 0] for end in range_of(grouped, -1)))
    scales, zeros = scale_and_zero(span, spec.format, spec.scales)
    shifts = None if zeros is None else zeros[..., None]
    steps = quantize_values(grouped, scales[..., None], shifts, spec.format)
    if spec.format.unit != 1:
        steps = steps * np.float32(1 / spec.format.unit)
    numbers = steps.astype(spec.format.dtype).reshape(x.shape)
    return dataclasses.replace(
        stored,
        numbers=spec.format.pack(numbers),
        scales=spec.scales.store(scales)[0],
        zeros=None if zeros is None else zeros.astype(spec.format.dtype),
    )


def read(cache: KVCache) -> tuple[jax.Array, jax.Array]:
    """Make all keys and values of a cache dense.

    Args:
        cache: the cache.

    Returns:
        Keys and values, [B, T, H, size] of the cache's dtype; zeros where nothing was
        written.
    """
    keys, values = _dense(cache.keys), _dense(cache.values)
    if cache.key_scales is not None:
        keys = keys * cache.key_scales[None, :, None]
    dtype = cache.keys.dtype
    found = (round_to(within_range(x, dtype), dtype) for x in (keys, values))
    first, second = (jnp.swapaxes(x, 1, 2) for x in found)
    return first, second


def _dense(stored: Stored) -> jax.Array:
    numbers, scales = unscaled(stored)
    return numbers if scales is None else numbers * scales


def unscaled(stored: Stored) -> tuple[jax.Array, jax.Array | None]:
    """Vectors without their scale, where they have one each.

    Returns:
        Float32 [B, H, T, size], and the scales [B, H, T, 1] that are left to be
        multiplied with; None if there are none or if groups had their own.
    """
    spec = stored.spec
    if spec is None:
        return stored.numbers.astype(jnp.float32), None
    assert stored.scales is not None
    numbers = spec.format.unpack(stored.numbers, stored.size)
    scales = spec.scales.read(stored.scales, None) * np.float32(spec.format.unit)
    groups = scales.shape[-1]
    if groups == 1:
        one = np.ones((1,) * numbers.ndim, np.float32)
        return dequantize_values(numbers, jnp.asarray(one), stored.zeros), scales
    grouped = numbers.reshape(*numbers.shape[:-1], groups, stored.size // groups)
    zeros = None if stored.zeros is None else stored.zeros[..., None]
    dense = dequantize_values(grouped, scales[..., None], zeros)
    return dense.reshape(numbers.shape), None
