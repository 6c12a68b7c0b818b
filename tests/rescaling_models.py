"""Small models for the tests of what moves scales and rotations."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDTH, HIDDEN, HEADS, LENGTH, WORDS = 16, 32, 2, 6, 11


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> jax.Array:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)


def mlp(p: Any, x: jax.Array) -> jax.Array:
    more = (None,) * (x.ndim - 1)
    return jax.nn.relu(x @ p["up"] + p["bias"][more]) @ p["down"]


def mlp_params() -> Any:
    """Hidden channels of very different sizes."""
    sizes = jnp.exp2(jnp.arange(HIDDEN, dtype=jnp.float32) % 7 - 3)
    return {
        "up": normal(WIDTH, HIDDEN) * sizes[None],
        "bias": normal(HIDDEN) * sizes,
        "down": normal(HIDDEN, WIDTH),
    }


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    size = jnp.mean(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(size + 1e-6) * scale[(None,) * (x.ndim - 1)]


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    middle = x - x.mean(-1, keepdims=True)
    size = jnp.mean(jnp.square(middle), -1, keepdims=True)
    more = (None,) * (x.ndim - 1)
    return middle / jnp.sqrt(size + 1e-6) * scale[more] + bias[more]


def attend(p: Any, h: jax.Array) -> jax.Array:
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in ("q", "k", "v"))
    scores = jnp.einsum("bqhk,bthk->bhqt", q, k) / np.float32(np.sqrt(q.shape[-1]))
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
    mixed = jnp.einsum("bhqt,bthk->bqhk", weights, v)
    return jnp.einsum("bqhk,hkd->bqd", mixed, p["o"])


def llama_block(p: Any, x: jax.Array) -> jax.Array:
    x = x + attend(p, rms_norm(x, p["norm1"]))
    h = rms_norm(x, p["norm2"])
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def block_params(*layers: int, seed: int = 0) -> Any:
    head = WIDTH // HEADS

    def weight(*shape: int, number: int) -> jax.Array:
        return normal(*layers, *shape, seed=seed + number, scale=0.25)

    return {
        **{n: weight(WIDTH, HEADS, head, number=i) for i, n in enumerate("qkv")},
        "o": weight(HEADS, head, WIDTH, number=3),
        "gate": weight(WIDTH, HIDDEN, number=4),
        "up": weight(WIDTH, HIDDEN, number=5),
        "down": weight(HIDDEN, WIDTH, number=6),
        "norm1": 1 + weight(WIDTH, number=7),
        "norm2": 1 + weight(WIDTH, number=8),
    }


def with_outliers(p: Any, channels: Sequence[int] = (2, 9)) -> Any:
    """The norms give two channels that are forty times as large, and little read."""
    picked = list(channels)
    p = dict(p)
    for norm, readers in (("norm1", "qkv"), ("norm2", ("gate", "up"))):
        p[norm] = p[norm].at[..., jnp.array(picked)].multiply(40.0)
        for name in readers:
            axis = p[norm].ndim - 1
            where = (slice(None),) * axis + (jnp.array(picked),)
            p[name] = p[name].at[where].divide(20.0)
    return p


def layers(p: Any, x: jax.Array) -> jax.Array:
    """A scan over blocks with stacked weights."""
    return jax.lax.scan(lambda x, q: (llama_block(q, x), None), x, p)[0]


def transformer(p: Any, tokens: jax.Array) -> jax.Array:
    """Token numbers to logits, with a scan over blocks between."""
    x = layers(p["layers"], p["embed"][tokens])
    return rms_norm(x, p["norm"]) @ p["head"]


def transformer_params() -> Any:
    return {
        "embed": normal(WORDS, WIDTH),
        "layers": block_params(2),
        "norm": 1 + normal(WIDTH, scale=0.2, seed=9),
        "head": normal(WIDTH, WORDS, scale=0.3),
    }


def tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).integers(0, WORDS, (2, LENGTH)))


def convolutions(p: Any, x: jax.Array) -> jax.Array:
    """Convolution, relu, pool, depthwise convolution, relu, convolution."""
    dims = ("NHWC", "HWIO", "NHWC")

    def conv(x: jax.Array, w: jax.Array, groups: int = 1) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
        )

    x = jax.nn.relu(conv(x, p["first"]) + p["bias"][None, None, None])
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
    )
    x = jax.nn.leaky_relu(conv(x, p["deep"], x.shape[-1]))
    return conv(x, p["last"])


def convolution_params() -> Any:
    sizes = jnp.exp2(jnp.arange(8, dtype=jnp.float32) - 4)
    return {
        "first": normal(3, 3, 3, 8) * sizes[None, None, None],
        "bias": normal(8) * sizes,
        "deep": normal(3, 3, 1, 8),
        "last": normal(3, 3, 8, 4) / sizes[None, None, :, None],
    }


def images() -> jax.Array:
    return normal(2, 6, 6, 3)


def relative(found: Any, expected: Any) -> float:
    """The norm of the difference over that of the expected."""
    a, b = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
