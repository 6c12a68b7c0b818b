"""A decoder like Llama on the CPU: tokens a second, beside llama.cpp.

    pip install llama-cpp-python gguf
    python benchmarks/decoder.py [--quick] [--json FILE]

Random models of about 100 and 400 million parameters (grouped queries, RMS norm,
SwiGLU, rotary positions), so their text is noise; what counts is speed, and how far the
logits are from the float model's. llama.cpp gets a GGUF file of the same weights: its
own float32 must give our float model's logits, or two different models are compared.
Two figures: a prompt of 256 tokens at once, and 64 tokens one after the other behind a
prompt of 16. All take part in every round, in another order each time, with as many
threads. "Of the full bandwidth": the tokens a second as a share of those if nothing
took time but reading each stored byte of a product's weight once.

Bars, exit code 1 where one falls: W8A8 at least level with Q8_0 and W4A8 with Q4_0, by
both figures; W4A8 at 60 % or more of the full bandwidth.
"""

import argparse
import functools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _llama import SIZES, Cache, Llama, Sizes, write_gguf
from _llama_cpp import LlamaCpp
from _timing import Unavailable, machine, pin, read_bandwidth, settle

from jcompress.execution import compressed, fused
from jcompress.formats import Int
from jcompress.leaves import named_leaves
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerRow,
    Quantize,
    Weights,
    quantize,
)
from jcompress.report import parameters, stored_bytes
from jcompress.rules import Rules
from jcompress.sites import PRODUCTS, Operation, find_sites

BASE = "ours float32"
PEERS = {"ours W8A8": "llama.cpp Q8_0", "ours W4A8 g32": "llama.cpp Q4_0"}
"""What is compared with what."""
LEVEL, SHARE = 1.0, 0.6
"""Least speed beside the peer, least share of the bandwidth."""
PROMPT, BEFORE, TOKENS = 256, 16, 64

Run = tuple[Callable[[], Any], Callable[[], Any], Callable[[], np.ndarray]]
"""Reads the prompt; generates; gives the logits after the prompt."""


def specs() -> Mapping[str, Quantize]:
    """What each compressed model does with the weights of its products."""
    eight = Activation(format=Int(8), granularity=PerRow())
    four = Weights(format=Int(4), granularity=PerGroup(32))
    return {
        "ours W8A8": Quantize(activation=eight),
        "ours W4A8 g32": Quantize(weights=four, activation=eight),
    }


def prompt_of(sizes: Sizes, count: int) -> np.ndarray:
    """Random tokens."""
    tokens = np.random.default_rng(1).integers(0, sizes.vocabulary, count)
    return tokens.astype(np.int32)


def ours(model: Llama, fn: Any, tree: Any) -> Run:
    """Jitted: the prompt as one program, and all steps of generating as another."""

    @functools.partial(jax.jit, donate_argnums=1)
    def read(tree: Any, cache: Cache, tokens: Any) -> Any:
        return fn(tree, cache, tokens, jnp.int32(0))

    @functools.partial(jax.jit, donate_argnums=1)
    def go_on(tree: Any, cache: Cache, logits: Any) -> Any:
        def step(carried: Any, _: None) -> Any:
            cache, logits, place = carried
            token = jnp.argmax(logits)[None].astype(jnp.int32)
            logits, cache = fn(tree, cache, token, place)
            return (cache, logits, place + 1), None

        start = (cache, logits, jnp.int32(BEFORE))
        return jax.lax.scan(step, start, length=TOKENS)[0]

    first, long = (prompt_of(model.sizes, n) for n in (BEFORE, PROMPT))

    def generate() -> Any:
        logits, cache = read(tree, model.empty(), first)
        return jax.block_until_ready(go_on(tree, cache, logits))

    def prompt() -> Any:
        return jax.block_until_ready(read(tree, model.empty(), long)[0])

    return prompt, generate, lambda: np.asarray(prompt())


def peer(sizes: Sizes, model: LlamaCpp) -> Run:
    """The same through llama.cpp."""
    first, long = (prompt_of(sizes, n).tolist() for n in (BEFORE, PROMPT))

    def generate() -> None:
        model.clear()
        model.generate(first, TOKENS)

    def prompt() -> np.ndarray:
        model.clear()
        return model.decode(long)

    return prompt, generate, lambda: np.array(prompt())


