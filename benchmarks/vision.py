"""ResNet-18, MobileNetV2 and a U-Net on the CPU: ours beside onnxruntime's static int8.

    pip install torch onnxruntime onnx
    python benchmarks/vision.py

Flax models with random weights in evaluation, batch normalization folded into the
weights; the same weights in onnxruntime and torch. Images of 224 and 32 pixels, batches
of 1 and 32 (`--quick`: 32 pixels only). All contenders take the same images on the same
number of threads, in every round once, in another order each time. A ratio is of the
times of two contenders in one round: its median, and its quartiles in brackets. The
error is that of the logits, relative by norms to those of the float model. The process
keeps the memory that it frees, as onnxruntime does anyway.

Exit code 1 if our int8 (static ranges) is slower than the faster one of onnxruntime's
two static forms, judged by the median ratio.
"""

import argparse
import fnmatch
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from _timing import Unavailable, machine, pin
from _vision_models import NAMES, Host, Network, network
from _vision_peers import Run, onnx_runs, torch_runs

from jcompress.execution import compressed, inspect, keep_memory
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerRow,
    Quantize,
    calibrate,
    init_ranges,
    quantize,
)
from jcompress.report import aligned
from jcompress.rules import Rules
from jcompress.sites import find_sites

BASE, STATIC = "jax f32", "ours W8A8 static"
SETTLE = 0.05
"""Seconds of sleep before a contender: onnxruntime's threads spin for longer than 8 ms
after their work."""

SEEN = 16
"""Images for calibration."""


class Row(NamedTuple):
    """One contender on one model, at one size of images and batches.

    Attributes:
        model: its name.
        size: of an image's side.
        batch: images at once.
        name: of the contender.
        error: of its logits.
        milliseconds: the median time of a call.
        ratio: quartiles of its time over that of the faster int8 of onnxruntime.
        integers: of ours, how many layers run in integers, of how many.
    """

    model: str
    size: int
    batch: int
    name: str
    error: float
    milliseconds: float
    ratio: tuple[float, float, float] | None
    integers: str


def our_runs(model: Network, seen: Host) -> Iterator[tuple[str, Run, Any]]:
    """The float model and what quantization makes of it, with its tree."""

    def made(fn: Any, tree: Any) -> Run:
        # The weights are constants of the program, as a server has them, and the peers.
        run = jax.jit(functools.partial(fn, tree))
        return lambda x: np.asarray(run(x))

    yield BASE, made(model.apply, model.variables), None
    sites = find_sites(model.apply, model.variables, seen[:1])
    specs = {
        "ours W8": Quantize(),
        "ours W8A8 dynamic": Quantize(activation=Activation(granularity=PerRow())),
        STATIC: Quantize(
            activation=Activation(range=MovingAverage(decay=0.9), shared=True)
        ),
    }
    for name, spec in specs.items():
        rules: Rules[Quantize] = [("**/kernel", spec)]
        ranges = None
        if name == STATIC:
            ranges = init_ranges(model.apply, rules, model.variables, seen[:1])
            watch = jax.jit(calibrate(model.apply, rules))
            for image in np.split(seen, len(seen)):
                _, ranges = watch(model.variables, ranges, image)
        small = quantize(model.variables, rules, sites=sites, ranges=ranges)
        yield name, made(compressed(model.apply), small), small


def times(runs: Mapping[str, Run], x: Host, rounds: int) -> dict[str, Host]:
    """Seconds of a call, by contender and round."""
    once = {}
    for name, run in runs.items():
        run(x)
        start = time.perf_counter()
        run(x)
        once[name] = time.perf_counter() - start
    found: dict[str, list[float]] = {name: [] for name in runs}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(runs)):
            run, calls = runs[name], max(1, min(50, int(0.05 / once[name])))
            time.sleep(SETTLE)
            run(x)
            start = time.perf_counter()
            for _ in range(calls):
                run(x)
            found[name].append((time.perf_counter() - start) / calls)
    return {name: np.array(each) for name, each in found.items()}


