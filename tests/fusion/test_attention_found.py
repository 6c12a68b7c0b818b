"""Softmax attention is found however it is written, and nothing else is."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import Fusion, fused
from jcompress.fusion import find_fusions
from jcompress.tracing.trace import trace

B, T, S, H, D = 2, 5, 7, 4, 6
LOW = np.float32(-1e9)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers.astype(np.float32))


def qkv(q: str = "bthd", kv: str = "bshd", kv_heads: int = H) -> dict[str, jax.Array]:
    sizes = {"b": B, "t": T, "s": S, "h": H, "d": D}
    return {
        "q": normal(*(sizes[c] for c in q), seed=1),
        "k": normal(*({**sizes, "h": kv_heads}[c] for c in kv), seed=2),
        "v": normal(*({**sizes, "h": kv_heads}[c] for c in kv), seed=3),
    }


def found(fn: Any, params: Any, *args: Any) -> int:
    traced = trace(fn, params, args, {}, write_out_calls=True)
    return len(find_fusions(traced.body, {Fusion.ATTENTION}))


def check(fn: Any, params: Any, *args: Any, count: int = 1) -> None:
    """As many attentions as said, and results that agree."""
    assert found(fn, params, *args) == count
    got = jax.jit(fused(fn))(params, *args)
    expected = jax.jit(fn)(params, *args)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        top = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * top)


def einsum(p: Any) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"]) * np.float32(0.5)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])


def matmul(p: Any) -> jax.Array:
    scores = p["q"] @ jnp.swapaxes(p["k"], -1, -2) / np.float32(math.sqrt(D))
    return jnp.matmul(jax.nn.softmax(scores, axis=-1), p["v"])


def with_bias(p: Any, bias: jax.Array) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"]) * np.float32(0.5) + bias
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])


def bias_first(p: Any, bias: jax.Array) -> jax.Array:
    scores = bias + jnp.einsum("bshd,bthd->bhts", p["k"], p["q"])
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])


def masked(p: Any, mask: jax.Array) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    scores = jnp.where(mask, scores, LOW)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])


def mask_says_out(p: Any, mask: jax.Array) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    scores = jnp.where(jnp.logical_not(mask), LOW, scores)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])


def softmax_by_hand(p: Any) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.einsum("bhts,bshd->bthd", weights, p["v"])


def several_queries(p: Any) -> jax.Array:
    """One key head for all: multi-query attention."""
    scores = jnp.einsum("bthd,bsd->bhts", p["q"], p["k"][:, :, 0])
    return jnp.einsum("bhts,bsd->bthd", jax.nn.softmax(scores), p["v"][:, :, 0])


@pytest.mark.parametrize(
    ("fn", "layout"),
    [
        (einsum, ("bthd", "bshd")),
        (matmul, ("bhtd", "bhsd")),
        (softmax_by_hand, ("bthd", "bshd")),
        (several_queries, ("bthd", "bshd")),
    ],
)
def test_ways_to_write_it(fn: Callable[..., Any], layout: tuple[str, str]) -> None:
    check(fn, qkv(*layout))


def masked_heads(p: Any, kept: jax.Array) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jnp.einsum("h,bhts->bhts", kept, jax.nn.softmax(scores))
    return jnp.einsum("bhts,bshd->bthd", weights, p["v"])


def weighed_keys(p: Any, kept: jax.Array) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jnp.einsum("s,bhts->bhts", kept, jax.nn.softmax(scores))
    return jnp.einsum("bhts,bshd->bthd", weights, p["v"])


def test_factors_of_heads() -> None:
    check(masked_heads, qkv(), jnp.arange(H).astype(jnp.float32))


def test_factors_of_keys_are_left_alone() -> None:
    assert found(weighed_keys, qkv(), normal(S)) == 0


def test_a_bias_that_is_left_out() -> None:
    """Some models add the number 0 to the scores where a setting gives no bias."""

    def fn(p: Any) -> jax.Array:
        scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"]) + np.float32(0)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores + 0.0), p["v"])

    check(fn, qkv())

    def number(p: Any, bias: Any) -> jax.Array:
        return with_bias(p, jnp.broadcast_to(bias, (1, 1, 1, 1)))

    check(number, qkv(), np.float32(2))

    def five(p: Any) -> jax.Array:
        scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"]) + np.float32(5)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])

    assert found(five, qkv()) == 0


@pytest.mark.parametrize("shape", [(B, 1, 1, S), (1, H, T, S), (B, H, T, S)])
@pytest.mark.parametrize("fn", [with_bias, bias_first])
def test_bias(fn: Callable[..., Any], shape: tuple[int, ...]) -> None:
    check(fn, qkv(), normal(*shape, seed=4))


@pytest.mark.parametrize("shape", [(B, 1, 1, S), (1, 1, T, S), (B, H, T, S)])
@pytest.mark.parametrize("fn", [masked, mask_says_out])
def test_mask(fn: Callable[..., Any], shape: tuple[int, ...]) -> None:
    check(fn, qkv(), normal(*shape, seed=4) > 0)


def test_rows_that_see_nothing() -> None:
    mask = normal(B, 1, T, S) > 0
    check(masked, qkv(), mask.at[:, :, 2].set(False))


@pytest.mark.parametrize("kv_heads", [1, 2, H])
@pytest.mark.parametrize("causal", [False, True])
def test_of_jax(causal: bool, kv_heads: int) -> None:
    def fn(p: Any) -> jax.Array:
        return jax.nn.dot_product_attention(p["q"], p["k"], p["v"], is_causal=causal)

    check(fn, qkv(kv_heads=kv_heads))


def test_of_flax_with_a_causal_mask() -> None:
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    x = normal(2, 5, 8)
    mask = nn.make_causal_mask(jnp.ones((2, 5)), dtype=jnp.bool_)
    params = model.init(jax.random.key(0), x, mask=mask)
    check(lambda p, x: model.apply(p, x, mask=mask), params, x)


def test_queries_that_are_parameters() -> None:
    def pooled(p: Any, x: jax.Array) -> jax.Array:
        scores = jnp.einsum("td,bsd->bts", p["q"], x)
        return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x)

    check(pooled, {"q": normal(3, D)}, normal(B, S, D))


def test_one_step_of_decoding() -> None:
    def step(p: Any, cache: jax.Array, position: jax.Array) -> jax.Array:
        scores = jnp.einsum("qhd,thd->hqt", p["q"], cache) * np.float32(0.5)
        seen = jnp.arange(S, dtype=jnp.int32) <= position
        scores = jnp.where(seen[None, None], scores, LOW)
        return jnp.einsum("hqt,thd->qhd", nn.softmax(scores), cache)

    check(step, {"q": normal(1, H, D)}, normal(S, H, D), jnp.int32(4))


def test_in_a_scan_over_layers() -> None:
    def deep(p: Any, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return x + einsum({"q": x @ w, "k": x, "v": x}), None

        return jax.lax.scan(jax.checkpoint(layer), x, p)[0]

    check(deep, normal(3, D, D), normal(B, T, H, D))


# ---- What is left alone ----


def over_queries(p: Any) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-2), p["v"])


def capped(p: Any) -> jax.Array:
    scores = jnp.tanh(jnp.einsum("bthd,bshd->bhts", p["q"], p["k"]))
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])


def weights_returned(p: Any) -> tuple[jax.Array, jax.Array]:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jax.nn.softmax(scores)
    return jnp.einsum("bhts,bshd->bthd", weights, p["v"]), weights


def dropped(p: Any, kept: jax.Array) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jnp.where(kept, jax.nn.softmax(scores), np.float32(0))
    return jnp.einsum("bhts,bshd->bthd", weights, p["v"])


def two_softmaxes(p: Any) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jax.nn.softmax(jax.nn.softmax(scores))
    return jnp.einsum("bhts,bshd->bthd", weights, p["v"])


def almost_softmax(p: Any) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / (np.float32(1) + jnp.sum(weights, axis=-1, keepdims=True))
    return jnp.einsum("bhts,bshd->bthd", weights, p["v"])


def stopped_sum(p: Any) -> jax.Array:
    """The numbers of a softmax, and another gradient."""
    scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = jax.lax.stop_gradient(jnp.sum(weights, axis=-1, keepdims=True))
    return jnp.einsum("bhts,bshd->bthd", weights / total, p["v"])


@pytest.mark.parametrize(
    "fn",
    [
        stopped_sum,
        over_queries,
        capped,
        weights_returned,
        two_softmaxes,
        almost_softmax,
    ],
)
def test_other_things_are_left_alone(fn: Callable[..., Any]) -> None:
    assert found(fn, qkv()) == 0


def test_dropout_is_left_alone() -> None:
    assert found(dropped, qkv(), normal(B, H, T, S) > 0) == 0


def test_other_dtypes_are_left_alone() -> None:
    def half(p: Any) -> jax.Array:
        scores = jnp.einsum("bthd,bshd->bhts", p["q"], p["k"])
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), p["v"])

    assert found(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), qkv())) == 0


def test_nothing_to_find_raises() -> None:
    with pytest.raises(ValueError, match="no attention and no normalisation"):
        fused(lambda p, x: x @ p)(normal(3, 3), normal(2, 3))


def test_switched_off() -> None:
    with pytest.raises(ValueError, match="no attention"):
        fused(einsum, without={Fusion.ATTENTION})(qkv())
