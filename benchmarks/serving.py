"""Requests a second of an encoder behind HTTP: exported by us, and in onnxruntime.

    pip install '.[serve]' onnxruntime onnx sympy
    python benchmarks/serving.py [--quick] [--json FILE]

The model has the shape of MiniLM-L6; its weights are random, or the real ones if the
environment variable MINILM names their folder (see benchmarks/minilm.py). Every
contender stands behind the same server of `jcompress.serving`, in a process of its own,
with the same settings and threads; onnxruntime's graphs have gone through its own
optimizer for BERT. Clients on the same machine, in a process beside, send requests of
one text, and the next when an answer is there. Contenders take turns in every round, in
another order each time.

The bar, exit code 1 if it falls: ours in W8A8 answers at least as many requests a
second as onnxruntime's dynamic int8, with each number of clients.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from _serving_load import answers, load, request
from _serving_models import (
    encoder,
    export_onnx,
    export_ours,
    optimize_onnx,
    quantize_onnx,
)
from _timing import Unavailable, machine, pin, settle

OURS, PEER = "ours W8A8", "onnxruntime int8"
FLOAT = "onnxruntime float32"
NEEDED = ("onnx", "onnxruntime", "sympy", "starlette", "uvicorn")
LEAST_LIKENESS = 0.8
"""Cosine of a vector with onnxruntime's float32: below, it is another model."""


def main() -> int:
    """Parse the arguments, measure, print; 1 if the bar falls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--max-wait-ms", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="5 rounds, fewer requests")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.requests = 5, 10
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"not installed: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    try:
        pin(args.threads)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files, real = written(pathlib.Path(folder), args.length)
        ports = {
            name: stack.enter_context(server(path, args))
            for name, path in files.items()
        }
        print(
            f"{machine()}, {args.threads} threads; {'real' if real else 'random'} "
            f"weights, {args.length} tokens, batches of up to {args.max_batch}, "
            f"{args.max_wait_ms:g} ms of waiting"
        )
        texts = requests(args.length)
        likeness = alike(ports, texts[:8])
        found = measured(ports, texts, args)
    rows = table(found, likeness)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}))
    bad = missed(found)
    for line in bad:
        print(f"missed: {line}")
    return 1 if bad else 0


def written(folder: pathlib.Path, length: int) -> tuple[dict[str, pathlib.Path], bool]:
    """The files of all contenders, and whether the weights are the real ones."""
    variables, real = encoder()
    paths = {
        name: folder / file
        for name, file in (
            (OURS, "eight.jax"),
            ("ours float32", "float.jax"),
            (PEER, "eight.onnx"),
            (FLOAT, "float.onnx"),
        )
    }
    export_ours(variables, length, paths[OURS], bits=8)
    export_ours(variables, length, paths["ours float32"], bits=32)
    export_onnx(variables, folder / "plain.onnx")
    optimize_onnx(folder / "plain.onnx", paths[FLOAT])
    quantize_onnx(paths[FLOAT], paths[PEER])
    return paths, real


@contextlib.contextmanager
def server(path: pathlib.Path, args: argparse.Namespace) -> Iterator[int]:
    """A process that serves a file; its port."""
    script = pathlib.Path(__file__).with_name("_serving_process.py")
    settings = (args.length, args.threads, args.max_batch, args.max_wait_ms)
    process = subprocess.Popen(
        [sys.executable, str(script), str(path), *map(str, settings)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line.isdigit():
            raise RuntimeError(f"the server of {path.name} did not start")
        yield int(line)
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


def requests(length: int, count: int = 64) -> list[bytes]:
    """Random texts of a quarter of the length and more."""
    random = np.random.default_rng(0)
    tokens = random.integers(1000, 30000, (count, length)).astype(np.int32)
    lengths = random.integers(length // 4, length + 1, (count, 1))
    mask = (np.arange(length) < lengths).astype(np.int32)
    return [request(*row) for row in zip(tokens * mask, mask, strict=True)]


def alike(ports: Mapping[str, int], texts: list[bytes]) -> dict[str, float]:
    """The least cosine of each contender's vectors with those of onnxruntime's floats.

    Raises:
        ArithmeticError: one computes something else; it is not timed.
    """
    wanted = answers(ports[FLOAT], texts)
    found = {}
    for name, port in ports.items():
        least = float((answers(port, texts) * wanted).sum(axis=1).min())
        if not least >= LEAST_LIKENESS:
            raise ArithmeticError(f"{name}: cosine {least:.3f} with {FLOAT}")
        found[name] = least
    return found


Rounds = dict[int, dict[str, dict[str, list[float]]]]
"""By clients and contender: a rate for each round, and the seconds of all requests."""


def measured(
    ports: Mapping[str, int], texts: list[bytes], args: argparse.Namespace
) -> Rounds:
    """All rounds with each number of clients."""
    order = np.random.default_rng(0)
    found: Rounds = {}
    for clients in args.clients:
        each = found[clients] = {name: {"rates": [], "seconds": []} for name in ports}
        for number in range(args.rounds + 1):
            for name in order.permutation(list(ports)):
                settle()
                count = clients * (args.requests if number else 2)
                served = load(ports[name], texts, clients=clients, count=count, most=20)
                if number:  # the first round only wakes them
                    each[name]["rates"].append(served.rate)
                    each[name]["seconds"] += served.seconds
    return found


def table(found: Rounds, likeness: Mapping[str, float]) -> list[dict[str, Any]]:
    """Print a table for each number of clients; its rows."""
    rows = []
    for clients, each in found.items():
        heads = ("requests/s", "p50 ms", "p99 ms", "cosine", f"x {PEER}")
        print(f"\n| {clients} clients | {' | '.join(heads)} |")
        print("|---|---|---|---|---|---|")
        base = np.array(each[PEER]["rates"])
        for name, values in each.items():
            rates = np.array(values["rates"])
            middle, late = np.percentile(values["seconds"], [50, 99]) * 1e3
            low, ratio, high = np.percentile(rates / base, [25, 50, 75])
            rows.append(
                {
                    "clients": clients,
                    "name": name,
                    "rates": rates.tolist(),
                    "p50_ms": float(middle),
                    "p99_ms": float(late),
                    "cosine": likeness[name],
                    "ratio": float(ratio),
                }
            )
            print(
                f"| {name} | {np.median(rates):.1f} | {middle:.1f} | {late:.1f} | "
                f"{likeness[name]:.3f} | {ratio:.2f} [{low:.2f}, {high:.2f}] |"
            )
    return rows


def missed(found: Rounds) -> list[str]:
    """The numbers of clients with which the bar fell."""
    bad = []
    for clients, each in found.items():
        rates = [np.array(each[name]["rates"]) for name in (OURS, PEER)]
        ratio = float(np.median(rates[0] / rates[1]))
        print(f"{clients} clients: {OURS} answers {ratio:.2f} of {PEER}")
        if ratio < 1:
            bad.append(f"{ratio:.2f} of {PEER} with {clients} clients")
    return bad


if __name__ == "__main__":
    sys.exit(main())
