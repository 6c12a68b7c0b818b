"""A decoder: rotary positions, grouped queries, SwiGLU, RMSNorm, a tied embedding."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from _models._model import Model, linen, tokens


def rotated(x: jax.Array) -> jax.Array:
    """Pairs of features turned by an angle that grows with the place.

    Args:
        x: float [batch, length, heads, features].
    """
    half = x.shape[-1] // 2
    slow = 10000.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
    angle = jnp.arange(x.shape[1], dtype=x.dtype)[:, None] * slow[None]
    angle = jnp.concatenate([angle, angle], axis=-1)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return x * jnp.cos(angle) + jnp.concatenate([-b, a], axis=-1) * jnp.sin(angle)


class Attention(nn.Module):
    """Causal attention in which several queries share a key and a value."""

    heads: int
    shared: int
    head_size: int
    fused: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        if self.fused:
            size = 3 * self.heads * self.head_size
            y = nn.Dense(size, use_bias=False, name="qkv")(x)
            y = y.reshape(batch, length, 3, self.heads, self.head_size)
            q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        else:
            q = self._heads(x, self.heads, "query")
            k = self._heads(x, self.shared, "key")
            v = self._heads(x, self.shared, "value")
        times = self.heads // k.shape[2]
        k, v = jnp.repeat(rotated(k), times, axis=2), jnp.repeat(v, times, axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", rotated(q), k) / self.head_size**0.5
        seen = jnp.tril(jnp.ones((length, length), bool))[None, None]
        y = nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min))
        y = jnp.einsum("bhqk,bkhd->bqhd", y, v)
        out = nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name="out")
        return out(y)

    def _heads(self, x: jax.Array, heads: int, name: str) -> jax.Array:
        size = (heads, self.head_size)
        return nn.DenseGeneral(size, use_bias=False, name=name)(x)


class Layer(nn.Module):
    """Attention and a gated pair of dense layers."""

    heads: int
    shared: int
    head_size: int
    hidden: int
    fused: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        y = nn.RMSNorm(name="norm1")(x)
        attention = Attention(
            self.heads, self.shared, self.head_size, self.fused, name="attention"
        )
        x = x + attention(y)
        y = nn.RMSNorm(name="norm2")(x)
        gate = nn.silu(nn.Dense(self.hidden, use_bias=False, name="gate")(y))
        y = gate * nn.Dense(self.hidden, use_bias=False, name="up")(y)
        return x + nn.Dense(x.shape[-1], use_bias=False, name="down")(y), None


class GPT(nn.Module):
    """Layers between the two uses of one embedding."""

    width: int
    heads: int
    shared: int
    head_size: int
    hidden: int
    depth: int
    words: int
    fused: bool
    scanned: bool

    @nn.compact
    def __call__(self, ids: jax.Array, train: bool = False) -> jax.Array:
        embed = nn.Embed(self.words, self.width, name="embed")
        x = embed(ids)
        sizes = (self.heads, self.shared, self.head_size, self.hidden, self.fused)
        if self.scanned:
            layers = nn.scan(
                nn.remat(Layer, prevent_cse=False),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = layers(*sizes, name="layers")(x, None)
        else:
            for layer in range(self.depth):
                x, _ = Layer(*sizes, name=f"layer{layer}")(x)
        return embed.attend(nn.RMSNorm(name="norm")(x))


def gpt(
    width: int = 768,
    length: int = 64,
    heads: int = 12,
    shared: int = 4,
    head_size: int = 64,
    hidden: int = 2048,
    depth: int = 12,
    words: int = 8192,
    *,
    fused: bool = False,
    scanned: bool = False,
) -> Model:
    """A decoder of today; `fused`: one product for queries, keys and values."""
    sizes = (heads, shared, head_size, hidden, depth, words)
    return linen(GPT(width, *sizes, fused, scanned), tokens(length, words))
