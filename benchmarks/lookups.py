"""Rows of a stored table, a call, against the same rows of a float table.

    python benchmarks/lookups.py

A table as large as MiniLM's, of random numbers. All forms take the same random ids in
every round, in another order each time; other ids every call, so that no row waits in
the cache of the processor.
"""

import argparse
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import machine, pin, settle

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import PerGroup, PerTensor, Quantize, Weights, quantize
from jcompress.sites import find_sites

FORMS = {
    "int8": Weights(),
    "int8, one scale": Weights(granularity=PerTensor()),
    "int4": Weights(format=Int(4)),
    "int4 group 32": Weights(format=Int(4), granularity=PerGroup(32)),
}


def look_up(params: Any, ids: jax.Array) -> jax.Array:
    """Rows [M, K] of a table [N, K]."""
    return jnp.take(params["table"], ids, axis=0)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=30522)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--ids", type=int, nargs="+", default=[1, 128, 4096])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    pin(args.threads)
    print(f"{machine()}, {args.threads} threads, jax {jax.__version__}")
    rng = np.random.default_rng(0)
    table = rng.normal(size=(args.rows, args.width)).astype(np.float32)
    tables: dict[str, Any] = {"float32": {"table": jnp.asarray(table)}}
    sites = find_sites(look_up, tables["float32"], jnp.zeros(1, jnp.int32))
    for name, spec in FORMS.items():
        rules = [(..., Quantize(weights=spec))]
        tables[name] = quantize(tables["float32"], rules, sites=sites)
    runs = {name: jax.jit(compressed(look_up)) for name in FORMS}
    runs = {"float32": jax.jit(look_up), **runs}
    for count in args.ids:
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(args.rounds + 1):
            given = jnp.asarray(
                rng.integers(0, args.rows, (args.calls, count)), jnp.int32
            )
            each = list(given)
            for name in rng.permutation(list(runs)):
                settle()
                runs[name](tables[name], each[0]).block_until_ready()
                start = time.perf_counter()
                for ids in each:
                    runs[name](tables[name], ids).block_until_ready()
                if number:
                    found[name].append((time.perf_counter() - start) / args.calls)
        print(f"\n| {count} ids | MB | microseconds | x float32 |\n|---|---|---|---|")
        base = np.array(found["float32"])
        for name, seconds in found.items():
            size = sum(x.nbytes for x in jax.tree.leaves(tables[name])) / 1e6
            low, middle, high = np.quantile(base / np.array(seconds), (0.25, 0.5, 0.75))
            ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            micro = 1e6 * np.median(seconds)
            print(f"| {name} | {size:.1f} | {micro:.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
