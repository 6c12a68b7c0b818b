"""Train a small decoder, and let it write with its keys and values in 8 and 4 bits.

    python examples/kv_cache_decoder.py

A transformer of two blocks in plain JAX, with rotary positions and grouped queries
(four heads over two of keys), learns the text below by heart in some seconds. Then it
goes on from its first words, greedily, with a cache of floats and with smaller ones.
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress import kv_cache
from jcompress.formats import Int
from jcompress.kv_cache import CacheFormat, KVCache, Vectors

TEXT = (
    "Four score and seven years ago our fathers brought forth on this continent, a new "
    "nation, conceived in Liberty, and dedicated to the proposition that all men are "
    "created equal. Now we are engaged in a great civil war, testing whether that "
    "nation, or any nation so conceived and so dedicated, can long endure."
)
LETTERS = sorted(set(TEXT))
WIDTH, HEADS, KEY_HEADS, SIZE, BLOCKS = 64, 4, 2, 16, 2
PROMPT, LENGTH = 24, 96
FOUR = Vectors(format=Int(4, symmetric=False))
FORMATS = {
    "float32": CacheFormat(keys=None, values=None),
    "8 bits": CacheFormat(),
    "4 bits": CacheFormat(keys=FOUR, values=FOUR),
}


def tokens_of(text: str) -> jax.Array:
    """Letters as numbers, int32 [1, T]."""
    return jnp.asarray([[LETTERS.index(letter) for letter in text]], jnp.int32)


def init_params(key: jax.Array) -> dict[str, Any]:
    """Random parameters."""
    sizes = {
        "query": (WIDTH, HEADS * SIZE),
        "key": (WIDTH, KEY_HEADS * SIZE),
        "value": (WIDTH, KEY_HEADS * SIZE),
        "mixed": (HEADS * SIZE, WIDTH),
        "wide": (WIDTH, 4 * WIDTH),
        "narrow": (4 * WIDTH, WIDTH),
    }
    keys = iter(jax.random.split(key, 1 + BLOCKS * len(sizes)))
    table = jax.random.normal(next(keys), (len(LETTERS), WIDTH))
    blocks = [
        {n: jax.random.normal(next(keys), s) * s[0] ** -0.5 for n, s in sizes.items()}
        for _ in range(BLOCKS)
    ]
    return {"table": table * np.float32(WIDTH**-0.5), "blocks": blocks}


def normed(x: jax.Array) -> jax.Array:
    """Each vector with a mean square of 1."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + np.float32(1e-6))


