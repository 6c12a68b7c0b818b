"""Latencies of functions, measured side by side."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.report.programs import Jitted

Variant = tuple[Callable[..., Any], Any]
"""A function and its parameters: `fn(params, *arguments)` is what is run."""


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
    fns: Mapping[str, Callable[..., Any] | Variant],
    inputs: Sequence[tuple[Any, ...]],
    *,
    jit: bool = True,
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
        fns: by name, the baseline first, each a function and its parameters,
            `(fn, params)`, or a function of `inputs` alone. Parameters that a function
            holds instead (a closure, `functools.partial`) are constants of the
            compiled program, and the compiler may compute with them beforehand.
        inputs: at least two sets of arguments, handed to every function in turn, after
            the parameters. They may not be all zeros: some libraries and processors
            are faster on zeros.
        jit: compile each function; False times it as it is, operation by operation
            unless it is jitted.
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
    ready = {name: _bound(fn, inputs, jit) for name, fn in fns.items()}
    calls = {}
    for name, run in ready.items():
        for call in run:
            jax.block_until_ready(call())
        once = _sample(run, 0, len(inputs), clock)
        calls[name] = max(1, round(sample_seconds / max(once, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(rounds):
        order = list(fns) if turn % 2 == 0 else list(fns)[::-1]
        for name in order:
            seconds[name].append(_sample(ready[name], turn, calls[name], clock))
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
            uniform in [0, 1), random keys become others, integers and booleans are
            permuted along their first axis. What is no array stays as it is.
        count: how many sets.
        key: a random key; by default one of a fixed seed.
    """
    keys = jax.random.split(jax.random.key(0) if key is None else key, count)

    def fresh(key: jax.Array, leaf: Any) -> Any:
        if not hasattr(leaf, "dtype"):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = jax.random.bits(key, jax.random.key_data(leaf).shape, "uint32")
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
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


def _bound(
    fn: Callable[..., Any] | Variant, inputs: Sequence[tuple[Any, ...]], jit: bool
) -> list[Callable[[], Any]]:
    """One call for each set of arguments."""
    run, first = (fn[0], fn[1:]) if isinstance(fn, tuple) else (fn, ())
    if not jit:
        return [functools.partial(run, *first, *arguments) for arguments in inputs]
    # What was compiled already, to be looked at, is not compiled again.
    compiled = run if isinstance(run, Jitted) else Jitted(run)
    return [compiled.bind(*first, *arguments) for arguments in inputs]


def _sample(
    run: Sequence[Callable[[], Any]],
    start: int,
    calls: int,
    clock: Callable[[], float],
) -> float:
    began = clock()
    for call in range(calls):
        result = run[(start + call) % len(run)]()
        jax.block_until_ready(result)
    return (clock() - began) / calls


def _check(
    fns: Mapping[str, Callable[..., Any] | Variant],
    inputs: Sequence[tuple[Any, ...]],
    rounds: int,
) -> None:
    for name, fn in fns.items():
        if isinstance(fn, tuple) and not (len(fn) == 2 and callable(fn[0])):
            raise ValueError(
                f"latency: {name!r} is a tuple of {len(fn)}, not (fn, params)"
            )
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
        arrays = [
            x
            for x in jax.tree.leaves(arguments)
            if hasattr(x, "dtype") and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        ]
        if arrays and not any(np.any(np.asarray(x)) for x in arrays):
            raise ValueError(
                f"latency: inputs[{index}] is all zeros; time with real or random data"
            )
