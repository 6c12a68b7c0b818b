"""What the comparison with other JAX libraries measures, and how it judges.

A contender is one library's form of one network. All get the same inputs in the same
run, and are judged within their class only: 8 bits of weights and activations beside
the same, and likewise of weights alone.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from _timing import settle

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
from jcompress.report import stored_bytes
from jcompress.rules import Rules
from jcompress.sites import find_sites

BASE, OURS = "JAX float32", "ours"
FLOAT, BOTH, ALONE, FOUR = "float32", "W8A8", "W8", "4 bits"
"""Classes: floats, 8 bits of both, 8 bits of weights alone, 4 bits of weights."""
ERRORS = 1.005
"""How often a peer's error ours may be: what the choice of inputs changes."""
WARM = 0.2
"""Seconds above which a call is its own warm-up."""


class Contender(NamedTuple):
    """One form of a network.

    Attributes:
        name: for the tables.
        kind: the class in which it is judged.
        run: compiled, of inputs float32 [B, ...].
        bytes: of all that it stores.
    """

    name: str
    kind: str
    run: Callable[[Any], Any]
    bytes: int


class Row(NamedTuple):
    """One contender at one batch size.

    Attributes:
        error: of the outputs, relative to those of plain float32, by their norms.
        milliseconds: of a call, the median of the rounds.
        speed: quartiles of plain float32's time over its own, round by round.
        rounds: seconds of a call in each round.
    """

    network: str
    name: str
    kind: str
    batch: int
    bytes: int
    error: float
    milliseconds: float
    speed: tuple[float, float, float]
    rounds: list[float]


def specs() -> Mapping[tuple[str, str], Quantize]:
    """What ours does with the weights that all libraries quantize, by name and class.

    Activations have a scale a row, taken as they come. Zero points spend all numbers on
    what a ReLU leaves; as weights of 4 bits in groups of 128 they are Keras' own form.
    """
    eight = Activation(format=Int(8), granularity=PerRow())
    shifted = Activation(format=Int(8, symmetric=False), granularity=PerRow())
    four = Weights(format=Int(4, full=True), granularity=PerGroup(32))
    alone = Weights(format=Int(4, symmetric=False), granularity=PerGroup(128))
    return {
        (f"{OURS} W8", ALONE): Quantize(),
        (f"{OURS} W8A8", BOTH): Quantize(activation=eight),
        (f"{OURS} W8A8, zero points", BOTH): Quantize(activation=shifted),
        (f"{OURS} W4A8 g32", FOUR): Quantize(weights=four, activation=eight),
        (f"{OURS} W4 g128, zero points", FOUR): Quantize(weights=alone),
    }


def jitted(fn: Callable[..., Any], tree: Any, name: str, kind: str) -> Contender:
    """A function of a tree and inputs, compiled, with its weights as arguments."""
    call = jax.jit(fn)
    return Contender(name, kind, lambda x: call(tree, x), stored_bytes(tree))


def floats_and_ours(
    fn: Callable[..., Any], tree: Any, example: Any, where: Any
) -> Iterator[Contender]:
    """Plain float32, `fused` where it finds something, and ours.

    Args:
        fn: of the tree and inputs.
        tree: the float variables.
        example: inputs [B, ...].
        where: matches the weights that are quantized, as rules have it.
    """
    yield jitted(fn, tree, BASE, FLOAT)
    yield jitted(fused(fn), tree, f"{OURS} fused float32", FLOAT)
    sites = find_sites(fn, tree, example)
    for (name, kind), spec in specs().items():
        rules: Rules[Quantize] = [(where, spec)]
        small = quantize(tree, rules, sites=sites)
        yield jitted(compressed(fn), small, name, kind)


