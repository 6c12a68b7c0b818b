"""Time an update of masks: which of 25 million weights stay, at 90 % removed.

    python benchmarks/mask_update.py
    python benchmarks/mask_update.py --quick --json masks.json

Eight leaves of normal weights, scored by magnitude and ranked per leaf and all together
(global), as `make_masks` does it on the host, in a jitted program, and within a whole
jitted `prune` step of SGD. Beside them a sort of all scores, the shortest way to write
it. Times are medians over the rounds; memory is what is taken beside arguments and
results, in copies of the scores: of a program as the compiler accounts for it, on the
host as tracemalloc does. Exit code 1 if an update of masks takes more than a second or
more than one extra copy (and 8 MiB), or if a mask differs from that of the sort.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import machine

from jcompress.allocation import Ranking
from jcompress.pruning import Prune, Unstructured, make_masks, prune
from jcompress.pruning.scores import score_by_magnitude
from jcompress.sites import Sites, find_sites

LEAVES, SIDE, SPARSITY = 8, 1768, 0.9
MOST_SECONDS, MOST_COPIES, SLACK = 1.0, 1.0, 8 * 2**20

Tree = dict[str, jax.Array]


class Row(NamedTuple):
    """What was measured of one way.

    Attributes:
        ranking: per leaf or all together.
        way: how the masks are made.
        seconds: the median of the rounds.
        copies: extra memory in copies of the scores; None if it is not known.
        bars: whether time and memory must keep to the bars.
    """

    ranking: str
    way: str
    seconds: float
    copies: float | None
    bars: bool

    @property
    def good(self) -> bool:
        """Whether the bars hold."""
        slack = SLACK / (LEAVES * SIDE**2 * 4)
        return not self.bars or (
            self.seconds <= MOST_SECONDS
            and (self.copies is None or self.copies <= MOST_COPIES + slack)
        )


def chain(params: Tree, x: jax.Array) -> jax.Array:
    """A function with a product for each leaf."""
    for leaf in params.values():
        x = x @ leaf
    return x


def timed(run: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """The last result, and the median of the seconds of some rounds."""
    seconds = []
    out = jax.block_until_ready(run())
    for _ in range(rounds):
        start = time.perf_counter()
        out = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return out, statistics.median(seconds)


def taken(program: Any) -> float:
    """The bytes that a compiled program takes beside its arguments and results."""
    return float(program.memory_analysis().temp_size_in_bytes)


def sort_all(params: Tree) -> Tree:
    """Masks by sorting all scores together; of equal ones the first goes."""
    line = jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in params.values()])
    order = jnp.argsort(line, stable=True)
    kept = (
        jnp.ones(line.shape, bool).at[order[: round(SPARSITY * line.size)]].set(False)
    )
    parts = jnp.split(kept, LEAVES)
    return {
        name: part.reshape(SIDE, SIDE) for name, part in zip(params, parts, strict=True)
    }


def measured(params: Tree, sites: Sites, ranking: Ranking, rounds: int) -> Any:
    """The rows of a ranking, and its masks."""
    size = sum(leaf.nbytes for leaf in params.values())
    spec = Prune(pattern=Unstructured(), sparsity=SPARSITY, ranking=ranking)
    rules = [(..., spec)]

    def masks(params: Tree) -> Any:
        return make_masks(score_by_magnitude(params), rules, sites=sites)

    program = jax.jit(masks).lower(params).compile()
    made, seconds = timed(lambda: program(params), rounds)
    extra = taken(program) / size
    rows = [Row(ranking.value, "jitted", seconds, extra, True)]

    scores = score_by_magnitude(params)
    host, seconds = timed(lambda: make_masks(scores, rules, sites=sites), rounds)
    tracemalloc.start()
    make_masks(scores, rules, sites=sites)
    # The masks themselves are results; a Boolean is a quarter of a score.
    extra = max(0.0, tracemalloc.get_traced_memory()[1] / size - 0.25)
    tracemalloc.stop()
    rows.append(Row(ranking.value, "on the host", seconds, extra, True))

    risen = [(..., Prune(
        pattern=Unstructured(), sparsity=optax.constant_schedule(SPARSITY),
        ranking=ranking,
    ))]  # fmt: skip
    optimizer = prune(optax.sgd(0.1), risen, sites=sites)
    state = jax.jit(optimizer.init)(params)
    step = jax.jit(optimizer.update).lower(params, state, params).compile()
    (_, after), seconds = timed(lambda: step(params, state, params), rounds)
    rows.append(Row(ranking.value, "a step of prune", seconds, None, True))
    for name, mask in made.items():
        if not np.array_equal(mask, host[name]):
            sys.exit(f"{ranking}: masks of {name} differ from those of the program")
        # A schedule is multiplied in float32, which lacks odd numbers from 2^24 on.
        if np.count_nonzero(mask != after.masks[name]) > 4:
            sys.exit(f"{ranking}: masks of {name} differ from those of prune")
    return rows, made


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no sort")
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    options = parser.parse_args()
    rounds = 3 if options.quick else 9
    rng = np.random.default_rng(0)
    params = {
        f"w{n}": jnp.asarray(rng.normal(size=(SIDE, SIDE)), jnp.float32)
        for n in range(LEAVES)
    }
    sites = find_sites(chain, params, jnp.ones((1, SIDE)))
    print(f"{machine()}; {LEAVES * SIDE**2:,} weights, {SPARSITY:.0%} removed")
    rows: list[Row] = []
    for ranking in (Ranking.GLOBAL, Ranking.UNIFORM):
        found, made = measured(params, sites, ranking, rounds)
        rows += found
        if ranking is Ranking.GLOBAL and not options.quick:
            program = jax.jit(sort_all).lower(params).compile()
            wanted, seconds = timed(functools.partial(program, params), 1)
            size = LEAVES * SIDE**2 * 4
            extra = taken(program) / size
            rows.append(Row("global", "a sort of all", seconds, extra, False))
            if not all(np.array_equal(made[name], wanted[name]) for name in made):
                sys.exit("global: masks differ from those of the sort")
    for row in rows:
        copies = "" if row.copies is None else f"  {row.copies:5.2f} extra copies"
        verdict = "" if row.good else "  MISSED"
        print(f"{row.ranking:8} {row.way:16} {row.seconds:7.3f} s{copies}{verdict}")
    if options.json is not None:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    if not all(row.good for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
