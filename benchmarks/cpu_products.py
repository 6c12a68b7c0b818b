"""Time products with compressed weights on the CPU, beside XLA, torch and others.

    pip install torch onnxruntime onnx llama-cpp-python   # those of them that you want
    python benchmarks/cpu_products.py --json products.jsonl [--quick]
    python benchmarks/cpu_products.py --rows 1 --shapes 4096x4096 --json products.jsonl
    python benchmarks/cpu_products.py --report products.jsonl

Every contender's results are compared with float64 before it is timed (`_timing.py`
says how it is timed); each call includes its library's own overhead, and for ours and
XLA's that of a jitted call that is waited for. A figure is XLA's float32 time over the
contender's in the same round: above 1 the contender is faster. Medians over all rounds
of all runs in the files, and quartiles in brackets. Runs in pieces: each line of the
output is one contender at one shape and number of rows.

Bars, exit code 1 where one falls (`_product_bars.py` says how they are judged): 8 bits
level with the best peer in the median of all cells, 0.9 of it in each, and within 1.1
times of onnxruntime at one row of 384 x 1536; weights alone never slower than float32;
4 bits never slower than 8; W8A8 at 85 % of the read bandwidth at one row of the large
shapes; 60 % of what arithmetic and memory allow at 2 to 16 rows.
"""

import argparse
import collections
import datetime
import fnmatch
import gc
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from _product_bars import Cell, Limits, judged, weights_of
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
    stay_cached,
)

from jcompress.execution import keep_memory

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
QUICK = (1, 8, 64)
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
    # What a pattern begins with tells which libraries it may mean.
    heads = [re.split(r"[*?\[]", pattern)[0] for pattern in wanted]
    for name, source in sources.items():
        if name != "xla" and not any(_may_be(head, name) for head in heads):
            continue
        try:
            for each, make in source():
                if each == BASE or any(fnmatch.fnmatch(each, p) for p in wanted):
                    found.append(make())
        except Unavailable as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
    return found


def _may_be(head: str, name: str) -> bool:
    return head.startswith(name) or name.startswith(head)


def lines(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure; one line a contender, shape and number of rows."""
    from _dots import dots
    from _jax_products import call_overhead, peak

    run = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    yield {
        "run": run,
        "machine": machine(),
        "threads": args.threads,
        "cache": cache_bytes(),
        "read_bandwidth": 0.0 if args.cached else read_bandwidth(args.threads),
        "peak": peak(),
        "dots": dots(args.threads),
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


def report(found: Iterable[dict[str, Any]], kind: str) -> tuple[str, int]:
    """All tables, in Markdown, and how many bars fall."""
    cells: dict[tuple[str, int, str], list[dict[str, Any]]] = collections.defaultdict(
        list
    )
    text, limits = [], Limits(0, 0)
    for line in found:
        if "machine" in line:
            limits = Limits(line["read_bandwidth"], line["dots"])
            rates = line["peak"]
            text.append(
                f"run {line['run'][:16]}: {line['machine']}, {line['threads']} threads,"
                f" read {line['read_bandwidth'] / 1e9:.1f} GB/s, XLA at 2048 cubed "
                f"{rates['float32'] / 1e9:.0f} GFLOP/s float32 and "
                f"{rates['int8'] / 1e9:.0f} GOP/s int8, instructions for bytes "
                f"{2 * line['dots'] / 1e9:.0f} GOP/s, "
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
    cells_of = [
        Cell(
            shape,
            rows,
            f.name,
            f.kind,
            f.bits,
            f.activations,
            f.bytes,
            f.ratio,
            f.median,
        )
        for (shape, rows, _), f in figures.items()
    ]
    bars = list(judged(cells_of, limits))
    text += ["", "### Bars", "", *(str(bar) for bar in bars)]
    return "\n".join(text), sum(not bar.met for bar in bars)


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
                yield (
                    f"| {shape} | {rows} | {bits} | {label} | {us.name} {us} | "
                    f"{them.name} {them} | {us.ratio / them.ratio:.2f} |"
                )


def main() -> None:
    """Parse the arguments; measure, or report what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three numbers of rows")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="KxN")
    parser.add_argument(
        "--contenders", nargs="+", default=["*"], help='patterns, such as "torch *"'
    )
    parser.add_argument(
        "--seconds", type=float, help="for one shape and number of rows"
    )
    parser.add_argument("--rounds", type=int, help="instead of --seconds")
    parser.add_argument("--block", type=float, default=0.03, help="seconds of a block")
    parser.add_argument(
        "--call", choices=("median", "least"), default="median", help="of a block"
    )
    parser.add_argument(
        "--cached", action="store_true", help="one weight each, which stays cached"
    )
    parser.add_argument(
        "--return-memory",
        action="store_true",
        help="leave out jcompress.execution.keep_memory()",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=pathlib.Path, help="JSON lines; appended to")
    parser.add_argument("--report", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    if args.report:
        texts = [path.read_text().splitlines() for path in args.report]
        every = (json.loads(line) for text in texts for line in text)
        text, fallen = report(every, args.call)
        print(text)
        sys.exit(1 if fallen else 0)
    args.rows = args.rows or list(QUICK if args.quick else ROWS)
    args.seconds = args.seconds or (2 if args.quick else 30)
    pin(args.threads)
    if args.cached:
        stay_cached()
    if not args.return_memory:
        keep_memory()
    found = []
    for line in lines(args):
        found.append(line)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if "rows" in line:
            figures = Figures([line], args.call)
            print(
                f"{line['shape']:>10} x {line['rows']:<3} {figures.name:36} "
                f"{figures.median * 1e3:9.3f} ms  {figures}",
                flush=True,
            )
    text, fallen = report(found, args.call)
    print(text)
    sys.exit(1 if fallen else 0)


if __name__ == "__main__":
    main()
