"""What the first call costs: tracing, lowering and compiling a text encoder.

    python benchmarks/first_call.py
    python benchmarks/first_call.py --quick --json first_call.json

A Flax encoder of MiniLM-L6's shape with random weights, eight texts of 128 tokens: the
plain function, `fused` of it, and `compressed` of it with weights in W8A8 and W4A8 by
groups. Each is measured in a process of its own, without a cache of compiled programs,
in every round once, in another order each time. A ratio is of two of one round: its
median, and its quartiles in brackets.

Exit code 1 if `compressed` traces in more than twice the time of the plain function, or
if its first call as a whole takes more than 1.5 times as long.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PLAIN, EIGHT = "plain", "compressed W8A8"
NAMES = (PLAIN, "fused", EIGHT, "compressed W4A8 g32")
TRACE, WHOLE = 2.0, 1.5
"""The most that tracing, and the first call, may take of the plain function's."""

Seconds = dict[str, float]


def measure(name: str) -> Seconds:
    """The stages of the first call in this process."""
    import jax

    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
    import minilm_bert

    from jcompress.execution import compressed, fused
    from jcompress.formats import Int
    from jcompress.quantization import (
        Activation,
        PerGroup,
        PerRow,
        Quantize,
        Weights,
        quantize,
    )
    from jcompress.sites import PRODUCTS, find_sites

    apply = minilm_bert.Encoder().apply
    tokens = np.ones((8, 128), np.int32)
    drawn = jax.eval_shape(
        minilm_bert.Encoder().init, jax.random.key(0), tokens, tokens
    )
    normal = np.random.default_rng(0).normal
    tree: Any = jax.tree.map(
        lambda leaf: normal(scale=0.05, size=leaf.shape).astype(np.float32), drawn
    )
    run: Callable[..., Any] = apply
    if name == "fused":
        run = fused(apply)
    elif name != PLAIN:
        eight = Activation(format=Int(8), granularity=PerRow())
        four = Weights(format=Int(4), granularity=PerGroup(32))
        weights = Weights() if name == EIGHT else four
        spec = Quantize(weights=weights, activation=eight)
        rules = [(lambda site: site.operation in PRODUCTS, spec)]
        sites = find_sites(apply, tree, tokens, tokens)
        tree = quantize(tree, rules, sites=sites)
        run = compressed(apply)
    # What finding the shapes and the sites has traced is not to be had for nothing.
    jax.clear_caches()
    tree = jax.block_until_ready(jax.device_put(tree))
    begin = time.perf_counter()
    traced = jax.jit(run).trace(tree, tokens, tokens)
    one = time.perf_counter()
    lowered = traced.lower()
    two = time.perf_counter()
    compiled = lowered.compile()
    three = time.perf_counter()
    jax.block_until_ready(compiled(tree, tokens, tokens))
    end = time.perf_counter()
    return {
        "trace": one - begin,
        "lower": two - one,
        "compile": three - two,
        "run": end - three,
        "all": end - begin,
    }


def apart(name: str) -> Seconds:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", name]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Seconds = json.loads(made.stdout.splitlines()[-1])
    return found


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(low), float(middle), float(high)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return 0
    rounds = options.rounds or (3 if options.quick else 9)
    order = np.random.default_rng(0)
    found: dict[str, list[Seconds]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in map(str, order.permutation(list(NAMES))):
            found[name].append(apart(name))

    @functools.cache
    def ratio(name: str, stage: str) -> tuple[float, float, float]:
        pairs = zip(found[name], found[PLAIN], strict=True)
        return quartiles([mine[stage] / plain[stage] for mine, plain in pairs])

    print(
        f"{'':22}{'trace':>8}{'lower':>8}{'compile':>9}{'run':>8}{'all':>8}   all/plain"
    )
    for name, each in found.items():
        middle = {s: float(np.median([one[s] for one in each])) for s in each[0]}
        cells = "".join(
            f"{middle[stage]:{wide}.2f}"
            for stage, wide in zip(middle, (8, 8, 9, 8, 8), strict=True)
        )
        low, half, high = ratio(name, "all")
        print(f"{name:22}{cells}   {half:.2f} [{low:.2f}, {high:.2f}]")
    faults = [
        f"{EIGHT}: {stage} takes {ratio(EIGHT, stage)[1]:.2f} of the plain function's, "
        f"bar {bar}"
        for stage, bar in (("trace", TRACE), ("all", WHOLE))
        if ratio(EIGHT, stage)[1] > bar
    ]
    print("\n".join(faults) or "both bars hold")
    if options.json is not None:
        options.json.write_text(json.dumps({"seconds": found, "missed": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