def measure(
    network: str,
    contenders: Sequence[Contender],
    inputs: np.ndarray,
    batches: Sequence[int],
    *,
    rounds: int,
    block: float,
) -> Iterator[list[Row]]:
    """The rows of each batch size; every round times all, in another order each time.

    Args:
        network: its name.
        contenders: plain float32 first.
        inputs: float32 [N, ...], of which batches are taken in turn.
        batches: their sizes, at most N.
        rounds: how often each contender is timed.
        block: seconds that one is timed in a round, at least one call.
    """
    whole = inputs[: max(batches)]
    exact = np.asarray(contenders[0].run(whole))
    errors = {
        one.name: float(
            np.linalg.norm(np.asarray(one.run(whole)) - exact) / np.linalg.norm(exact)
        )
        for one in contenders
    }
    for size in batches:
        count = len(inputs) // size
        given = [jax.numpy.asarray(inputs[i * size :][:size]) for i in range(count)]
        times = _times(contenders, given, rounds, block)
        base = np.array(times[BASE])
        rows = []
        for one in contenders:
            own = np.array(times[one.name])
            low, middle, high = map(float, np.percentile(base / own, (25, 50, 75)))
            rows.append(
                Row(
                    network,
                    one.name,
                    one.kind,
                    size,
                    one.bytes,
                    errors[one.name],
                    float(np.median(own)) * 1e3,
                    (low, middle, high),
                    times[one.name],
                )
            )
        yield rows


def _times(
    contenders: Sequence[Contender], given: Sequence[Any], rounds: int, block: float
) -> dict[str, list[float]]:
    """Seconds of a call, by contender and round: the median of a block of calls."""
    calls = {}
    for one in contenders:
        jax.block_until_ready(one.run(given[0]))
        begin = time.perf_counter()
        jax.block_until_ready(one.run(given[0]))
        calls[one.name] = math.ceil(block / (time.perf_counter() - begin))
    found: dict[str, list[float]] = {one.name: [] for one in contenders}
    order, last = np.random.default_rng(0), 0
    for _ in range(rounds):
        for place in order.permutation(len(contenders)):
            one = contenders[place]
            settle()
            if calls[one.name] > math.ceil(block / WARM):
                jax.block_until_ready(one.run(given[0]))
            spent = []
            for _ in range(calls[one.name]):
                last = (last + 1) % len(given)
                begin = time.perf_counter()
                jax.block_until_ready(one.run(given[last]))
                spent.append(time.perf_counter() - begin)
            found[one.name].append(float(np.median(spent)))
    return found


def falls(rows: Sequence[Row]) -> list[str]:
    """Where ours is slower than float32, or no form of it beats a peer's 8 bits.

    A form beats a peer that is neither faster nor, by `ERRORS`, more exact.
    """
    found = []
    for row in rows:
        where = f"{row.network}, batch {row.batch}, {row.name}"
        if _mine(row):
            if row.kind == BOTH and row.speed[1] < 1:
                found.append(f"{where}: {row.speed[1]:.2f} of float32's speed")
            continue
        if row.kind not in (BOTH, ALONE):
            continue
        alike = (row.network, row.batch, row.kind)
        own = [
            one
            for one in rows
            if _mine(one) and (one.network, one.batch, one.kind) == alike
        ]
        if not any(_beats(one, row) for one in own):
            words = ", ".join(
                f"{one.name} {one.speed[1]:.2f} with error {one.error:.5f}"
                for one in (row, *own)
            )
            found.append(f"{where} is not beaten: {words}")
    return found


def _mine(row: Row) -> bool:
    return row.name.startswith(OURS)


def _beats(one: Row, peer: Row) -> bool:
    return one.speed[1] >= peer.speed[1] and one.error <= ERRORS * peer.error


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a contender, with its speeds at each batch size."""
    batches = list(dict.fromkeys(row.batch for row in rows))
    base = {row.batch: row.milliseconds for row in rows if row.name == BASE}
    heads = [f"batch {size} ({base[size]:.2f} ms)" for size in batches]
    lines = [
        f"| | MB | error | {' | '.join(heads)} |",
        "|---" * (3 + len(batches)) + "|",
    ]
    for name in dict.fromkeys(row.name for row in rows):
        mine = [row for row in rows if row.name == name]
        speeds = " | ".join(
            f"{row.speed[1]:.2f} ({row.speed[0]:.2f} to {row.speed[2]:.2f})"
            for row in mine
        )
        size, error = mine[0].bytes / 1e6, mine[0].error
        said = f"{error:.4f}" if error > 1e-4 else f"{error:.0e}"
        lines.append(f"| {name} | {size:.1f} | {said} | {speeds} |")
    return "\n".join(lines)