def measure(
    name: str, sizes: Sizes, args: argparse.Namespace, bandwidth: float
) -> Mapping[str, Any]:
    """One model: speeds, errors, shares; printed and returned."""
    model = Llama(sizes)
    first = (model.empty(), jnp.ones((1,), jnp.int32), jnp.int32(0))
    dense = jax.jit(model.init)(jax.random.key(0), *first)
    sites = find_sites(model.apply, dense, *first)
    products = {s.path for s in sites if s.operation in PRODUCTS}
    runs: dict[str, Run] = {BASE: ours(model, fused(model.apply), dense)}
    read: dict[str, int] = {}
    for variant, spec in specs().items():
        rules: Rules[Quantize] = [
            (Operation.LOOKUP, Quantize()),
            (lambda site: site.operation in PRODUCTS, spec),
        ]
        tree = quantize(dense, rules, sites=sites)
        runs[variant] = ours(model, compressed(model.apply), tree)
        named = dict(named_leaves(tree))
        read[variant] = sum(stored_bytes(named[path]) for path in products)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for kind in ("F32", "Q8_0", "Q4_0"):
                path = pathlib.Path(folder) / f"{kind}.gguf"
                write_gguf(path, sizes, dense, kind)
                loaded = LlamaCpp(path, args.threads, sizes.length)
                runs[f"llama.cpp {kind}"] = peer(sizes, loaded)
        except Unavailable as error:
            print(f"left out: {error}", file=sys.stderr)
        exact = runs[BASE][2]()
        errors = {
            key: float(np.linalg.norm(run[2]() - exact) / np.linalg.norm(exact))
            for key, run in runs.items()
        }
        times = _times(runs, args.rounds)
    print(
        f"\n{name}: {parameters(dense) / 1e6:.0f} million parameters\n\n"
        "| | prompt, tokens/s | x float32 | generating, tokens/s | x float32 "
        "| of the full bandwidth | logits' error |\n|---|---|---|---|---|---|---|"
    )
    rows: dict[str, Any] = {}
    for key in runs:
        speeds = [count / times[key][i] for i, count in enumerate((PROMPT, TOKENS))]
        ratios = [times[BASE][i] / times[key][i] for i in range(2)]
        share = np.median(speeds[1]) * read[key] / bandwidth if key in read else None
        rows[key] = {
            "prompt": float(np.median(speeds[0])),
            "generating": float(np.median(speeds[1])),
            "share": None if share is None else float(share),
            "error": errors[key],
        }
        said = "" if share is None else f"{share:.2f}"
        print(
            f"| {key} | {np.median(speeds[0]):.0f} | {_quartiles(ratios[0])} | "
            f"{np.median(speeds[1]):.1f} | {_quartiles(ratios[1])} | {said} | "
            f"{errors[key]:.4f} |",
            flush=True,
        )
    beside = {
        own: [_quartiles(times[other][i] / times[own][i]) for i in range(2)]
        for own, other in PEERS.items()
        if other in times
    }
    for own, (prompt, generating) in beside.items():
        print(f"{own} / {PEERS[own]}: prompt {prompt}, generating {generating}")
    return {
        "rows": rows,
        "beside": beside,
        "times": {k: t.tolist() for k, t in times.items()},
    }


def _times(runs: Mapping[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of the prompt and of generating, by round."""
    found: dict[str, list[list[float]]] = {key: [[], []] for key in runs}
    order = np.random.default_rng(0)
    for key in runs:
        for run in runs[key][:2]:
            run()
    for _ in range(rounds):
        for key in order.permutation(list(runs)):
            for place, run in enumerate(runs[key][:2]):
                settle()
                start = time.perf_counter()
                run()
                found[key][place].append(time.perf_counter() - start)
    return {key: np.array(each) for key, each in found.items()}


def _quartiles(ratios: np.ndarray) -> str:
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def missed(found: Mapping[str, Any]) -> list[str]:
    """The bars that fell."""
    bad = []
    for name, one in found.items():
        times = {key: np.array(each) for key, each in one["times"].items()}
        for own, other in PEERS.items():
            if other not in times:
                continue
            for place, what in enumerate(("prompt", "generating")):
                ratio = float(np.median(times[other][place] / times[own][place]))
                if ratio < LEVEL:
                    bad.append(f"{name}, {what}: {own} is {ratio:.2f} of {other}")
        share = one["rows"]["ours W4A8 g32"]["share"]
        if share < SHARE:
            bad.append(f"{name}: W4A8 reaches {share:.2f} of the bandwidth")
        exact = one["rows"].get("llama.cpp F32")
        if exact is not None and exact["error"] > 1e-3:
            bad.append(
                f"{name}: llama.cpp's float32 is another model: {exact['error']}"
            )
    return bad


def main() -> int:
    """Parse the arguments, measure, print; 1 if a bar falls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="the smaller, 3 rounds")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 9)
    pin(args.threads)
    bandwidth = read_bandwidth(args.threads)
    print(
        f"{machine()}, {args.threads} threads, jax {jax.__version__}, "
        f"read {bandwidth / 1e9:.1f} GB/s"
    )
    names = args.sizes or (["100M"] if args.quick else ["100M", "400M"])
    found = {name: measure(name, SIZES[name], args, bandwidth) for name in names}
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "models": found}))
    bad = missed(found)
    for line in bad:
        print(f"missed: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
