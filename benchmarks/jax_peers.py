"""Other libraries for JAX on the CPU: the same networks, the same run.

    pip install '.[peers,test]' neural-compressor-jax
    python benchmarks/jax_peers.py  (--quick: fewer rounds; --json FILE)

A Flax transformer encoder (4 layers, width 384, 6 heads, 64 vectors) and a Keras
network (two convolutions, four dense layers of up to 2048), with random weights, at
batch 1, 8 and 64; and the encoder on one vector an input, as generating has it. All
libraries quantize the weights of the same layers and nothing else, and are compiled the
way their documentation has it. Speeds are plain float32's time in JAX (`jax.jit`) over
the contender's, round by round, each round in another order; errors are those of the
outputs for 64 inputs, relative, by their norms.

Exit code 1 if ours with 8 bits of weights and activations is slower than plain float32
somewhere, or if a peer's 8 bits are faster or more exact (by 0.5 %) than each form of
ours in the same class. What is not installed is named and left out.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import _jax_peers_flax
import _jax_peers_keras
import numpy as np
from _jax_peers import Contender, falls, measure, table
from _timing import Unavailable, machine, pin

PACKAGES = ("jax", "flax", "qwix", "keras", "neural-compressor-jax")
QUICK, FULL = (3, 0.02), (7, 0.05)
"""Rounds, and seconds that each contender is timed in one."""


class Network(NamedTuple):
    """A network and who takes part.

    Attributes:
        title: what it is.
        aims: what the other libraries are made for.
        inputs: so many of its inputs.
        makers: of contenders; the first is plain float32's.
    """

    title: str
    aims: str
    inputs: Callable[[int], np.ndarray]
    makers: Sequence[Callable[[], Iterator[Contender]]]


NETWORKS = {
    "flax": Network(
        "Flax encoder, 7.1 million parameters",
        "qwix is made for TPUs and GPUs: it trains with quantization and serves by "
        "what XLA has for integers, which is fast there; it has no code for CPUs. "
        "JAX keeps its 4-bit integers on CPUs in a byte each.",
        _jax_peers_flax.inputs,
        (_jax_peers_flax.floats, _jax_peers_flax.qwix),
    ),
    "flax, one vector": Network(
        "The same encoder, one vector an input",
        "With a single row XLA multiplies integers on CPUs slower than floats, though "
        "they are a quarter of the bytes.",
        functools.partial(_jax_peers_flax.inputs, length=1),
        (_jax_peers_flax.floats, _jax_peers_flax.qwix),
    ),
    "keras": Network(
        "Keras network, 6.9 million parameters",
        "Keras quantizes by one call, for all its backends alike: models take less "
        "memory everywhere, and less time where the backend multiplies integers fast. "
        "Its 4 bits keep activations in floats. neural-compressor-jax is made for "
        "Intel's Xeon processors with AMX, where XLA joins its rounding and its "
        "products if flags of XLA say so; elsewhere it rounds and multiplies in "
        "floats, as its documentation says. With constants, XLA compiles the float "
        "weights into the program.",
        _jax_peers_keras.inputs,
        (_jax_peers_keras.floats, _jax_peers_keras.own, _jax_peers_keras.intel),
    ),
}


def versions() -> dict[str, str]:
    """Of the packages that are here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def made(network: Network) -> tuple[list[Contender], list[str]]:
    """The contenders, and why others are missing."""
    contenders: list[Contender] = []
    absent = []
    for make in network.makers:
        try:
            contenders += make()
        except Unavailable as error:
            absent.append(str(error))
            if not contenders:
                break  # without floats there is nothing to compare with
    return contenders, absent


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure, print; 1 if a bar falls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    options = parser.parse_args(arguments)
    pin(options.threads)
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{machine()}, {options.threads} threads; {said}")
    rounds, block = QUICK if options.quick else FULL
    rows: list[Any] = []
    for name in options.only:
        network = NETWORKS[name]
        contenders, absent = made(network)
        for reason in absent:
            print(f"left out: {reason}")
        if not contenders:
            continue
        own = []
        for found in measure(
            name,
            contenders,
            network.inputs(max(64, *options.batches)),
            options.batches,
            rounds=rounds,
            block=block,
        ):
            print(f"{name}, batch {found[0].batch}", file=sys.stderr, flush=True)
            own += found
        print(f"\n{network.title}:\n\n{table(own)}\n\n{network.aims}", flush=True)
        rows += own
    fallen = falls(rows)
    if options.json:
        figures = {"machine": machine(), "versions": versions(), "falls": fallen}
        figures["rows"] = [row._asdict() for row in rows]
        options.json.write_text(json.dumps(figures))
    for words in fallen:
        print(f"FALLS: {words}")
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
