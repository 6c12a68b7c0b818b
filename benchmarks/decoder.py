"""Tokens a second of a decoder language model at batch 1, float and compressed.

    python benchmarks/decoder.py
    python benchmarks/decoder.py --layers 4 --tokens 16 --rounds 3

A transformer of about 98 million parameters in Flax Linen (12 layers of width 768,
12 heads, tied embedding of 16,384 tokens) with a cache of keys and values. Its weights
are random, so its text is noise and only speed means something; beside each speed
stands how far the logits of the first token are from the float model's. Greedy
decoding, one jitted step a token, the cache donated; all variants decode in every
round, in another order each time.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from _timing import SETTLE, machine, pin, read_bandwidth

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerRow,
    Quantize,
    Weights,
    quantize,
)
from jcompress.report import parameters, stored_bytes
from jcompress.rules import Rules
from jcompress.sites import PRODUCTS, find_sites

BASE = "float32"
Cache = list[tuple[jax.Array, jax.Array]]


class Block(nn.Module):
    """Attention over the cache, then a perceptron; normalised before each."""

    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[1, C] at a position; caches [T, heads, size] come back with it filled."""
        width = x.shape[-1]
        shape = (1, self.heads, width // self.heads)
        dense = functools.partial(nn.Dense, use_bias=False)
        normed = nn.LayerNorm(name="norm1")(x)
        query, key, value = (
            dense(width, name=name)(normed).reshape(shape)
            for name in ("query", "key", "value")
        )
        start = (position, jnp.int32(0), jnp.int32(0))
        keys = jax.lax.dynamic_update_slice(keys, key, start)
        values = jax.lax.dynamic_update_slice(values, value, start)
        scores = jnp.einsum("qhd,thd->hqt", query, keys) * np.float32(shape[2] ** -0.5)
        seen = jnp.arange(keys.shape[0], dtype=jnp.int32) <= position
        weights = nn.softmax(jnp.where(seen[None, None], scores, np.float32(-1e9)))
        mixed = jnp.einsum("hqt,thd->qhd", weights, values).reshape(1, width)
        x = x + dense(width, name="mixed")(mixed)
        wide = dense(4 * width, name="wide")(nn.LayerNorm(name="norm2")(x))
        return x + dense(width, name="narrow")(nn.gelu(wide)), keys, values


class Decoder(nn.Module):
    """One step: a token and the cache to the next token's logits and the new cache."""

    vocabulary: int
    width: int
    heads: int
    layers: int
    length: int

    @nn.compact
    def __call__(
        self, cache: Cache, token: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Logits [vocabulary] after `token` int32 [1] at `position` int32 []."""
        words = nn.Embed(self.vocabulary, self.width, name="words")
        places = nn.Embed(self.length, self.width, name="places")
        x = words(token) + places(position[None])
        after = []
        for number, (keys, values) in enumerate(cache):
            block = Block(self.heads, name=f"block{number}")
            x, keys, values = block(x, keys, values, position)
            after.append((keys, values))
        return words.attend(nn.LayerNorm(name="norm")(x))[0], after

    def empty(self) -> Cache:
        """A cache without tokens."""
        shape = (self.length, self.heads, self.width // self.heads)
        return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(self.layers)]


def specs() -> Mapping[str, Quantize]:
    """What each compressed model does with the weights of its products."""
    eight = Activation(format=Int(8), granularity=PerRow())

    def four(size: int) -> Weights:
        return Weights(format=Int(4), granularity=PerGroup(size))

    return {
        "W8": Quantize(),
        "W8A8": Quantize(activation=eight),
        "W4 g128": Quantize(weights=four(128)),
        "W4A8 g128": Quantize(weights=four(128), activation=eight),
        "W4A8 g32": Quantize(weights=four(32), activation=eight),
    }


def generator(model: Decoder, fn: Any, tree: Any) -> Callable[[int], jax.Array]:
    """A function that decodes so many tokens greedily and returns the last logits."""

    @functools.partial(jax.jit, donate_argnums=1)
    def step(
        tree: Any, cache: Cache, token: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, Cache, jax.Array]:
        logits, cache = fn(tree, cache, token, position)
        return logits, jnp.argmax(logits)[None].astype(jnp.int32), cache, position + 1

    def run(count: int) -> jax.Array:
        cache, token = model.empty(), jnp.ones((1,), jnp.int32)
        position = jnp.int32(0)
        logits = jnp.zeros((model.vocabulary,))
        for _ in range(count):
            logits, token, cache, position = step(tree, cache, token, position)
        done: jax.Array = logits.block_until_ready()
        return done

    return run


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=32, help="decoded in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    pin(args.threads)
    model = Decoder(
        vocabulary=args.vocabulary,
        width=args.width,
        heads=args.width // 64,
        layers=args.layers,
        length=128,
    )
    first = (model.empty(), jnp.ones((1,), jnp.int32), jnp.int32(0))
    dense = jax.jit(model.init)(jax.random.key(0), *first)
    sites = find_sites(model.apply, dense, *first)
    trees, runs = {BASE: dense}, {BASE: generator(model, model.apply, dense)}
    for name, spec in specs().items():
        rules: Rules[Quantize] = [(lambda site: site.operation in PRODUCTS, spec)]
        trees[name] = quantize(dense, rules, sites=sites)
        runs[name] = generator(model, compressed(model.apply), trees[name])
    exact = np.asarray(runs[BASE](1))
    errors = {
        name: float(np.linalg.norm(np.asarray(run(1)) - exact) / np.linalg.norm(exact))
        for name, run in runs.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    order = np.random.default_rng(0)
    for _ in range(args.rounds):
        for name in order.permutation(list(runs)):
            time.sleep(SETTLE)
            runs[name](1)
            start = time.perf_counter()
            runs[name](args.tokens)
            rates[name].append(args.tokens / (time.perf_counter() - start))
    bandwidth = read_bandwidth(args.threads)
    print(
        f"{machine()}, {args.threads} threads, jax {jax.__version__}, "
        f"{parameters(dense) / 1e6:.1f} M parameters, read {bandwidth / 1e9:.1f} GB/s"
    )
    print(f"| | MB | tokens/s | x {BASE} | at full bandwidth | logits' error |")
    print("|---|---|---|---|---|---|")
    for name, found in rates.items():
        ratios = np.array(found) / np.array(rates[BASE])
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        size = stored_bytes(trees[name])
        print(
            f"| {name} | {size / 1e6:.1f} | {np.median(found):.1f} | "
            f"{middle:.2f} [{low:.2f}, {high:.2f}] | {bandwidth / size:.1f} | "
            f"{errors[name]:.3f} |"
        )


if __name__ == "__main__":
    main()
