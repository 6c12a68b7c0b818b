"""Encoders: ViT, BERT and MLP-Mixer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from _models._model import Model, images, linen, tokens


class FeedForward(nn.Module):
    """Two dense layers."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Dense(self.hidden, name="up")(x))
        return nn.Dense(self.out, name="down")(x)


class Patches(nn.Module):
    """An image cut into patches, each a vector: [batch, patches, width]."""

    width: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.size, self.size)
        x = nn.Conv(self.width, size, size, padding="VALID", name="conv")(x)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class ViT(nn.Module):
    """Attention over patches and a class token; normalization before each part."""

    width: int
    heads: int
    head_size: int
    hidden: int
    depth: int
    patch: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Patches(self.width, self.patch, name="patches")(x)
        start = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        start = jnp.broadcast_to(start, (len(x), 1, self.width))
        x = jnp.concatenate([start, x], axis=1)
        places = (1, x.shape[1], self.width)
        x = x + self.param("places", nn.initializers.normal(), places)
        for layer in range(self.depth):
            y = nn.LayerNorm(name=f"norm{layer}_1")(x)
            x = x + nn.MultiHeadDotProductAttention(
                self.heads,
                qkv_features=self.heads * self.head_size,
                name=f"attention{layer}",
            )(y)
            y = nn.LayerNorm(name=f"norm{layer}_2")(x)
            x = x + FeedForward(self.hidden, self.width, name=f"mlp{layer}")(y)
        x = nn.LayerNorm(name="norm")(x)[:, 0]
        return nn.Dense(10, name="head")(x)


class BERT(nn.Module):
    """Attention over words; normalization after each part; a pooled first word."""

    width: int
    heads: int
    head_size: int
    hidden: int
    depth: int
    words: int
    length: int

    @nn.compact
    def __call__(self, ids: jax.Array, train: bool = False) -> jax.Array:
        kinds, places = jnp.zeros_like(ids), jnp.arange(ids.shape[1], dtype=jnp.int32)
        x = nn.Embed(self.words, self.width, name="word")(ids)
        x = x + nn.Embed(self.length, self.width, name="place")(places)[None]
        x = x + nn.Embed(2, self.width, name="kind")(kinds)
        x = nn.LayerNorm(name="norm")(x)
        for layer in range(self.depth):
            y = self._attention(x, f"layer{layer}")
            x = nn.LayerNorm(name=f"layer{layer}_norm1")(x + y)
            y = FeedForward(self.hidden, self.width, name=f"layer{layer}_mlp")(x)
            x = nn.LayerNorm(name=f"layer{layer}_norm2")(x + y)
        pooled = nn.tanh(nn.Dense(self.width, name="pooler")(x[:, 0]))
        return nn.Dense(3, name="head")(pooled)

    def _attention(self, x: jax.Array, name: str) -> jax.Array:
        def heads(part: str) -> jax.Array:
            size = self.heads * self.head_size
            y = nn.Dense(size, name=f"{name}_{part}")(x)
            return y.reshape(*y.shape[:2], self.heads, self.head_size)

        q, k, v = heads("query"), heads("key"), heads("value")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / self.head_size**0.5
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        y = y.reshape(*y.shape[:2], -1)
        return nn.Dense(self.width, name=f"{name}_out")(y)


class Mixer(nn.Module):
    """Dense layers over the patches and over their features, in turn."""

    width: int
    hidden: int
    mixing: int
    depth: int
    patch: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Patches(self.width, self.patch, name="patches")(x)
        for layer in range(self.depth):
            y = jnp.swapaxes(nn.LayerNorm(name=f"norm{layer}_1")(x), 1, 2)
            y = FeedForward(self.mixing, x.shape[1], name=f"patches{layer}")(y)
            x = x + jnp.swapaxes(y, 1, 2)
            y = nn.LayerNorm(name=f"norm{layer}_2")(x)
            x = x + FeedForward(self.hidden, self.width, name=f"features{layer}")(y)
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


def vit(
    width: int = 384,
    image: int = 64,
    heads: int = 6,
    head_size: int = 64,
    hidden: int | None = None,
    depth: int = 12,
    patch: int = 8,
) -> Model:
    """ViT, by default the small one."""
    hidden = hidden or 4 * width
    return linen(ViT(width, heads, head_size, hidden, depth, patch), images(image))


def bert(
    width: int = 768,
    length: int = 128,
    heads: int = 12,
    head_size: int = 64,
    hidden: int | None = None,
    depth: int = 12,
    words: int = 30522,
    places: int = 512,
) -> Model:
    """BERT, by default the base one."""
    sizes = (heads, head_size, hidden or 4 * width, depth, words, places)
    return linen(BERT(width, *sizes), tokens(length, words))


def mixer(
    width: int = 512,
    image: int = 64,
    hidden: int = 2048,
    mixing: int = 256,
    depth: int = 8,
    patch: int = 8,
) -> Model:
    """MLP-Mixer, by default the small one."""
    return linen(Mixer(width, hidden, mixing, depth, patch), images(image))
