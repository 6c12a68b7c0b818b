"""Is attention by the compiled kernels faster than what XLA and torch make of it?

    python benchmarks/attention.py
    python benchmarks/attention.py --quick --json attention.json

Each shape is computed by `jcompress.kernels.attention`, by einsum and softmax and by
`jax.nn.dot_product_attention` (both jitted), and by torch's
`scaled_dot_product_attention` if torch is installed: in one process, in turns, in
another order each round. Ratios are the others' median times over ours in the same
round, with quartiles over the rounds. The share of peak is that of our fastest call in
products and sums, against a loop of nothing else on all threads; of a causal mask half
of them count. The exit code is 1 if ours is slower in the median anywhere.
"""

import argparse
import ctypes
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _timing import machine, pin, read_bandwidth, settle


@dataclasses.dataclass(frozen=True)
class Shape:
    """A problem in the layout [batch, rows, heads, features].

    Attributes:
        mask: "" for none, "padding" [batch, 1, 1, keys], "causal" [rows, keys].
    """

    batch: int
    rows: int
    keys: int
    heads: int
    features: int
    mask: str = ""

    @property
    def operations(self) -> float:
        """Products and sums."""
        scores = self.batch * self.heads * self.rows * self.keys
        return 4.0 * scores * self.features * (0.5 if self.mask == "causal" else 1)

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        return 8 * self.batch * self.keys * self.heads * self.features


SHAPES = {
    "12 x 32, 128 tokens, batch 8": Shape(8, 128, 128, 12, 32, "padding"),
    "12 x 32, 128 tokens, batch 32": Shape(32, 128, 128, 12, 32, "padding"),
    "8 x 64, 512 tokens, batch 4": Shape(4, 512, 512, 8, 64),
    "12 x 64, 1024 tokens, causal": Shape(1, 1024, 1024, 12, 64, "causal"),
    "12 x 64, 1 token of 512": Shape(1, 1, 512, 12, 64),
    "12 x 64, 1 token of 512, batch 8": Shape(8, 1, 512, 12, 64),
}
SOURCE = """
typedef float Vector __attribute__((vector_size(64)));
extern "C" double burst(long rounds) {
  Vector sum[10], by = {}, more = {};
  by += 0.999f;
  more += 0.001f;
  for (auto& each : sum) each = by;
  for (long i = 0; i < rounds; ++i) {
    _Pragma("GCC unroll 10") for (int j = 0; j < 10; ++j) sum[j] = sum[j] * by + more;
  }
  Vector all = {};
  for (auto& each : sum) all += each;
  return all[0];
}
"""


def peak(threads: int) -> float | None:
    """Operations a second of multiply-adds in registers; None without a compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = (pathlib.Path(folder) / name for name in ("a.cc", "a.so"))
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        flags += ["-mprefer-vector-width=512"] if "avx512" in _flags() else []
        subprocess.run([compiler, *flags, source, "-o", library, "-w"], check=True)
        burst = ctypes.CDLL(str(library)).burst
    burst.restype = ctypes.c_double
    rounds, best = 100_000, [0.0] * threads

    def work(number: int) -> None:
        for _ in range(200):
            start = time.perf_counter()
            burst(ctypes.c_long(rounds))
            spent = time.perf_counter() - start
            best[number] = max(best[number], rounds * 10 * 16 * 2 / spent)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(best)


def _flags() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def contenders(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Calls by name, ours first, all with the same numbers; checked."""
    import jax
    import jax.numpy as jnp

    from jcompress.kernels import Implementation, attention

    random = np.random.default_rng(0)
    b, h, d = shape.batch, shape.heads, shape.features
    sizes = (shape.rows, shape.keys, shape.keys)
    numbers = [random.normal(size=(b, n, h, d)).astype(np.float32) for n in sizes]
    mask = None
    if shape.mask == "padding":
        mask = np.ones((b, 1, 1, shape.keys), np.bool_)
    elif shape.mask == "causal":
        mask = np.tril(np.ones((1, 1, shape.rows, shape.keys), np.bool_))
    scale = d**-0.5
    axes = "bthd,bshd,bshe" + ("" if mask is None else ",bhts") + "->bthe"

    def ours(q: Any, k: Any, v: Any, mask: Any) -> jax.Array:
        return attention(
            q,
            k,
            v,
            mask=mask,
            axes=axes,
            scale=scale,
            implementation=Implementation.CPU,
        )

    def written(q: Any, k: Any, v: Any, mask: Any) -> jax.Array:
        scores = scale * jnp.einsum("bthd,bshd->bhts", q, k)
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(scores), v)

    def jax_own(q: Any, k: Any, v: Any, mask: Any) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    arrays = [None if a is None else jnp.asarray(a) for a in (*numbers, mask)]
    calls: dict[str, Callable[[], Any]] = {}
    for name, run in (
        ("ours", ours),
        ("einsum", written),
        ("dot_product_attention", jax_own),
    ):
        calls[name] = functools.partial(_wait_for, jax.jit(run), arrays)
    calls.update(_torch(numbers, mask, shape))
    exact = np.asarray(calls["einsum"]())
    for name, call in calls.items():
        found = np.asarray(call())
        found = found.swapaxes(1, 2) if name == "torch" else found
        worst = np.abs(found - exact).max() / np.abs(exact).max()
        if not worst < 1e-5:
            raise ArithmeticError(f"{name}: error {worst:.2g}; that is not timed")
    return calls


