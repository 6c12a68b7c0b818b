"""Eight Python threads that call the same compressed programs: equal results.

    python benchmarks/threads.py
    python benchmarks/threads.py --quick --json threads.json

Three programs: a transformer block in W8A8 with its attention and normalisation as one
operation each, the same in W4A8 by groups, and three convolutions that keep integers
between them. Each thread takes a program and one of several inputs at random, for a
minute (`--quick`: ten seconds), and compares what it gets with what one thread got
before, bit for bit.

Exit code 1 if one result differs, or if a thread stops.
"""

import argparse
import json
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import machine

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerGroup,
    PerRow,
    Quantize,
    Weights,
    calibrate,
    init_ranges,
    quantize,
)
from jcompress.sites import find_sites

THREADS, INPUTS = 8, 4
WIDTH, HEADS = 256, 8
Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int) -> jax.Array:
    """Of a normal distribution, as large as weights are."""
    drawn = np.random.default_rng(seed).normal(size=shape) / shape[-2] ** 0.5
    return jnp.asarray(drawn.astype(np.float32))


def block(p: Any, x: jax.Array) -> jax.Array:
    """Attention and a gated perceptron, each normalised and added."""

    def normal(x: jax.Array) -> jax.Array:
        power = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(power + np.float32(1e-6))

    shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
    y = normal(x)
    q, k, v = ((y @ p[name]).reshape(shape) for name in ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(q, k, v)
    x = x + mixed.reshape(x.shape) @ p["out"]
    y = normal(x)
    out: jax.Array = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    return out


def images(p: Any, x: jax.Array) -> jax.Array:
    """A block of MobileNetV2."""

    def conv(x: jax.Array, name: str, groups: int = 1) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            p[name],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    y = jax.nn.relu6(conv(x, "wide"))
    y = jax.nn.relu6(conv(y, "each", 96))
    out: jax.Array = x + conv(y, "thin")
    return out


def programs() -> dict[str, tuple[Callable[..., Any], Any, list[Array]]]:
    """By name a compiled function, its tree and its inputs."""
    names = ("query", "key", "value", "out")
    dense = {name: numbers(WIDTH, WIDTH, seed=i) for i, name in enumerate(names)}
    dense["gate"], dense["up"] = (numbers(WIDTH, 512, seed=i) for i in (7, 8))
    dense["down"] = numbers(512, WIDTH, seed=9)
    eight = Activation(format=Int(8), granularity=PerRow())
    four = Weights(format=Int(4), granularity=PerGroup(32))
    rows = [np.asarray(numbers(2, 40, WIDTH, seed=20 + i)) for i in range(INPUTS)]
    found: dict[str, Any] = {}
    for name, spec in (
        ("W8A8", Quantize(activation=eight)),
        ("W4A8", Quantize(weights=four, activation=eight)),
    ):
        sites = find_sites(block, dense, rows[0])
        small = quantize(dense, [(..., spec)], sites=sites)
        found[name] = (jax.jit(compressed(block)), small, rows)
    kernels = {
        "wide": numbers(1, 1, 16, 96, seed=30),
        "each": numbers(3, 3, 1, 96, seed=31),
        "thin": numbers(1, 1, 96, 16, seed=32),
    }
    pictures = [np.asarray(numbers(4, 24, 24, 16, seed=40 + i)) for i in range(INPUTS)]
    rules = [(..., Quantize(activation=Activation(range=MovingAverage())))]
    ranges = init_ranges(images, rules, kernels, pictures[0])
    for picture in pictures:
        _, ranges = calibrate(images, rules)(kernels, ranges, picture)
    sites = find_sites(images, kernels, pictures[0])
    small = quantize(kernels, rules, sites=sites, ranges=ranges)
    found["convolutions"] = (jax.jit(compressed(images)), small, pictures)
    return found


def main() -> int:
    """Run the threads, print, and tell whether a result differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="ten seconds")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    seconds = options.seconds or (10.0 if options.quick else 60.0)
    made = programs()
    wanted = {
        name: [np.asarray(run(small, x)) for x in inputs]
        for name, (run, small, inputs) in made.items()
    }
    calls = dict.fromkeys(made, 0)
    faults: list[str] = []
    lock, until = threading.Lock(), time.monotonic() + seconds

    def work(number: int) -> None:
        draw = np.random.default_rng(number)
        while time.monotonic() < until:
            name = list(made)[draw.integers(len(made))]
            which = int(draw.integers(INPUTS))
            run, small, inputs = made[name]
            got = np.asarray(run(small, inputs[which]))
            same = np.array_equal(got, wanted[name][which])
            with lock:
                calls[name] += 1
                if not same:
                    apart = float(np.abs(got - wanted[name][which]).max())
                    faults.append(f"{name}, input {which}: differs by {apart:.2g}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    stuck = sum(thread.is_alive() for thread in threads)
    if stuck:
        faults.append(f"{stuck} threads did not end")
    print(f"{machine()}, {THREADS} threads, {seconds:.0f} s")
    print(", ".join(f"{name}: {count} calls" for name, count in calls.items()))
    print("\n".join(faults[:10]) or "every result equals that of one thread alone")
    if options.json is not None:
        report = {"seconds": seconds, "calls": calls, "faults": faults}
        options.json.write_text(json.dumps(report, indent=1))
    sys.stdout.flush()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