def measured(
    model: Network, batches: Sequence[int], args: argparse.Namespace
) -> Iterator[Row]:
    """All rows of a model at one size of images."""
    rng = np.random.default_rng(0)
    shape = (max(*batches, SEEN) + SEEN, model.size, model.size, 3)
    images = rng.normal(size=shape).astype(np.float32)
    seen, fresh = images[:SEEN], images[SEEN:]
    runs: dict[str, Run] = {}
    integers = {}
    for name, run, small in our_runs(model, seen):
        runs[name] = run
        if small is not None:
            entries = inspect(model.apply, small, fresh[:1])
            whole = sum(entry.how.name == "INTEGER" for entry in entries)
            integers[name] = f"{whole}/{len(entries)}"
    sources: tuple[Callable[[], Iterator[tuple[str, Run]]], ...] = (
        functools.partial(torch_runs, model, args.threads),
        functools.partial(onnx_runs, model, seen, args.threads),
    )
    for source in sources:
        try:
            runs |= dict(source())
        except Unavailable as error:
            print(f"left out: {error}", file=sys.stderr)
    runs = {
        name: run
        for name, run in runs.items()
        if name == BASE or any(fnmatch.fnmatch(name, p) for p in args.contenders)
    }
    judged = fresh[: min(SEEN, len(fresh))]
    exact = runs[BASE](judged)
    errors = {
        name: float(np.linalg.norm(run(judged) - exact) / np.linalg.norm(exact))
        for name, run in runs.items()
    }
    if "*" not in args.contenders and BASE not in args.contenders:
        del runs[BASE]
    for batch in batches:
        spent = times(runs, fresh[:batch], args.rounds)
        peers = [name for name in spent if name.startswith("onnxruntime int8")]
        best = min(peers, key=lambda name: np.median(spent[name]), default=None)
        for name, each in spent.items():
            ratio = None
            if best is not None:
                low, middle, high = np.percentile(each / spent[best], [25, 50, 75])
                ratio = (float(low), float(middle), float(high))
            yield Row(
                model.name,
                model.size,
                batch,
                name,
                errors[name],
                float(1e3 * np.median(each)),
                ratio,
                integers.get(name, ""),
            )


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines = [("contender", "ms", "time / onnxruntime int8", "error", "in integers")]
    for row in rows:
        ratio = ""
        if row.ratio is not None:
            low, middle, high = row.ratio
            ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(
            (
                row.name,
                f"{row.milliseconds:.2f}",
                ratio,
                f"{row.error:.1e}",
                row.integers,
            )
        )
    return str(aligned(lines, right=(1, 2, 3, 4)))


def main() -> None:
    """Parse the arguments, measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32 pixels, few rounds")
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--contenders", nargs="+", default=["*"], help="patterns")
    parser.add_argument(
        "--return-memory",
        action="store_true",
        help="leave out jcompress.execution.keep_memory()",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 15)
    sizes = args.sizes or ([32] if args.quick else [32, 224])
    pin(args.threads)
    if not args.return_memory:
        keep_memory()
    print(f"{machine()}, {args.threads} threads, jax {jax.__version__}")
    rows: list[Row] = []
    for name in args.models:
        for size in sizes:
            found = list(measured(network(name, size), args.batches, args))
            for batch in args.batches:
                print(f"\n{name}, {size} pixels, batch {batch}")
                print(table([row for row in found if row.batch == batch]), flush=True)
            rows += found
    if args.json:
        args.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    falls = [row for row in rows if row.name == STATIC and row.ratio is not None]
    falls = [row for row in falls if row.ratio is not None and row.ratio[1] > 1]
    for row in falls:
        assert row.ratio is not None
        print(
            f"{row.model}, {row.size} pixels, batch {row.batch}: {row.ratio[1]:.2f} "
            "times the time of onnxruntime's int8"
        )
    sys.exit(1 if falls else 0)


if __name__ == "__main__":
    main()
