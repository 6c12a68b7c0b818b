"""Time the XLA forms of the quantized products against the float32 product.

    python benchmarks/xla_forms.py
    python benchmarks/xla_forms.py --sizes 1024 --rows 1 8 --rounds 5
    python benchmarks/xla_forms.py --forms float8

Every form of one line is timed in turn within each round, so that what slows the
machine slows them all, and each call takes the next of several weights that together
exceed the last-level cache. A figure is the median over the rounds of (float time /
form's time): above 1 the form is faster. In brackets, the quartiles.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import Float8, Int
from jcompress.formats.packing import pack_bits
from jcompress.kernels import (
    Implementation,
    float8_matmul,
    int8_matmul,
    weight_only_matmul,
)
from jcompress.kernels.weight_only_matmul.shapes import ROWS
from jcompress.kernels.weight_only_matmul.xla import by_conversion, by_digits
from jcompress.tensors.specs import PerChannel, PerGroup, Weights
from jcompress.tensors.weight_matrix import quantize_matrix

Form = tuple[Callable[..., jax.Array], Sequence[tuple[Any, ...]]]
"""A compiled product and the weights that it takes in turn."""


def weights(size: int, count: int, spec: Weights) -> list[tuple[Any, ...]]:
    """Random quantized `[size, size]` weights as the kernels take them."""
    convert = jax.jit(functools.partial(quantize_matrix, spec=spec))
    pack = jax.jit(pack_bits, static_argnums=1)
    made = []
    for seed in range(count):
        dense = jax.random.normal(jax.random.key(seed), (size, size))
        values, scales, zeros = convert(dense)
        made.append((pack(values, spec.format.bits), scales, zeros))
    return made


def forms(size: int, group: int, cache_bytes: int) -> dict[str, Form]:
    """The candidates for square weights, by name."""
    count = 2 + cache_bytes // (size * size)
    half = 2 + 2 * cache_bytes // (size * size)
    dense = [
        (jax.random.normal(jax.random.key(seed), (size, size)),)
        for seed in range(2 + cache_bytes // (4 * size * size))
    ]
    grouped = PerGroup(group)
    eight = weights(size, count, Weights(format=Int(8), granularity=PerChannel()))
    four = weights(size, half, Weights(format=Int(4), granularity=PerChannel()))
    eight_grouped = weights(size, count, Weights(format=Int(8), granularity=grouped))
    four_grouped = weights(size, half, Weights(format=Int(4), granularity=grouped))
    float8 = weights(size, count, Weights(format=Float8()))
    integers = functools.partial(int8_matmul, implementation=Implementation.XLA)

    def floats(x: jax.Array, values: Any, scales: Any, _: None) -> jax.Array:
        return float8_matmul(x, values, scales, implementation=Implementation.XLA)

    result: dict[str, Form] = {
        "float32": (jax.jit(jnp.matmul), dense),
        "int8_matmul": (jax.jit(integers), eight),
        "float8_matmul": (jax.jit(floats), float8),
    }
    chosen = functools.partial(
        weight_only_matmul, bits=8, implementation=Implementation.XLA
    )
    result["w float8 chosen"] = (jax.jit(chosen), float8)
    converted = functools.partial(by_conversion, bits=8)
    result["w float8 converted"] = (jax.jit(converted), float8)
    for label, bits, arrays in (
        ("w8", 8, eight),
        ("w4", 4, four),
        (f"w8 g{group}", 8, eight_grouped),
        (f"w4 g{group}", 4, four_grouped),
    ):
        chosen = functools.partial(
            weight_only_matmul, bits=bits, implementation=Implementation.XLA
        )
        digits = functools.partial(by_digits, bits=bits)
        converted = functools.partial(by_conversion, bits=bits)
        result[f"{label} chosen"] = (jax.jit(chosen), arrays)
        result[f"{label} digits"] = (jax.jit(digits), arrays)
        result[f"{label} converted"] = (jax.jit(converted), arrays)
    return result


def measure(
    candidates: dict[str, Form], x: jax.Array, rounds: int, calls: int
) -> dict[str, list[float]]:
    """Seconds of one call, for each form and round."""
    for run, arrays in candidates.values():
        run(x, *arrays[0]).block_until_ready()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    # Forms of one kind share their weights; each takes those used longest ago, so that
    # none finds in the cache what the one before it has read.
    turns = {id(arrays): itertools.cycle(arrays) for _, arrays in candidates.values()}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        # In another order each time: what fills the cache slows what comes after it.
        for name in order.permutation(list(candidates)):
            run, arrays = candidates[name]
            start = time.perf_counter()
            for _ in range(calls):
                out = run(x, *next(turns[id(arrays)]))
            out.block_until_ready()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--forms", default="", help="a part of the names")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cache-mib", type=int, default=64)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for size in args.sizes:
        every = forms(size, args.group, args.cache_mib << 20)
        kept = ("float32", args.forms)
        candidates = {
            name: form
            for name, form in every.items()
            if any(part in name for part in kept)
        }
        calls = max(1, (2048 // size) ** 2)
        for rows in args.rows:
            x = jax.random.normal(jax.random.key(99), (rows, size))
            seconds = measure(candidates, x, args.rounds, calls)
            base = np.asarray(seconds["float32"])
            print(f"\n[{rows}, {size}] x [{size}, {size}]", flush=True)
            print(f"  {'float32':18} {np.median(base) * 1e3:8.3f} ms")
            for name, times in seconds.items():
                if name != "float32":
                    low, middle, high = np.percentile(base / times, [25, 50, 75])
                    print(f"  {name:18} {middle:8.2f}  [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
