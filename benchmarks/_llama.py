"""A decoder as Llama has it, in Flax Linen, with random weights, and its GGUF file.

Touvron et al. 2023, "Llama 2", section 2.2: rotary positions (Su et al. 2021), RMS
normalisation before each part, SwiGLU, grouped queries, no biases.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from _peers import module

EPSILON = 1e-5
THETA = 10000.0
Cache = list[tuple[jax.Array, jax.Array]]
"""For each layer keys and values, [length, heads of keys, size]."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a model is."""

    width: int
    layers: int
    heads: int
    key_heads: int
    hidden: int
    vocabulary: int = 16384
    length: int = 512

    @property
    def head(self) -> int:
        """Features of a head."""
        return self.width // self.heads


SIZES = {
    "100M": Sizes(width=768, layers=12, heads=12, key_heads=4, hidden=2048),
    "400M": Sizes(width=1280, layers=20, heads=20, key_heads=4, hidden=3584),
    "tiny": Sizes(
        width=256, layers=2, heads=4, key_heads=2, hidden=512, vocabulary=1024
    ),
}


Angles = tuple[jax.Array, jax.Array]
"""Cosines and sines of the angles of each position, [T, 1, D / 2]."""


def angles_of(positions: jax.Array, size: int) -> Angles:
    """The angles by which features of a head are turned."""
    half = size // 2
    steps = THETA ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    angles = positions.astype(jnp.float32)[:, None, None] * steps[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotated(x: jax.Array, angles: Angles) -> jax.Array:
    """Turn neighbouring features [T, H, D] by angles that grow with the position."""
    cos, sin = angles
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)


class Block(nn.Module):
    """Attention over the cache, then a gated perceptron; normalised before each."""

    sizes: Sizes

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        positions: jax.Array,
        angles: Angles,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[T, C] at positions [T]; the caches come back filled."""
        s = self.sizes
        dense = functools.partial(nn.Dense, use_bias=False)
        norm = functools.partial(nn.RMSNorm, epsilon=EPSILON)
        y = norm(name="norm1")(x)
        query = dense(s.heads * s.head, name="query")(y)
        key = dense(s.key_heads * s.head, name="key")(y)
        value = dense(s.key_heads * s.head, name="value")(y)
        query = rotated(query.reshape(-1, s.heads, s.head), angles)
        key = rotated(key.reshape(-1, s.key_heads, s.head), angles)
        value = value.reshape(-1, s.key_heads, s.head)
        place = (positions[0], jnp.int32(0), jnp.int32(0))
        keys = jax.lax.dynamic_update_slice(keys, key, place)
        values = jax.lax.dynamic_update_slice(values, value, place)
        grouped = query.reshape(len(x), s.key_heads, -1, s.head)
        scores = jnp.einsum("tkgd,skd->kgts", grouped, keys)
        scores = scores * np.float32(s.head**-0.5)
        seen = jnp.arange(keys.shape[0], dtype=jnp.int32)[None] <= positions[:, None]
        weights = nn.softmax(jnp.where(seen[None, None], scores, np.float32(-1e9)))
        mixed = jnp.einsum("kgts,skd->tkgd", weights, values).reshape(len(x), -1)
        x = x + dense(s.width, name="mixed")(mixed)
        y = norm(name="norm2")(x)
        gate = nn.silu(dense(s.hidden, name="gate")(y))
        wide = gate * dense(s.hidden, name="up")(y)
        return x + dense(s.width, name="down")(wide), keys, values


class Llama(nn.Module):
    """Tokens and the cache to the last token's logits and the new cache."""

    sizes: Sizes

    @nn.compact
    def __call__(
        self, cache: Cache, tokens: jax.Array, start: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Logits [vocabulary] after `tokens` int32 [T], the first at `start`."""
        s = self.sizes
        x = nn.Embed(s.vocabulary, s.width, name="words")(tokens)
        positions = start + jnp.arange(len(tokens), dtype=jnp.int32)
        angles = angles_of(positions, s.head)
        after = []
        for number, (keys, values) in enumerate(cache):
            block = Block(s, name=f"block{number}")
            x, keys, values = block(x, keys, values, positions, angles)
            after.append((keys, values))
        x = nn.RMSNorm(epsilon=EPSILON, name="norm")(x[-1:])
        logits = nn.Dense(s.vocabulary, use_bias=False, name="logits")(x)
        return logits[0], after

    def empty(self) -> Cache:
        """A cache without tokens."""
        s = self.sizes
        shape = (s.length, s.key_heads, s.head)
        return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(s.layers)]


_PARTS = {
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_output": "mixed",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}


def write_gguf(path: pathlib.Path, sizes: Sizes, variables: Any, kind: str) -> None:
    """Write the weights as a file for llama.cpp: "F32", "Q8_0" or "Q4_0"."""
    gguf = module("gguf")
    params = variables["params"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(sizes.length)
    writer.add_embedding_length(sizes.width)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.hidden)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_heads)
    writer.add_rope_dimension_count(sizes.head)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    type_of = gguf.GGMLQuantizationType[kind]

    def add(name: str, array: Any, *, packed: bool = True) -> None:
        matrix = np.ascontiguousarray(np.asarray(array, np.float32))
        if not packed or kind == "F32":
            writer.add_tensor(name, matrix)
        else:
            stored = gguf.quants.quantize(matrix, type_of)
            writer.add_tensor(name, stored, raw_dtype=type_of)

    add("token_embd.weight", params["words"]["embedding"])
    add("output.weight", params["logits"]["kernel"].T)
    add("output_norm.weight", params["norm"]["scale"], packed=False)
    for number in range(sizes.layers):
        block = params[f"block{number}"]
        for theirs, ours in _PARTS.items():
            add(f"blk.{number}.{theirs}.weight", block[ours]["kernel"].T)
        for theirs, ours in (("attn_norm", "norm1"), ("ffn_norm", "norm2")):
            scale = block[ours]["scale"]
            add(f"blk.{number}.{theirs}.weight", scale, packed=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
