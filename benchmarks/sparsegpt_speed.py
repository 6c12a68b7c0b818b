"""SparseGPT of one weight beside a plain implementation in torch, on the CPU.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python benchmarks/sparsegpt_speed.py  (--quick: 1024 x 1024, not 4096 x 4096)

Half of the weights are removed, single ones and 2:4. Both sides get the same arrays,
the second moments of correlated inputs of different sizes, damp by 0.01 and work in
blocks of 128 inputs. Torch's follows algorithm 1 of Frantar and Alistarh 2023; its
transposed form keeps the inputs of a block beside each other in memory. Each of the two
runs with one and with two threads (on a machine that does other work as well, two can
be slower), and the fastest counts. The runs alternate; the figures are medians. `error`
is `tr((W - W') H (W - W')^T)` over that of W, its square root. Exit code 1 if ours
takes longer, errs more by over 0.1 %, or leaves fewer zeros. Without torch ours is
timed alone, and that is said.
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
from _timing import Unavailable
from gptq_speed import problem

from jcompress.pruning import NM, Pattern, Unstructured
from jcompress.pruning.one_shot import SparseGpt

BLOCK, DAMPING, SPARSITY = 128, 0.01, 0.5
PATTERNS: dict[str, Pattern] = {"unstructured": Unstructured(), "2:4": NM(2, 4)}
Host = np.ndarray[Any, Any]


class Torch:
    """SparseGPT in torch.

    Args:
        threads: how many it may use.
        transposed: whether the matrix has inputs first.
        groups: n and m of N:M; None for single weights.
    """

    def __init__(
        self, threads: int, *, transposed: bool, groups: tuple[int, int] | None
    ) -> None:
        self.torch = module("torch")
        self.threads = threads
        self.transposed = transposed
        self.groups = groups

    def __call__(self, weight: Host, moments: Host) -> Host:
        """The pruned weight."""
        torch = self.torch
        torch.set_num_threads(self.threads)
        w, h = torch.from_numpy(weight.copy()), torch.from_numpy(moments.copy())
        size = torch.diagonal(h)
        size.add_(DAMPING * size.mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        factor = torch.linalg.cholesky(inverse, upper=True)
        if self.transposed:
            return np.asarray(self._by_rows(w.T.contiguous(), factor).T.numpy())
        return np.asarray(self._by_columns(w, factor).numpy())

    def _keep(self, scores: Any, dim: int) -> Any:
        """Which weights of a group stay."""
        torch = self.torch
        assert self.groups is not None
        best = torch.topk(scores, self.groups[0], dim=dim).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(dim, best, True)

    def _above(self, scores: Any) -> Any:
        """Which weights of a block stay: those above the one in the middle."""
        flat = scores.flatten()
        last = int(flat.numel() * SPARSITY)
        return scores > flat.kthvalue(last).values

    def _by_columns(self, w: Any, r: Any) -> Any:
        torch, made = self.torch, self.torch.empty_like(w)
        for a in range(0, w.shape[1], BLOCK):
            b = min(a + BLOCK, w.shape[1])
            own, pivots = w[:, a:b].clone(), r[a:b, a:b]
            sizes = torch.diagonal(pivots)
            errors = torch.empty_like(own)
            if self.groups is None:
                keep = self._above((own / sizes) ** 2)
            else:
                keep = torch.empty_like(own, dtype=torch.bool)
            for i in range(b - a):
                if self.groups is not None and i % self.groups[1] == 0:
                    part = slice(i, i + self.groups[1])
                    keep[:, part] = self._keep((own[:, part] / sizes[part]) ** 2, 1)
                made[:, a + i] = own[:, i] * keep[:, i]
                errors[:, i] = (own[:, i] - made[:, a + i]) / pivots[i, i]
                own[:, i:] -= errors[:, i, None] * pivots[i, i:][None]
            w[:, b:] -= errors @ r[a:b, b:]
        return made

    def _by_rows(self, w: Any, r: Any) -> Any:
        torch, made = self.torch, self.torch.empty_like(w)
        for a in range(0, w.shape[0], BLOCK):
            b = min(a + BLOCK, w.shape[0])
            own, pivots = w[a:b].clone(), r[a:b, a:b]
            sizes = torch.diagonal(pivots)[:, None]
            errors = torch.empty_like(own)
            if self.groups is None:
                keep = self._above((own / sizes) ** 2)
            else:
                keep = torch.empty_like(own, dtype=torch.bool)
            for i in range(b - a):
                if self.groups is not None and i % self.groups[1] == 0:
                    part = slice(i, i + self.groups[1])
                    keep[part] = self._keep((own[part] / sizes[part]) ** 2, 0)
                made[a + i] = own[i] * keep[i]
                errors[i] = (own[i] - made[a + i]) / pivots[i, i]
                own[i:] -= pivots[i, i:, None] * errors[i][None]
            w[b:] -= r[a:b, b:].T @ errors
        return made


def ours(
    weight: Host, moments: Host, pattern: Pattern
) -> tuple[Callable[[], Host], float]:
    """A run of ours, and the seconds of its compilation."""
    how = SparseGpt(damping=DAMPING, block=BLOCK)
    begin = time.perf_counter()
    w, h = jnp.asarray(weight), jnp.asarray(moments)
    run = jax.jit(lambda w, h: how.prune(w, pattern, SPARSITY, h))
    step = run.lower(w, h).compile()
    seconds = time.perf_counter() - begin
    return lambda: np.asarray(step(w, h)), seconds


def compared(args: argparse.Namespace, name: str, size: int) -> dict[str, Any]:
    """Time all for one pattern, and print the table."""
    pattern = PATTERNS[name]
    weight, moments = problem(size)
    run, compiled = ours(weight, moments, pattern)
    runs: dict[str, Callable[[], Host]] = {"jcompress": run}
    groups = (pattern.n, pattern.m) if isinstance(pattern, NM) else None
    try:
        for threads in args.threads:
            for transposed in (False, True):
                peer = Torch(threads, transposed=transposed, groups=groups)
                label = f"torch, {threads} thread{'s' * (threads > 1)}"
                label += ", transposed" * transposed
                runs[label] = functools.partial(peer, weight, moments)
    except Unavailable as error:
        print(f"ours alone, nothing is compared: {error}")
    whole = float(np.sum((weight @ moments) * weight, dtype=np.float64))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    errors: dict[str, float] = {}
    zeros: dict[str, float] = {}
    warm: dict[str, float] = {}
    peers = [label for label in runs if label != "jcompress"]
    for number in range(args.rounds + 1):
        fastest = min((warm.get(label, np.inf) for label in peers), default=np.inf)
        for label, call in runs.items():
            if number and label in peers and warm[label] > 4 * fastest:
                continue  # no candidate for the fastest peer
            begin = time.perf_counter()
            made = call()
            taken = time.perf_counter() - begin
            if number:
                seconds[label].append(taken)
            else:
                warm[label] = taken
                change = made - weight
                lost = float(np.sum((change @ moments) * change, dtype=np.float64))
                errors[label] = (lost / whole) ** 0.5
                zeros[label] = float((made == 0).mean())
    print(f"{size} x {size}, {name}, {SPARSITY:.0%} removed")
    print(f"compiled in {compiled:.1f} s, which is not among the seconds")
    for label, times in seconds.items():
        took = f"{warm[label]:.2f} s, once"
        if times:
            spread = f"{min(times):.2f} to {max(times):.2f}"
            took = f"{np.median(times):.2f} s ({spread})"
        print(f"| {label} | {took} | {errors[label]:.5f} | {zeros[label]:.4%} |")
    fallen = []
    peers = [label for label in peers if seconds[label]]
    if peers:
        best = min(peers, key=lambda label: float(np.median(seconds[label])))
        own, other = (np.median(seconds[label]) for label in ("jcompress", best))
        print(f"{own / other:.2f} times the seconds of {best}")
        if own > other:
            fallen.append(f"slower than {best}: {own / other:.2f} times its seconds")
        if errors["jcompress"] > 1.001 * errors[best]:
            fallen.append(f"errs {errors['jcompress']:.5f}, {best} {errors[best]:.5f}")
        if zeros["jcompress"] < zeros[best] - 1e-4:
            fallen.append(f"{zeros['jcompress']:.4%} zeros, {best} {zeros[best]:.4%}")
    for words in fallen:
        print(f"FALLS: {name}: {words}")
    row = {"size": size, "pattern": name, "compile": compiled, "seconds": seconds}
    return {**row, "error": errors, "zeros": zeros, "falls": fallen}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare for each pattern; say what falls."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="1024 x 1024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--patterns", nargs="+", choices=[*PATTERNS], default=[*PATTERNS]
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="of torch"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    args = parser.parse_args(arguments)
    size = 1024 if args.quick else 4096
    rows = [compared(args, name, size) for name in args.patterns]
    if args.json:
        args.json.write_text(json.dumps(rows))
    return 1 if any(row["falls"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
