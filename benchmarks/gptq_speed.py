"""GPTQ of one weight beside a plain implementation in torch, on the CPU.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python benchmarks/gptq_speed.py  (--quick: 1024 x 1024 instead of 4096 x 4096)

The weight is rounded to 4 bits in groups of 128 inputs, with zero points; the second
moments are those of correlated inputs of different sizes. Both sides get the same
arrays, take inputs by importance and damp by 0.01, and both choose scales over the full
range. Torch's follows algorithm 1 of Frantar et al. 2022 in blocks of 128 inputs; its
transposed form keeps the inputs of a block beside each other in memory. Each of the
two runs with one and with two threads (on a machine that does other work as well, two
can be slower), and the fastest counts. The runs alternate; the figures are medians.
`error` is `tr((W - W') H (W - W')^T)` over that of W, its square root. Exit code 1 if
ours takes longer, or errs more by over 0.1 %.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _peers import module

from jcompress.formats import Int
from jcompress.quantization import PerGroup, Weights
from jcompress.rounding import Gptq
from jcompress.tensors.weight_matrix import dequantize_matrix

BITS, GROUP, BLOCK, DAMPING = 4, 128, 128, 0.01
Host = np.ndarray[Any, Any]


def problem(size: int) -> tuple[Host, Host]:
    """A weight [size, size], and moments of correlated inputs."""
    rng = np.random.default_rng(0)
    rows, hidden = 2 * size, size // 4

    def normal(*shape: int) -> Host:
        return rng.normal(size=shape).astype(np.float32)

    x = 0.05 * normal(rows, hidden) @ normal(hidden, size) + normal(rows, size)
    x = x * np.geomspace(0.1, 3, size).astype(np.float32)[rng.permutation(size)]
    return normal(size, size), x.T @ x


class Torch:
    """GPTQ in torch.

    Args:
        threads: how many it may use.
        transposed: whether the matrix has inputs first.
    """

    def __init__(self, threads: int, *, transposed: bool) -> None:
        self.torch = module("torch")
        self.threads = threads
        self.transposed = transposed

    def __call__(self, weight: Host, moments: Host) -> Host:
        """The dense weight that the numbers stand for."""
        torch = self.torch
        torch.set_num_threads(self.threads)
        w, h = torch.from_numpy(weight.copy()), torch.from_numpy(moments)
        groups = w.reshape(len(w), -1, GROUP)
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / (2**BITS - 1)
        zero = torch.clamp(torch.round(-low / scale), 0, 2**BITS - 1)
        size = torch.diagonal(h)
        order = torch.argsort(size, descending=True)
        w, h = w[:, order], h[order][:, order]
        h.diagonal().add_(DAMPING * size.mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        factor = torch.linalg.cholesky(inverse, upper=True)
        group = (order // GROUP).tolist()
        run = self._by_rows if self.transposed else self._by_columns
        made = run(w, factor, scale, zero, group)
        return np.asarray(made[:, torch.argsort(order)].numpy())

    def _by_columns(self, w: Any, r: Any, scale: Any, zero: Any, group: Any) -> Any:
        torch, made = self.torch, self.torch.empty_like(w)
        for a in range(0, w.shape[1], BLOCK):
            b = min(a + BLOCK, w.shape[1])
            own, pivots = w[:, a:b].clone(), r[a:b, a:b]
            errors = torch.empty_like(own)
            for i in range(b - a):
                s, z = scale[:, group[a + i]], zero[:, group[a + i]]
                steps = torch.clamp(torch.round(own[:, i] / s) + z, 0, 2**BITS - 1)
                made[:, a + i] = (steps - z) * s
                errors[:, i] = (own[:, i] - made[:, a + i]) / pivots[i, i]
                own[:, i:] -= errors[:, i, None] * pivots[i, i:][None]
            w[:, b:] -= errors @ r[a:b, b:]
        return made

    def _by_rows(self, w: Any, r: Any, scale: Any, zero: Any, group: Any) -> Any:
        torch = self.torch
        w, scale, zero = (x.T.contiguous() for x in (w, scale, zero))
        made = torch.empty_like(w)
        for a in range(0, w.shape[0], BLOCK):
            b = min(a + BLOCK, w.shape[0])
            own, pivots = w[a:b].clone(), r[a:b, a:b]
            errors = torch.empty_like(own)
            for i in range(b - a):
                s, z = scale[group[a + i]], zero[group[a + i]]
                steps = torch.clamp(torch.round(own[i] / s) + z, 0, 2**BITS - 1)
                made[a + i] = (steps - z) * s
                errors[i] = (own[i] - made[a + i]) / pivots[i, i]
                own[i:] -= pivots[i, i:, None] * errors[i][None]
            w[b:] -= r[a:b, b:].T @ errors
        return made.T


def ours(weight: Host, moments: Host) -> tuple[Callable[[], Host], float]:
    """A run of ours, and the seconds of its compilation."""
    format = Int(BITS, symmetric=False)
    spec = Weights(format=format, granularity=PerGroup(GROUP))
    how = Gptq(damping=DAMPING)
    begin = time.perf_counter()
    w, h = jnp.asarray(weight), jnp.asarray(moments)
    step = jax.jit(lambda w, h: how.round(w, spec, h)).lower(w, h).compile()
    seconds = time.perf_counter() - begin
    expand = jax.jit(
        lambda made: dequantize_matrix(
            made.values, made.scales, made.zeros, jnp.float32
        )
    )
    return lambda: np.asarray(expand(step(w, h))), seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Time all in turn, print the table, and say what falls."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="1024 x 1024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="of torch"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    args = parser.parse_args(arguments)
    size = 1024 if args.quick else 4096
    weight, moments = problem(size)
    run, compiled = ours(weight, moments)
    runs: dict[str, Callable[[], Host]] = {"jcompress": run}
    for threads in args.threads:
        for transposed in (False, True):
            peer = Torch(threads, transposed=transposed)
            name = f"torch, {threads} thread{'s' * (threads > 1)}"
            name += ", transposed" * transposed
            runs[name] = functools.partial(peer, weight, moments)
    whole = float(np.sum((weight @ moments) * weight, dtype=np.float64))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    errors: dict[str, float] = {}
    warm: dict[str, float] = {}
    peers = [name for name in runs if name != "jcompress"]
    for number in range(args.rounds + 1):
        fastest = min(warm.get(name, np.inf) for name in peers)
        for name, call in runs.items():
            if number and name in peers and warm[name] > 4 * fastest:
                continue  # no candidate for the fastest peer
            begin = time.perf_counter()
            made = call()
            taken = time.perf_counter() - begin
            if number:
                seconds[name].append(taken)
            else:
                warm[name] = taken
            change = made - weight
            lost = float(np.sum((change @ moments) * change, dtype=np.float64))
            errors[name] = (lost / whole) ** 0.5
    print(f"{size} x {size}, {BITS} bits, groups of {GROUP}")
    print(f"compiled in {compiled:.1f} s, which is not among the seconds")
    for name, times in seconds.items():
        if not times:
            print(f"| {name} | {warm[name]:.2f} s, once | {errors[name]:.5f} |")
            continue
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"| {name} | {np.median(times):.2f} s ({spread}) | {errors[name]:.5f} |")
    peers = [name for name in peers if seconds[name]]
    best = min(peers, key=lambda name: float(np.median(seconds[name])))
    ratio = float(np.median(seconds["jcompress"]) / np.median(seconds[best]))
    print(f"{ratio:.2f} times the seconds of {best}")
    fallen = []
    if ratio > 1:
        fallen.append(f"slower than {best}: {ratio:.2f} times its seconds")
    if errors["jcompress"] > 1.001 * errors[best]:
        fallen.append(f"errs {errors['jcompress']:.5f}, {best} {errors[best]:.5f}")
    for words in fallen:
        print(f"FALLS: {words}")
    if args.json:
        row = {"size": size, "compile": compiled, "seconds": seconds, "error": errors}
        args.json.write_text(json.dumps({**row, "falls": fallen}))
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
