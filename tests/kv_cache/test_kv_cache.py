"""A cache of few bits holds what NumPy rounds, and attention over it is attention."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import kv_cache
from jcompress.formats import (
    Binary,
    Float4,
    Float8,
    FloatScales,
    Int,
    NormalFloat4,
    PowerOfTwoScales,
    QuantizedScales,
)
from jcompress.kv_cache import CacheFormat, Vectors, channels, spec
from jcompress.kv_cache import attention as attention_module
from jcompress.kv_cache import cache as cache_module

BATCH, LENGTH, HEADS, SIZE = 2, 20, 2, 16
rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


KEYS, VALUES = (normal(BATCH, LENGTH, HEADS, SIZE) for _ in range(2))
QUERIES = normal(BATCH, LENGTH, 3 * HEADS, SIZE)

FORMATS = {
    "floats": None,
    "int8": Vectors(),
    "int4 zero": Vectors(format=Int(4, symmetric=False)),
    "int4 group": Vectors(format=Int(4, symmetric=False), group=8),
    "int4 single": Vectors(format=Int(4), group=1),
    "int2": Vectors(format=Int(2, symmetric=False), group=4),
    "int3": Vectors(format=Int(3)),
    "float8": Vectors(format=Float8(), scales=FloatScales(32)),
    "float4 group": Vectors(format=Float4(), group=8, scales=PowerOfTwoScales()),
    "nf4": Vectors(format=NormalFloat4()),
}
STEP = {"int8": 1 / 254, "int4 zero": 1 / 15, "int4 group": 1 / 15, "float8": 1 / 32}


update, read = jax.jit(kv_cache.update), jax.jit(kv_cache.read)
attend = jax.jit(kv_cache.attend, static_argnames="block")


def both(name: str) -> CacheFormat:
    return CacheFormat(keys=FORMATS[name], values=FORMATS[name])


def filled(format: CacheFormat, count: int = LENGTH, **given: Any) -> kv_cache.KVCache:
    cache = kv_cache.init(format, BATCH, LENGTH, HEADS, SIZE, **given)
    return update(cache, KEYS[:, :count], VALUES[:, :count], 0)


def attention(queries: Any, keys: Any, values: Any, position: Any) -> np.ndarray:
    """Causal attention in float64, query by query."""
    queries, keys, values = (np.asarray(x, np.float64) for x in (queries, keys, values))
    out = np.zeros(queries.shape)
    each = queries.shape[2] // keys.shape[2]
    for b, n, h in np.ndindex(*queries.shape[:3]):
        end = np.broadcast_to(position, queries.shape[:1])[b] + n + 1
        scores = keys[b, :end, h // each] @ queries[b, n, h] / np.sqrt(SIZE)
        weights = np.exp(scores - scores.max())
        out[b, n, h] = weights @ values[b, :end, h // each] / weights.sum()
    return out


def bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype(jnp.bfloat16).astype(np.float32)


def test_what_is_stored_is_what_numpy_rounds() -> None:
    vectors = Vectors(format=Int(4, symmetric=False), group=8)
    keys, _ = read(filled(CacheFormat(keys=vectors)))
    grouped = np.asarray(KEYS).reshape(BATCH, LENGTH, HEADS, 2, 8)
    low = np.minimum(grouped.min(-1, keepdims=True), 0)
    scale = bfloat16((np.maximum(grouped.max(-1, keepdims=True), 0) - low) / 15)
    zero = np.clip(np.round(-8 - low / scale), -8, 7)
    numbers = np.clip(np.round(grouped / scale) + zero, -8, 7)
    wanted = ((numbers - zero) * scale).reshape(KEYS.shape)
    np.testing.assert_allclose(keys, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_attention_is_that_over_the_dense_keys(name: str) -> None:
    cache = filled(both(name), 17)
    keys, values = read(cache)
    if name in STEP:
        width = np.ptp(np.asarray(KEYS), axis=-1).max()
        assert 0 < abs(keys - KEYS)[:, :17].max() < width * STEP[name]
    # A prefill and a single token, of which the last block of 8 overlaps another.
    for first, end in ((0, 17), (16, 17)):
        new = QUERIES[:, first:end]
        got = attend(cache, new, jnp.int32(first), block=8)
        wanted = attention(new, keys, values, first)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_keys_and_values_of_different_formats() -> None:
    cache = filled(CacheFormat(keys=FORMATS["int4 group"], values=FORMATS["int8"]))
    got = attend(cache, QUERIES, jnp.int32(0), block=8)
    np.testing.assert_allclose(
        got, attention(QUERIES, *read(cache), 0), rtol=0, atol=2e-6
    )


def test_token_by_token_is_the_same_as_all_at_once() -> None:
    """In a scan, under vmap, with positions of each sequence, and with donation."""
    format = both("int4 group")
    whole = filled(format)

    def step(cache: Any, new: Any) -> tuple[Any, jax.Array]:
        keys, values, query, at = new
        cache = kv_cache.update(cache, keys, values, at)
        return cache, kv_cache.attend(cache, query, at, block=8)

    tokens = tuple(x.swapaxes(0, 1)[:, :, None] for x in (KEYS, VALUES, QUERIES))
    places = jnp.arange(LENGTH, dtype=jnp.int32)
    empty = kv_cache.init(format, BATCH, LENGTH, HEADS, SIZE)
    end, out = jax.jit(lambda c, *n: jax.lax.scan(step, c, n))(empty, *tokens, places)
    jax.tree.map(np.testing.assert_array_equal, end, whole)
    wanted = attention(QUERIES, *read(whole), 0)
    np.testing.assert_allclose(out[:, :, 0].swapaxes(0, 1), wanted, rtol=0, atol=2e-6)

    # Two sequences of unlike lengths: at once, and each by itself.
    at = jnp.asarray([3, 11], jnp.int32)
    new = tuple(x[:, :2] for x in (KEYS, VALUES, QUERIES))
    cache, got = jax.jit(step)(whole, (*new, at))
    wanted = attention(new[2], *read(cache), at)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)
    lone = jax.tree.map(lambda x: x[:, None], (whole, *new))
    mapped, each = jax.vmap(lambda c, k, v, q, n: step(c, (k, v, q, n)))(*lone, at)
    np.testing.assert_allclose(each[:, 0], got, rtol=0, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b), mapped, cache)


@pytest.mark.bits
def test_the_cache_is_changed_in_place_and_never_dense() -> None:
    length = 4096
    four = Vectors(format=Int(4, symmetric=False))
    cache = kv_cache.init(CacheFormat(keys=four, values=four), 1, length, 2, 64)

    def step(cache: Any, new: jax.Array, at: jax.Array) -> tuple[Any, jax.Array]:
        cache = kv_cache.update(cache, new, new, at)
        return cache, kv_cache.attend(cache, new, at)

    lowered = jax.jit(step, donate_argnums=0).lower(
        cache, jnp.ones((1, 1, 2, 64)), jnp.int32(0)
    )
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes == cache.stored_bytes
    dense = 2 * length * 64 * 4
    assert memory.temp_size_in_bytes < dense / 4


def test_bytes_of_a_token() -> None:
    def bytes_of(format: CacheFormat, size: int = 128) -> float:
        made = jax.eval_shape(
            lambda: kv_cache.init(format, 3, 10, 4, size, jnp.bfloat16)
        )
        return made.stored_bytes / (3 * 10 * 4 * 2)

    four = Vectors(format=Int(4))
    assert bytes_of(both("floats")) == 2 * 128
    assert bytes_of(CacheFormat()) == 128 + 2
    assert bytes_of(CacheFormat(keys=four, values=four)) == 64 + 2  # 0.26 of bfloat16
    zeros = Vectors(format=Int(4, symmetric=False), group=32)
    assert bytes_of(CacheFormat(keys=zeros, values=four)) == 64 + (4 * 3 + 2) / 2


def test_channels_that_stand_out_are_divided_out() -> None:
    large = np.ones(SIZE, np.float32)
    large[[3, 9]] = 30
    scaled = KEYS * large[None, None, None]
    scales = kv_cache.fit_key_scales(scaled[:, :10])
    four = CacheFormat(keys=Vectors(format=Int(4)), values=None)
    cache = kv_cache.init(four, BATCH, LENGTH, HEADS, SIZE)
    plain = update(cache, scaled, VALUES, 0)
    cache = kv_cache.init(four, BATCH, LENGTH, HEADS, SIZE, key_scales=scales)
    even = update(cache, scaled, VALUES, 0)

    def error(cache: Any) -> Any:
        keys, _ = read(cache)
        return np.linalg.norm((keys - scaled) / large[None, None, None])

    assert error(even) < error(plain) / 2
    queries = QUERIES / large[None, None, None]
    got = attend(even, queries, 0)
    wanted = attention(queries, *read(even), 0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def test_masked_positions_are_not_seen() -> None:
    cache = filled(CacheFormat())
    mask = np.ones((BATCH, LENGTH), bool)
    mask[0, :3] = False
    got = attend(cache, QUERIES, 0, mask=jnp.asarray(mask), block=8)
    keys, values = read(cache)
    wanted = attention(QUERIES[:1, 3:], keys[:1, 3:], values[:1, 3:], 0)
    np.testing.assert_allclose(got[0, 3:], wanted[0], rtol=0, atol=2e-6)
    assert not np.any(got[0, :3])


def test_behind_the_end_raises_or_stays_at_the_end() -> None:
    cache = filled(CacheFormat())
    new = KEYS[:, :3]
    for at in (18, -1, jnp.asarray([0, 18])):
        with pytest.raises(ValueError, match="not all within the 20 of the cache"):
            kv_cache.update(cache, new, new, at)
    late, last = (update(cache, new, new, jnp.int32(at)) for at in (18, 17))
    jax.tree.map(np.testing.assert_array_equal, late, last)


def test_misuse_is_told() -> None:
    cache = filled(CacheFormat())
    wrong = {
        "keys are float32 [2, 3, 2, 8]": lambda: kv_cache.update(
            cache, KEYS[:, :3, :, :8], VALUES[:, :3], 0
        ),
        "values are float32 [2, 2, 2, 16]": lambda: kv_cache.update(
            cache, KEYS[:, :3], VALUES[:, :2], 0
        ),
        "position is an int": lambda: kv_cache.update(cache, KEYS, VALUES, 0.0),
        "a multiple of 2": lambda: kv_cache.attend(cache, QUERIES[:, :, :3], 0),
        "groups of 5 do not divide 16": lambda: kv_cache.init(
            CacheFormat(keys=Vectors(group=5)), 1, 8, 1, 16
        ),
        "length is a positive int": lambda: kv_cache.init(CacheFormat(), 1, 0, 1, 16),
        "key_scales is [heads, size] = [2, 16]": lambda: kv_cache.init(
            CacheFormat(), 1, 8, 2, 16, key_scales=jnp.ones(16)
        ),
        "2 bits or more": lambda: Vectors(format=Binary()),
        "has a factor": lambda: Vectors(scales=QuantizedScales()),
        "mask is bool [2, 20]": lambda: kv_cache.attend(
            cache, QUERIES, 0, mask=jnp.ones((2, 20))
        ),
    }
    for text, call in wrong.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert text in str(caught.value)


def test_examples_of_the_docstrings() -> None:
    found = 0
    for module in (spec, cache_module, channels, attention_module):
        failed, attempted = doctest.testmod(module)
        assert not failed
        found += attempted
    assert found > 10
