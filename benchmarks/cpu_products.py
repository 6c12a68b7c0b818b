"""Time products with compressed weights on the CPU, beside XLA, torch and others.

    pip install torch onnxruntime onnx llama-cpp-python   # those of them that you want
    python benchmarks/cpu_products.py --out products.jsonl
    python benchmarks/cpu_products.py --rows 1 --shapes 4096x4096 --out products.jsonl
    python benchmarks/cpu_products.py --report products.jsonl

Every contender's results are compared with float64 before it is timed (`_timing.py`
says how it is timed); each call includes its library's own overhead, and for ours and
XLA's that of a jitted call that is waited for. A figure is XLA's float32 time over the
contender's in the same round: above 1 the contender is faster. Medians over all rounds
of all runs in the files, and quartiles in brackets. Runs in pieces: each line of the
output is one contender at one shape and number of rows.
"""

import argparse
import collections
import datetime
import fnmatch
import gc
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from _timing import (
    Offer,
    Product,
    Unavailable,
    cache_bytes,
    check,
    machine,
    measure,
    pin,
    read_bandwidth,
)

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHAPES = ("384x1536", "768x3072", "4096x4096", "4096x14336")
BASE = "xla f32"
CHECKED = (1, 5, 40)
"""Rows at which results are checked: libraries have other forms for few and many."""


def right(
    products: list[Product], given: list[np.ndarray]
) -> tuple[list[Product], dict[str, float]]:
    """Those whose results are right, and their errors.

    Another library that is wrong on this processor is named on the error stream.

    Raises:
        ArithmeticError: a result of ours or of XLA's is wrong.
    """
    import _jax_products

    errors = {}
    for product in products:
        try:
            errors[product.name] = check(product, given)
        except ArithmeticError as error:
            if isinstance(product, _jax_products.JaxProduct):
                raise
            print(f"left out: {error}", file=sys.stderr)
    return [product for product in products if product.name in errors], errors


def contenders(weight: np.ndarray, threads: int, wanted: list[str]) -> list[Product]:
    """Those whose names match one of the patterns, and the one all are compared with.

    A library that is missing is named on the error stream.
    """
    import _jax_products
    import _onnx
    import _peers

    sources: dict[str, Callable[[], Iterator[Offer]]] = {
        "xla": lambda: _jax_products.xla_products(weight),
        "ours": lambda: _jax_products.our_products(weight),
        "torch": lambda: _peers.torch_products(weight, threads),
        "onnxruntime": lambda: _onnx.onnx_products(weight, threads),
        "llama.cpp": lambda: _peers.ggml_products(weight, threads),
    }
    found = []
    for name, source in sources.items():
        if name != "xla" and not any(p.split(" ")[0] in (name, "*") for p in wanted):
            continue
        try:
            for each, make in source():
                if each == BASE or any(fnmatch.fnmatch(each, p) for p in wanted):
                    found.append(make())
        except Unavailable as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
    return found


