"""Rows of pruning while a network learns Fashion-MNIST, by many methods."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from _bench import Log, Row
from _pruning_network import Data, accuracy, init, load
from _pruning_one_shot import DENSE, LEVELS
from _pruning_trained import METHODS, Run, dense

from jcompress.pruning import NM, Unstructured
from jcompress.report import stored_bytes

NAME = "Fashion-MNIST"
QUICK = ("90 %", "95 %", "2:4")
COUNTS = {True: (4_000, 300), False: (20_000, 1_000)}
"""Images and steps to learn with, if quick and if not; all methods have the same."""
FOR_NM = ("once, magnitude", "gradual, magnitude", "sr-ste")


class Images:
    """The data, and how long the network learns."""

    def __init__(self, log: Log, quick: bool, wanted: Callable[[str, str], bool]):
        self._log, self._wanted = log, wanted
        self._levels = QUICK if quick else tuple(LEVELS)
        count, self._steps = COUNTS[quick]
        self._data: Data = load(count)

    def rows(self, seed: int) -> None:
        """Those of all methods with one seed, but for those that are in the log."""
        key = jax.random.key(seed)
        start = init(jax.random.fold_in(key, 1))
        for level in (DENSE, *self._levels):
            pattern, sparsity = LEVELS.get(level, (Unstructured(), 0.0))
            methods: Mapping[str, Callable[[Run], Any]] = METHODS
            if level == DENSE:
                methods = {DENSE: dense}
            for name, method in methods.items():
                if isinstance(pattern, NM) and name not in FOR_NM:
                    continue
                known = self._log.has(NAME, "training", level, name, seed)
                if known or not self._wanted(level, name):
                    continue
                run = Run(self._data, self._steps, start, key, pattern, sparsity)
                began = time.perf_counter()
                params = jax.block_until_ready(method(run))
                spent = time.perf_counter() - began
                row = Row(
                    *(NAME, "training", level, name, seed),
                    score=accuracy(params, self._data.test),
                    error=None,
                    stored=stored_bytes(params),
                    seconds=spent,
                    extra={"zeros": check(params, run.final)},
                )
                self._log.add(row)


def check(params: Any, asked: float) -> float:
    """The share of zeros in what is pruned; it must be what was asked for."""
    pruned = [params[name]["w"] for name in ("conv2", "hidden")]
    zeros = sum(int(jnp.sum(leaf == 0)) for leaf in pruned)
    share = float(zeros / sum(leaf.size for leaf in pruned))
    if share < asked - 0.002:
        raise AssertionError(f"{share:.4f} zeros, not {asked}")
    return share
