"""Put a dense and a compressed tree of one function side by side, in one call."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jcompress.execution import compressed
from jcompress.report.measure import (
    latency,
    nonzero,
    parameters,
    stored_bytes,
)
from jcompress.report.table import Comparison, Facts
from jcompress.sites import find_sites


def compare(
    fn: Callable[..., Any],
    dense: Any,
    small: Any,
    *,
    accuracy: Callable[[Callable[..., Any], Any], float],
    inputs: Mapping[int, Sequence[tuple[Any, ...]]],
    rounds: int = 31,
) -> Comparison:
    """Measure a function on its dense tree and on a compressed one.

    Args:
        fn: the function of both trees, such as `model.apply`.
        dense: the tree before compression.
        small: the tree after it, with compressed leaves.
        accuracy: called with a jitted function and its tree, once for each; gives the
            fraction of test examples that it gets right.
        inputs: by batch size, at least two sets of the arguments that follow the tree;
            `latency` rotates them. Multiplications are those of the smallest batch,
            for one example.
        rounds: rounds of timing.

    Returns:
        The comparison; `print` shows the table.

    Raises:
        ValueError: `small` has no compressed leaf, or `latency` cannot use `inputs`.
    """
    runs = {
        "dense": (jax.jit(fn), dense),
        "compressed": (jax.jit(compressed(fn)), small),
    }
    least = min(inputs)
    facts = {
        name: Facts(
            accuracy=accuracy(run, tree),
            bytes=stored_bytes(tree),
            parameters=parameters(tree),
            nonzero=nonzero(tree),
            macs=find_sites(fn, tree, *inputs[least][0]).macs // least,
        )
        for name, (run, tree) in runs.items()
    }
    timed = {name: functools.partial(run, tree) for name, (run, tree) in runs.items()}
    times = {
        size: latency(timed, given, rounds=rounds) for size, given in inputs.items()
    }
    return Comparison(**facts, latency=times)