def _wait_for(run: Callable[..., Any], arrays: Any) -> Any:
    return run(*arrays).block_until_ready()


def _torch(numbers: Any, mask: Any, shape: Shape) -> dict[str, Callable[[], Any]]:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    q, k, v = (torch.from_numpy(a).transpose(1, 2) for a in numbers)
    run = torch.nn.functional.scaled_dot_product_attention
    # Its causal flag spares what the mask excludes.
    given: dict[str, Any] = {"is_causal": True}
    if shape.mask != "causal":
        given = {"attn_mask": None if mask is None else torch.from_numpy(mask)}

    def call() -> Any:
        with torch.no_grad():
            return run(q, k, v, **given)

    return {"torch": call}


def measure(
    calls: dict[str, Callable[[], Any]], rounds: int, block: float
) -> dict[str, tuple[list[float], float]]:
    """For each call the median seconds of each round, and the least of all."""
    order = np.random.default_rng(0)
    times: dict[str, tuple[list[float], float]] = {
        name: ([], float("inf")) for name in calls
    }
    for _ in range(rounds):
        for name in order.permutation(list(calls)):
            settle()
            calls[name]()
            each: list[float] = []
            while len(each) < 3 or sum(each) < block:
                start = time.perf_counter()
                calls[name]()
                each.append(time.perf_counter() - start)
            medians, least = times[name]
            medians.append(float(np.median(each)))
            times[name] = (medians, min(least, *each))
    return times


def main() -> int:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=pathlib.Path, help="where rows are written")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    pin(args.threads)
    rounds, block = (5, 0.02) if args.quick else (21, 0.1)
    best, bandwidth = peak(args.threads), read_bandwidth(args.threads)
    most = "peak unknown" if best is None else f"{best / 1e9:.0f} GFLOP/s"
    print(f"{machine()}, {args.threads} threads, {most}, {bandwidth / 1e9:.0f} GB/s")
    print("| shape | ours, ms (least) | GFLOP/s | of peak | K, V at GB/s | others, x |")
    print("|---|---|---|---|---|---|")
    rows, slower = [], []
    for title, shape in SHAPES.items():
        times = measure(contenders(shape), rounds, block)
        own, least = times.pop("ours")
        row: dict[str, Any] = {"shape": title, "ms": np.median(own) * 1e3}
        row |= {"least_ms": least * 1e3, "gflops": shape.operations / least / 1e9}
        row["of_peak"] = None if best is None else shape.operations / least / best
        row["gbytes"] = shape.bytes / least / 1e9
        row["ratios"] = {
            name: list(np.percentile(np.array(others) / own, [25, 50, 75]))
            for name, (others, _) in times.items()
        }
        rows.append(row)
        words = ", ".join(
            f"{name} {middle:.2f} [{low:.2f}, {high:.2f}]"
            for name, (low, middle, high) in row["ratios"].items()
        )
        share = "" if best is None else f"{row['of_peak']:.0%}"
        print(
            f"| {title} | {row['ms']:.3f} ({row['least_ms']:.3f}) | "
            f"{row['gflops']:.0f} | {share} | {row['gbytes']:.1f} | {words} |",
            flush=True,
        )
        slower += [
            f"{title}: {name} takes {middle:.2f} of our time"
            for name, (_, middle, _) in row["ratios"].items()
            if middle < 1
        ]
    if args.json:
        args.json.write_text(json.dumps({"peak": best, "rows": rows}, indent=1) + "\n")
    for words in slower:
        print(f"FALLS: {words}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
