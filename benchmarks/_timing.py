"""Time products side by side: one clock, one run, cold weights, random order.

A product is timed in blocks. Each round gives every contender one block, in another
order each time; a block sleeps until the threads of the contender before no longer
spin, calls once without the clock (so that its own threads are awake), then times calls
that each take the next of several weights. All weights of a contender together exceed
the last-level cache four times, so every call reads its weight from memory, as the
layers of a model do.
"""

import concurrent.futures
import functools
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

SETTLE = 0.008
"""Least seconds of sleep before a block."""
SPIN, WAIT = 0.1, 0.5
"""Below so much of a core the threads of the contender before no longer spin (those of
OpenMP do so for milliseconds, llama.cpp's for up to 100), and the most seconds that are
waited for that."""


class Unavailable(Exception):
    """A contender cannot run here; the message says what it needs."""


class Product(Protocol):
    """A library's way to multiply by weights of one shape.

    Attributes:
        name: for the tables.
        kind: "xla", "peer" or "ours".
        bits: bits of a stored weight, scales aside.
        activations: bits of the inputs as multiplied: 32, 16, or 8 if it rounds them.
        bytes: of one weight as stored, scales included.
        sets: how many weights `bind` rotates.
        stands_for: gives float64 [N, K], what the stored numbers of a weight mean.
        tolerance: relative error (of the norm) that its arithmetic may add.
    """

    name: str
    kind: str
    bits: int
    activations: int
    bytes: int
    sets: int
    stands_for: Callable[[], np.ndarray]
    tolerance: float

    def bind(self, x: np.ndarray) -> Callable[[int], Any]:
        """The call for inputs [M, K]: takes a weight's number, returns when done."""

    def read(self, out: Any) -> np.ndarray:
        """What a call returned, as a numpy array [M, N]."""


Offer = tuple[str, Callable[[], Product]]
"""A contender's name, and what makes it: only those wanted take memory and time."""


def offer(kind: Callable[..., Product], name: str, *args: Any, **kwargs: Any) -> Offer:
    """A contender to be made later; its name is the first argument of `kind`."""
    return name, functools.partial(kind, name, *args, **kwargs)


def cache_bytes() -> int:
    """Size of the last-level cache that the kernel reports; 32 MiB if it does not."""
    sizes = [
        path.read_text().strip()
        for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")
    ]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(s[:-1]) * units[s[-1]] for s in sizes if s), default=32 << 20)


_rotation = {"caches": 4}


def stay_cached() -> None:
    """From now on a contender has one weight, which stays in the cache if it fits."""
    _rotation["caches"] = 0


def sets_of(weight_bytes: int) -> int:
    """How many weights of a size exceed the last-level cache four times, at least two.

    Four, because cores may have a cache of that size each, and no cache forgets quite
    in the order of use. One after `stay_cached`.
    """
    if not _rotation["caches"]:
        return 1
    return max(2, -(-_rotation["caches"] * cache_bytes() // weight_bytes))


def pin(threads: int) -> None:
    """Keep this process on so many cores; call before a library starts its threads.

    Raises:
        Unavailable: there are fewer cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise Unavailable(f"{threads} threads asked for, {len(cores)} cores here")
    os.sched_setaffinity(0, cores[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)


def check(product: Product, inputs: Sequence[np.ndarray]) -> float:
    """The largest relative error of a product's first and last weight.

    Args:
        product: the contender.
        inputs: float32 [M, K], with the numbers of rows to look at.

    Raises:
        ArithmeticError: it exceeds what the product's arithmetic explains.
    """
    dense, worst = product.stands_for(), 0.0
    for x in inputs:
        exact = x.astype(np.float64) @ dense.T
        call = product.bind(x)
        for number in (0, product.sets - 1):
            difference = np.linalg.norm(product.read(call(number)) - exact)
            error = float(difference / np.linalg.norm(exact))
            if not error <= product.tolerance:
                raise ArithmeticError(
                    f"{product.name}: relative error {error:.2g} at {x.shape[0]} rows, "
                    f"allowed {product.tolerance:.2g}; what is wrong is not timed"
                )
            worst = max(worst, error)
    return worst


def settle() -> None:
    """Sleep until this process does nothing: threads may still spin for more work."""
    end = time.perf_counter() + WAIT
    busy = True
    while busy and time.perf_counter() < end:
        before = time.process_time()
        time.sleep(SETTLE)
        busy = time.process_time() - before > SPIN * SETTLE


class Times(NamedTuple):
    """Seconds of a call in each block of one contender.

    Attributes:
        median: the block's median call.
        least: the block's fastest call, which a disturbed machine leaves standing.
    """

    median: list[float]
    least: list[float]


def measure(
    products: Sequence[Product],
    x: np.ndarray,
    *,
    rounds: int,
    block: float,
    seed: int = 0,
) -> dict[str, Times]:
    """Time every product, by name; one block a round.

    Args:
        products: the contenders.
        x: float32 [M, K].
        rounds: how many blocks each gets.
        block: seconds that a block lasts, about; at least two calls.
        seed: of the order.
    """
    turns = {product.name: _Turn(product, x, block) for product in products}
    times = {name: Times([], []) for name in turns}
    order = np.random.default_rng(seed)
    for _ in range(rounds):
        for name in order.permutation(list(turns)):
            calls = turns[name].block()
            times[name].median.append(float(np.median(calls)))
            times[name].least.append(min(calls))
    return times


class _Turn:
    """One contender's place in the rotation of its weights."""

    def __init__(self, product: Product, x: np.ndarray, block: float) -> None:
        self._call, self._sets = product.bind(x), product.sets
        self._next = 0
        self._one()
        least = max(min(self._one() for _ in range(2)), 1e-6)
        self._calls = int(min(max(block / least, 2), 1000))

    def block(self) -> list[float]:
        """Seconds of each call of a block."""
        settle()
        self._one()
        return [self._one() for _ in range(self._calls)]

    def _one(self) -> float:
        number, self._next = self._next, (self._next + 1) % self._sets
        start = time.perf_counter()
        self._call(number)
        return time.perf_counter() - start


def read_bandwidth(threads: int, rounds: int = 15) -> float:
    """Bytes a second that so many threads read together: the best of some rounds."""
    arrays = [np.ones(1 << 26, np.int32) for _ in range(threads)]
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, arrays))
            spent = time.perf_counter() - start
            best = max(best, sum(array.nbytes for array in arrays) / spent)
    return best


def machine() -> str:
    """The processor's name and what it adds to the baseline."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    known = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp")
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    name = facts.get("model name", platform.machine())
    return f"{name} ({', '.join(f for f in known if f in flags)})"
