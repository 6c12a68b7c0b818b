"""A cache of keys and values in 8 and 4 bits: bytes, error of attention, and time.

    python benchmarks/kv_cache.py

Error: attention of random queries over random keys and values, in norm, relative to
that over floats; the keys of some channels are ten times as large, as Liu et al. 2024
("KIVI", section 3.1) found in language models. `windows` rounds keys as KIVI does: a
scale for each channel of 32 tokens; it is written in NumPy, for comparison. Time and
memory: one step of decoding, an update and attention over a full cache, interleaved,
the step compiled once with the cache donated.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import machine, pin, settle

from jcompress import kv_cache
from jcompress.formats import Float4, Float8, FloatScales, Int, NormalFloat4
from jcompress.kv_cache import CacheFormat, Vectors

Array = np.ndarray[Any, Any]
FOUR = Int(4, symmetric=False)
VECTORS: Mapping[str, Vectors | None] = {
    "float32": None,
    "int8": Vectors(),
    "int8, float32 scales": Vectors(scales=FloatScales(32)),
    "float8": Vectors(format=Float8()),
    "int4": Vectors(format=Int(4)),
    "int4 zero": Vectors(format=FOUR),
    "int4 zero, float32 scales": Vectors(format=FOUR, scales=FloatScales(32)),
    "int4 zero group 32": Vectors(format=FOUR, group=32),
    "float4 group 32": Vectors(format=Float4(), group=32),
    "nf4 group 32": Vectors(format=NormalFloat4(), group=32),
}


def dense_attention(queries: Array, keys: Array, values: Array) -> Array:
    """Of queries [B, N, H, D] over all keys and values [B, T, H, D], float64."""
    size = queries.shape[-1]
    scores = np.einsum("bnhd,bthd->bhnt", queries, keys, dtype=np.float64) / size**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: Array = np.einsum("bhnt,bthd->bnhd", weights, values)
    return mixed


def in_windows(keys: Array, bits: int, window: int = 32) -> Array:
    """Keys rounded with a scale and a zero point for each channel of a window."""
    batch, length, heads, size = keys.shape
    apart = keys.reshape(batch, length // window, window, heads, size)
    low, high = apart.min(2, keepdims=True), apart.max(2, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    rounded: Array = np.round((apart - low) / scale) * scale + low
    return rounded.reshape(keys.shape)


def errors(args: argparse.Namespace) -> None:
    """Print the bytes of each format and the errors that it makes."""
    rng = np.random.default_rng(0)
    shape = (1, args.error_length, args.heads, args.size)
    keys, values = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    queries = rng.normal(size=(1, 64, *shape[2:])).astype(np.float32)
    loud = np.ones(args.size, np.float32)
    loud[rng.choice(args.size, 4, replace=False)] = 10
    # The scores are spread as much as with keys of even size.
    loud *= np.float32(np.sqrt(args.size / np.sum(loud**2)))
    even = np.ones_like(loud)

    def error(format: CacheFormat, channels: Array, divided: bool) -> str:
        given = keys * channels
        scales = kv_cache.fit_key_scales(jnp.asarray(given)) if divided else None
        cache = kv_cache.init(format, *shape, key_scales=scales)
        cache = kv_cache.update(cache, jnp.asarray(given), jnp.asarray(values), 0)
        got = dense_attention(queries, *map(np.asarray, kv_cache.read(cache)))
        return relative(got, dense_attention(queries, given, values))

    print("\n| | bytes a vector | even | 4 loud channels | divided |")
    print("|---|---|---|---|---|")
    for name, vectors in VECTORS.items():
        for keys_alone in (False, True):
            if keys_alone and name not in ("int8", "int4 zero"):
                continue
            format = CacheFormat(keys=vectors, values=None if keys_alone else vectors)
            found = [error(format, even, False), error(format, loud, False)]
            cells = " | ".join([*found, error(format, loud, True)])
            both = CacheFormat(keys=vectors, values=vectors)
            size = kv_cache.init(both, *shape).stored_bytes / (2 * keys[..., 0].size)
            label = f"{name}, keys alone" if keys_alone else name
            print(f"| {label} | {size:.1f} | {cells} |", flush=True)
    for bits in (8, 4):
        found = []
        for channels in (even, loud):
            given = keys * channels
            got = dense_attention(queries, in_windows(given, bits), values)
            found.append(relative(got, dense_attention(queries, given, values)))
        print(f"| windows, {bits} bits, keys alone | | {' | '.join(found)} | |")


def relative(got: Array, wanted: Array) -> str:
    """The norm of the difference over that of what is wanted."""
    return f"{np.linalg.norm(got - wanted) / np.linalg.norm(wanted):.4f}"


def plain(
    cache: tuple[jax.Array, jax.Array], new: jax.Array, at: jax.Array
) -> tuple[Any, jax.Array]:
    """A step as it is written without this library, over arrays [B, T, H, D]."""
    start = (0, at, 0, 0)
    keys, values = (jax.lax.dynamic_update_slice(x, new, start) for x in cache)
    seen = (jnp.arange(keys.shape[1]) <= at)[None, None, None]
    return (keys, values), jax.nn.dot_product_attention(new, keys, values, mask=seen)


def ours(cache: Any, new: jax.Array, at: jax.Array) -> tuple[Any, jax.Array]:
    """The same over a cache of this library."""
    cache = kv_cache.update(cache, new, new, at)
    return cache, kv_cache.attend(cache, new, at)


def times(args: argparse.Namespace, length: int) -> None:
    """Print the time and the memory of a step."""
    shape = (args.batch, length, args.heads, args.size)
    new = jnp.ones((args.batch, 1, args.heads, args.size))
    at = jnp.int32(length - 1)
    runs: dict[str, Callable[[], None]] = {}
    notes = {}

    def add(name: str, fn: Any, cache: Any) -> None:
        compiled = jax.jit(fn, donate_argnums=0).lower(cache, new, at).compile()
        size = sum(x.nbytes for x in jax.tree.leaves(cache))
        memory: Any = compiled.memory_analysis()
        notes[name] = f"{size / 1e6:.1f} | {memory.temp_size_in_bytes / 1e6:.2f}"
        held = [cache]

        def run() -> None:
            held[0], out = compiled(held[0], new, at)
            out.block_until_ready()

        runs[name] = run

    empty = jnp.zeros((*shape,))
    add("arrays", plain, (empty, empty + 0))
    for name in ("float32", "int8", "int4", "int4 zero group 32"):
        format = CacheFormat(keys=VECTORS[name], values=VECTORS[name])
        add(name, ours, kv_cache.init(format, *shape))
    found: dict[str, list[float]] = {name: [] for name in runs}
    order = np.random.default_rng(0)
    for number in range(args.rounds + 1):
        for name in order.permutation(list(runs)):
            settle()
            each = []
            for _ in range(args.steps):
                start = time.perf_counter()
                runs[name]()
                each.append(time.perf_counter() - start)
            if number:
                found[name].append(float(np.median(each)))
    print(f"\n{args.batch} x {length} tokens, {args.heads} heads of {args.size}\n")
    print("| | MB | MB beside it | ms a step | x float32 |\n|---|---|---|---|---|")
    base = np.array(found["float32"])
    for name, seconds in found.items():
        low, middle, high = np.quantile(base / np.array(seconds), (0.25, 0.5, 0.75))
        milli = f"{1e3 * np.median(seconds):.2f}"
        ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        print(f"| {name} | {notes[name]} | {milli} | {ratio} |", flush=True)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--error-length", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    pin(args.threads)
    print(f"{machine()}, {args.threads} threads, jax {jax.__version__}")
    errors(args)
    for length in args.length:
        times(args, length)


if __name__ == "__main__":
    main()