def rotated(x: jax.Array, position: jax.Array) -> jax.Array:
    """[B, T, H, D], turned by the positions `position` to `position + T - 1`."""
    places = position + jnp.arange(x.shape[1], dtype=jnp.int32)
    speeds = 100.0 ** -np.linspace(0, 1, x.shape[-1] // 2, dtype=np.float32)
    angle = places.astype(jnp.float32)[:, None] * speeds[None]
    cos, sin = (f(angle)[None, :, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, first * sin + second * cos], axis=-1
    )


def decode(
    params: dict[str, Any],
    tokens: jax.Array,
    caches: list[KVCache] | None = None,
    position: jax.Array | int = 0,
) -> tuple[jax.Array, list[KVCache]]:
    """Logits of the tokens' successors, and the caches with these tokens.

    Args:
        params: those of `init_params`.
        tokens: int32 [B, N].
        caches: one for each block; None for plain attention among the tokens.
        position: that of the first token.

    Returns:
        Logits [B, N, letters], and the caches.
    """
    at = jnp.asarray(position, jnp.int32)
    x = params["table"][tokens] * np.float32(WIDTH**0.5)
    filled = []
    for number, block in enumerate(params["blocks"]):
        given = normed(x)
        query, key, value = (
            (given @ block[name]).reshape(*tokens.shape, -1, SIZE)
            for name in ("query", "key", "value")
        )
        query, key = rotated(query, at), rotated(key, at)
        if caches is None:
            mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        else:
            filled.append(kv_cache.update(caches[number], key, value, at))
            mixed = kv_cache.attend(filled[-1], query, at)
        x = x + mixed.reshape(*tokens.shape, -1) @ block["mixed"]
        x = x + jax.nn.silu(normed(x) @ block["wide"]) @ block["narrow"]
    return normed(x) @ params["table"].T * np.float32(WIDTH**0.5), filled


def train(steps: int, batch: int = 4, seed: int = 0) -> tuple[dict[str, Any], float]:
    """Learn pieces of the text; the parameters and the last loss."""
    text = np.asarray(tokens_of(TEXT))[0]
    params = init_params(jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, given: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits, _ = decode(params, given[:, :-1])
            each = optax.softmax_cross_entropy_with_integer_labels(logits, given[:, 1:])
            return jnp.mean(each)

        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(seed)
    value = jnp.inf
    for _ in range(steps):
        # What is written later is the beginning.
        starts = np.append(rng.integers(0, len(text) - LENGTH, batch - 1), 0)
        pieces = np.stack([text[start : start + LENGTH] for start in starts])
        params, state, value = step(params, state, jnp.asarray(pieces))
    return params, float(value)


class Written(NamedTuple):
    """What a model wrote after the prompt.

    Attributes:
        tokens: int32 [1, LENGTH - PROMPT], the greedy ones.
        logits: float32 [1, LENGTH - PROMPT, letters], from which they were taken.
        caches: the caches at the end.
    """

    tokens: jax.Array
    logits: jax.Array
    caches: list[KVCache]


def generate(
    params: dict[str, Any], format: CacheFormat, forced: jax.Array | None = None
) -> Written:
    """Write on after the prompt, in one program: a prefill, then a scan.

    Args:
        params: those of `init_params`.
        format: how the caches are stored.
        forced: int32 [1, LENGTH - PROMPT], tokens to go on with instead of the greedy
            ones, so that the logits of two formats can be compared.
    """
    prompt = tokens_of(TEXT[:PROMPT])

    @jax.jit
    def run(params: Any, forced: jax.Array | None) -> Written:
        sizes = (1, LENGTH, KEY_HEADS, SIZE)
        caches = [kv_cache.init(format, *sizes) for _ in range(BLOCKS)]
        logits, caches = decode(params, prompt, caches)

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            caches, logits = carry
            position, given = now
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            taken = token if given is None else given
            out, caches = decode(params, taken[:, None], caches, position)
            return (caches, out[:, -1]), (token, logits)

        places = jnp.arange(PROMPT, LENGTH, dtype=jnp.int32)
        given = None if forced is None else forced.T
        last, (tokens, seen) = jax.lax.scan(
            step, (caches, logits[:, -1]), (places, given)
        )
        return Written(tokens.T, jnp.swapaxes(seen, 0, 1), last[0])

    written: Written = run(params, forced)
    return written


def main() -> None:
    """Train, write with each cache, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    params, loss = train(parser.parse_args().steps)
    print(f"loss {loss:.3f}")
    wanted = generate(params, FORMATS["float32"])
    for name, format in FORMATS.items():
        greedy = generate(params, format)
        forced = generate(params, format, wanted.tokens)
        error = jnp.linalg.norm(forced.logits - wanted.logits)
        same = int(jnp.sum(greedy.tokens == wanted.tokens))
        size = sum(cache.stored_bytes for cache in greedy.caches)
        print(
            f"{name}: {size:,} bytes, {same} of {wanted.tokens.size} tokens the same, "
            f"logits differ by {float(error / jnp.linalg.norm(wanted.logits)):.2%}"
        )
        letters = np.asarray(greedy.tokens)[0]
        print(f"  {TEXT[:PROMPT]}|{''.join(LETTERS[n] for n in letters)}")


if __name__ == "__main__":
    main()
