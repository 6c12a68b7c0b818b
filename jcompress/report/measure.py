"""Sizes of a tree, and latencies of functions measured side by side."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.leaves import named_leaves
from jcompress.sites import Sites
from jcompress.tensors import is_compressed


def stored_bytes(tree: Any) -> int:
    """Bytes of all the arrays of a tree, as they lie in memory and on disk."""
    return sum(
        leaf.stored_bytes if is_compressed(leaf) else np.asarray(leaf).nbytes
        for _, leaf in named_leaves(tree)
    )


def parameters(tree: Any) -> int:
    """Number of elements of the dense arrays that the leaves of a tree stand for."""
    return sum(int(np.prod(np.shape(leaf))) for _, leaf in named_leaves(tree))


def nonzero(tree: Any, *, sites: Sites | None = None) -> int:
    """Number of elements other than zero in the dense arrays of a tree.

    Args:
        tree: parameters; compressed leaves are made dense one at a time.
        sites: if given, only weights of products and lookups are counted, not biases,
            scales and statistics.
    """
    names = None if sites is None else set(sites.weights)
    return sum(
        int(np.count_nonzero(leaf.dense() if is_compressed(leaf) else leaf))
        for name, leaf in named_leaves(tree)
        if names is None or name in names
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """The middle of repeated measurements and how far they scatter.

    Attributes:
        low: the first quartile.
        median: the median.
        high: the third quartile.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The quartiles of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low=low, median=median, high=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """What `latency` measured.

    Attributes:
        seconds: time of one call of each function, by its name; each list holds one
            value a round, and the values of one round were taken side by side.
        baseline: the name of the function that the others are compared with.
    """

    seconds: Mapping[str, tuple[float, ...]]
    baseline: str

    def time(self, name: str) -> Spread:
        """Seconds of one call."""
        return Spread.of(self.seconds[name])

    def ratio(self, name: str) -> Spread:
        """Time over the baseline's time of the same round; below 1 is faster."""
        pairs = zip(self.seconds[name], self.seconds[self.baseline], strict=True)
        return Spread.of([mine / base for mine, base in pairs])


def latency(
    fns: Mapping[str, Callable[..., Any]],
    inputs: Sequence[tuple[Any, ...]],
    *,
    rounds: int = 31,
    sample_seconds: float = 2e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time functions against each other, interleaved, on rotating inputs.

    Each round times every function once, in an order that alternates from round to
    round, so that a machine that slows down does so for all. A sample repeats short
    calls until it lasts `sample_seconds`, each on the next of `inputs`, and waits for
    the last result. Compilation happens before the first round.

    Args:
        fns: functions by name, the baseline first; jitted if that is what is meant.
        inputs: at least two sets of arguments, handed to every function in turn. They
            may not be all zeros: some libraries and processors are faster on zeros.
        rounds: number of rounds, at least 5.
        sample_seconds: least duration of a sample.
        clock: gives the time in seconds.

    Returns:
        The times; the first function is the baseline.

    Raises:
        ValueError: fewer than two functions, inputs or five rounds; inputs that are
            all zeros.
    """
    _check(fns, inputs, rounds)
    calls = {}
    for name, fn in fns.items():
        for arguments in inputs:
            jax.block_until_ready(fn(*arguments))
        once = _sample(fn, inputs, 0, len(inputs), clock)
        calls[name] = max(1, round(sample_seconds / max(once, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(rounds):
        order = list(fns) if turn % 2 == 0 else list(fns)[::-1]
        for name in order:
            seconds[name].append(_sample(fns[name], inputs, turn, calls[name], clock))
    return Latency(
        seconds={name: tuple(values) for name, values in seconds.items()},
        baseline=next(iter(fns)),
    )


def random_inputs(
    like: Any, *, count: int = 4, key: jax.Array | None = None
) -> list[tuple[Any, ...]]:
    """Fresh random arguments for `latency`.

    Args:
        like: a tuple of arguments whose arrays give shape and dtype: floats become
            uniform in [0, 1), integers are permuted along their first axis.
        count: how many sets.
        key: a random key; by default one of a fixed seed.
    """
    keys = jax.random.split(jax.random.key(0) if key is None else key, count)

    def fresh(key: jax.Array, leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.random.uniform(key, leaf.shape, leaf.dtype)
        return jax.random.permutation(key, leaf)

    leaves, structure = jax.tree.flatten(like)
    return [
        jax.tree.unflatten(
            structure,
            [
                fresh(part, leaf)
                for part, leaf in zip(
                    jax.random.split(key, len(leaves)), leaves, strict=True
                )
            ],
        )
        for key in keys
    ]


def _sample(
    fn: Callable[..., Any],
    inputs: Sequence[tuple[Any, ...]],
    start: int,
    calls: int,
    clock: Callable[[], float],
) -> float:
    began = clock()
    for call in range(calls):
        result = fn(*inputs[(start + call) % len(inputs)])
        jax.block_until_ready(result)
    return (clock() - began) / calls


def _check(
    fns: Mapping[str, Callable[..., Any]],
    inputs: Sequence[tuple[Any, ...]],
    rounds: int,
) -> None:
    if len(fns) < 2:
        raise ValueError(
            f"latency: a time means something beside another one; got {list(fns)}"
        )
    if len(inputs) < 2:
        raise ValueError(
            f"latency: give at least two sets of arguments to rotate; got {len(inputs)}"
        )
    if rounds < 5:
        raise ValueError(f"latency: at least 5 rounds show a spread, not {rounds}")
    for index, arguments in enumerate(inputs):
        if not isinstance(arguments, tuple):
            raise ValueError(
                f"latency: inputs[{index}] is a {type(arguments).__name__}; each is a "
                "tuple of arguments, (x,) for one"
            )
        arrays = [x for x in jax.tree.leaves(arguments) if hasattr(x, "dtype")]
        if arrays and not any(np.any(np.asarray(x)) for x in arrays):
            raise ValueError(
                f"latency: inputs[{index}] is all zeros; time with real or random data"
            )
