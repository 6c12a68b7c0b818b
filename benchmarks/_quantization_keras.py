"""A Keras model on JAX: ours, Keras' own `quantize`, and neural-compressor-jax.

All sides start from the same weights; the batches are timed in turn, compiled.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _quantization_keras_makers import (
    LENGTH,
    WORDS,
    Made,
    Run,
    build,
    function,
    intel,
    keras,
    ours,
    own,
)
from _timing import Unavailable, settle

from jcompress.report import aligned, stored_bytes

ERRORS, BYTES = 1.005, 1.02


class Row(NamedTuple):
    """One way to store the model.

    Attributes:
        kind: what it is compared with: rows of one kind have the same bits.
        error: of the outputs, relative to those of the float model, by their norms.
        seconds: of making it.
        times: seconds of a batch in each round.
        ratios: the quartiles of `times` over those of the float model.
    """

    kind: str
    name: str
    ours: bool
    error: float
    bytes: int
    seconds: float
    times: list[float]
    ratios: tuple[float, float, float]


def run(*, quick: bool) -> tuple[list[Row], list[str]]:
    """Make all, compare their outputs, and time them in random order."""
    try:
        library = keras()
    except Unavailable as error:
        return [], [str(error)]
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, WORDS + 1)
    draw = rng.choice(WORDS, (64 + 64, LENGTH), p=share / share.sum())
    tokens = draw.astype(np.int32)
    seen, judged = tokens[:64], jnp.asarray(tokens[64:])
    fn, variables = function(build(library))
    dense = jax.jit(fn)
    exact = np.asarray(dense(variables, judged))
    float_run: Run = lambda tokens: dense(variables, tokens)  # noqa: E731
    made = {("float32", "Keras"): Made(float_run, stored_bytes(variables), 0.0)}
    absent = []
    for offer in (ours, intel, own):
        try:
            for key, make in offer(library, seen).items():
                print(", ".join(key), "...", file=sys.stderr, flush=True)
                try:
                    made[key] = make()
                except Exception as error:
                    if offer is ours:
                        raise
                    reason = f"{type(error).__name__}: {error}"[:200]
                    absent.append(f"{key[1]}, {key[0]}, raises {reason}")
        except Unavailable as error:
            absent.append(str(error))
    times = _times(made, judged, 10 if quick else 60)
    base = np.array(times["float32", "Keras"])
    rows = []
    for key, one in made.items():
        found = np.asarray(one.run(judged))
        off = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        low, middle, high = np.percentile(np.array(times[key]) / base, (25, 50, 75))
        quartiles = float(low), float(middle), float(high)
        mine = key[1].startswith("jcompress")
        rows.append(Row(*key, mine, off, one.bytes, one.seconds, times[key], quartiles))
    return rows, absent


def _times(
    made: dict[tuple[str, str], Made], tokens: Any, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds of a batch: one call of each a round, in another order each time."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in made}
    order, keys = np.random.default_rng(0), list(made)
    for number in range(rounds + 1):
        for place in order.permutation(len(keys)):
            settle()
            begin = time.perf_counter()
            jax.block_until_ready(made[keys[place]].run(tokens))
            if number:
                times[keys[place]].append(time.perf_counter() - begin)
    return times


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines: list[tuple[str, ...]] = [
        ("kind", "by", "error", "bytes", "s to make", "time of float32's")
    ]
    for row in rows:
        low, middle, high = row.ratios
        lines.append(
            (
                row.kind,
                row.name,
                f"{row.error:.4f}",
                f"{row.bytes:,}",
                f"{row.seconds:.1f}",
                f"{middle:.2f} ({low:.2f} to {high:.2f})",
            )
        )
    return str(aligned(lines, right=(2, 3, 4, 5)))


def falls(rows: Sequence[Row]) -> list[str]:
    """Each of ours that errs more than a peer, or stores more."""
    found = []
    for row in (row for row in rows if row.ours):
        for peer in (p for p in rows if not p.ours and p.kind == row.kind):
            if row.error > ERRORS * peer.error:
                words = f"error {row.error:.5f}, {peer.name} {peer.error:.5f}"
                found.append(f"{row.name}, {row.kind}: {words}")
            if row.bytes > BYTES * peer.bytes:
                words = f"{row.bytes:,} bytes, {peer.name} {peer.bytes:,}"
                found.append(f"{row.name}, {row.kind}: {words}")
    return found