def lines(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure; one line a contender, shape and number of rows."""
    from _jax_products import call_overhead, peak

    run = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    yield {
        "run": run,
        "machine": machine(),
        "threads": args.threads,
        "cache": cache_bytes(),
        "read_bandwidth": read_bandwidth(args.threads),
        "peak": peak(),
        "call_overhead": call_overhead(),
    }
    for shape in args.shapes:
        inputs, outputs = map(int, shape.split("x"))
        random = np.random.default_rng(inputs + outputs)
        weight = random.normal(size=(outputs, inputs)).astype(np.float32)
        weight *= np.float32(inputs**-0.5)
        products = contenders(weight, args.threads, args.contenders)
        some = [random.normal(size=(rows, inputs)) for rows in CHECKED]
        given = [x.astype(np.float32) for x in some]
        products, errors = right(products, given)
        for rows in args.rows:
            x = random.normal(size=(rows, inputs)).astype(np.float32)
            # So many rounds that all of them take about the time asked for.
            expected = len(products) * (args.block + 0.012)
            rounds = args.rounds or max(5, int(args.seconds / expected))
            times = measure(products, x, rounds=rounds, block=args.block)
            for product in products:
                yield {
                    "run": run,
                    "shape": shape,
                    "rows": rows,
                    "name": product.name,
                    "kind": product.kind,
                    "bits": product.bits,
                    "activations": product.activations,
                    "bytes": product.bytes,
                    "error": errors[product.name],
                    **{
                        f"{whose}{kind}": [float(f"{t:.4g}") for t in seconds]
                        for whose, name in (("", product.name), ("base_", BASE))
                        for kind, seconds in times[name]._asdict().items()
                    },
                }
        del products, product
        gc.collect()


class Figures:
    """What all the lines say of one contender at one shape and number of rows.

    `kind` is which call of a block counts: "median", or "least" for runs on a machine
    that others used too.
    """

    def __init__(self, found: list[dict[str, Any]], kind: str) -> None:
        pairs = [
            (base, own)
            for line in found
            for base, own in zip(line[f"base_{kind}"], line[kind], strict=True)
        ]
        base, own = np.array(pairs).T
        first = found[0]
        self.name, self.kind = first["name"], first["kind"]
        self.bits, self.activations = first["bits"], first["activations"]
        self.low, self.ratio, self.high = np.percentile(base / own, [25, 50, 75])
        self.median, self.best = float(np.median(own)), float(own.min())
        self.rounds, self.bytes = len(pairs), first["bytes"]

    def __str__(self) -> str:
        return f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"


def report(found: Iterable[dict[str, Any]], kind: str) -> str:
    """All tables, in Markdown."""
    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = collections.defaultdict(
        list
    )
    text = []
    for line in found:
        if "machine" in line:
            rates = line["peak"]
            text.append(
                f"run {line['run'][:16]}: {line['machine']}, {line['threads']} threads,"
                f" read {line['read_bandwidth'] / 1e9:.1f} GB/s, XLA at 2048 cubed "
                f"{rates['float32'] / 1e9:.0f} GFLOP/s float32 and "
                f"{rates['int8'] / 1e9:.0f} GOP/s int8, "
                f"empty jitted call {line['call_overhead'] * 1e6:.0f} us"
            )
        else:
            cells[line["shape"], line["rows"], line["name"]].append(line)
    figures = {key: Figures(value, kind) for key, value in cells.items()}
    shapes = sorted({s for s, _, _ in figures}, key=weights_of)
    for shape in shapes:
        text += ["", f"### {shape}", "", *_by_contender(shape, figures)]
    text += ["", "### Ours against the best peer of the same bits", ""]
    text += [*_against_peers(figures)]
    return "\n".join(text)


def weights_of(shape: str) -> int:
    """Weights of a shape, to order by."""
    inputs, outputs = map(int, shape.split("x"))
    return inputs * outputs


def _by_contender(
    shape: str, figures: dict[tuple[str, int, str], Figures]
) -> Iterator[str]:
    rows = sorted({r for s, r, _ in figures if s == shape})
    names = list(dict.fromkeys(n for s, _, n in figures if s == shape))
    yield "| rows | " + " | ".join(map(str, rows)) + " |"
    yield "|---" * (1 + len(rows)) + "|"
    for name in names:
        own = [figures.get((shape, r, name)) for r in rows]
        if name == BASE:
            shown = [f"{f.median * 1e3:.3g} ms" if f else "" for f in own]
        else:
            shown = [str(f) if f else "" for f in own]
        yield f"| {name} | " + " | ".join(shown) + " |"
    one = [f for (s, r, _), f in figures.items() if s == shape and r == 1]
    if one:
        yield ""
        yield "GB/s of stored weight at one row: " + ", ".join(
            f"{f.name} {f.bytes / f.median / 1e9:.1f}" for f in one
        )


def _against_peers(figures: dict[tuple[str, int, str], Figures]) -> Iterator[str]:
    yield "| shape | rows | bits | inputs | ours | best peer | ours / peer |"
    yield "|---|---|---|---|---|---|---|"
    misses = []
    places = sorted({(weights_of(s), s, r) for s, r, _ in figures})
    for _, shape, rows in places:
        here = [f for (s, r, _), f in figures.items() if (s, r) == (shape, rows)]
        for bits in (8, 4, 3, 2):
            for label, low, high in (("any", 0, 99), ("int8", 8, 8), ("float", 16, 32)):
                fit = [
                    f for f in here if f.bits == bits and low <= f.activations <= high
                ]
                ours = [f for f in fit if f.kind == "ours"]
                peers = [f for f in fit if f.kind == "peer"]
                if not ours or not peers:
                    continue
                us = max(ours, key=lambda f: f.ratio)
                them = max(peers, key=lambda f: f.ratio)
                line = (
                    f"| {shape} | {rows} | {bits} | {label} | {us.name} {us} | "
                    f"{them.name} {them} | {us.ratio / them.ratio:.2f} |"
                )
                yield line
                if us.ratio < them.ratio:
                    misses.append(line)
        for f in here:
            if f.kind == "ours" and f.ratio < 1:
                misses.append(f"| {shape} | {rows} | {f.bits} | | {f.name} {f} | | |")
    yield ""
    yield f"Slower than the best peer, or than {BASE}: {len(misses)}"
    yield ""
    yield from misses


def main() -> None:
    """Parse the arguments; measure, or report what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="KxN")
    parser.add_argument(
        "--contenders", nargs="+", default=["*"], help='patterns, such as "torch *"'
    )
    parser.add_argument(
        "--seconds", type=float, default=30, help="for one shape and number of rows"
    )
    parser.add_argument("--rounds", type=int, help="instead of --seconds")
    parser.add_argument("--block", type=float, default=0.03, help="seconds of a block")
    parser.add_argument(
        "--call", choices=("median", "least"), default="median", help="of a block"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines; appended to")
    parser.add_argument("--report", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    if args.report:
        texts = [path.read_text().splitlines() for path in args.report]
        every = (json.loads(line) for text in texts for line in text)
        print(report(every, args.call))
        return
    pin(args.threads)
    found = []
    for line in lines(args):
        found.append(line)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if "rows" in line:
            figures = Figures([line], args.call)
            print(
                f"{line['shape']:>10} x {line['rows']:<3} {figures.name:36} "
                f"{figures.median * 1e3:9.3f} ms  {figures}",
                flush=True,
            )
    print(report(found, args.call))


if __name__ == "__main__":
    main()
