"""Time the products on an NVIDIA GPU against XLA's, side by side.

    python benchmarks/gpu_measured.py
    python benchmarks/gpu_measured.py --cases w4a16 --rounds 30

For each product of `gpu_compiled.py`: XLA's product with a bfloat16 weight of the same
shape, XLA's form with the stored weight, and the library's kernel. Each round times
every one, in another order each time; weights rotate through more memory than the
second-level cache has. A call is a program that multiplies by each weight in turn, so
that the launches of one hide behind the work of the one before. Printed: microseconds
of one bfloat16 product, then the median over the rounds of (its time / the form's),
with quartiles (above 1 is faster), and what share of a copy's bandwidth the bytes of
the stored weight come to. Without a GPU it says so.
"""

import argparse
import functools
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_compiled import CASES, Case, arguments, stored_bytes

ROTATED = 256 << 20
"""Bytes of weights to rotate through: five times the cache of an H100."""


def filled(shape: jax.ShapeDtypeStruct | None, key: jax.Array, case: Case) -> Any:
    """A random array; the structure of a block-sparse weight is a regular one."""
    if shape is None:
        return None
    if shape.dtype == jnp.int32:
        down, across = case.outputs // case.block, case.inputs // case.block
        starts = np.arange(down + 1) * (down * across // 10) // down
        if shape.shape == starts.shape:
            return jnp.asarray(starts, jnp.int32)
        rows = [np.arange(n) * across // max(n, 1) for n in np.diff(starts)]
        return jnp.asarray(np.concatenate(rows), jnp.int32)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return jax.random.bits(key, shape.shape, jnp.uint8).astype(shape.dtype)
    return jax.random.normal(key, shape.shape, jnp.float32).astype(shape.dtype)


def contenders(case: Case) -> dict[str, tuple[Callable[..., Any], Any, list[Any]]]:
    """By name: a product, the activations, and the weights to rotate."""
    args, static = arguments(case)
    first = 3 if case.operation == "int8_matmul" else 1
    x = filled(args[0], jax.random.key(0), case)
    head = (x, *[None] * (first - 1))

    def drawn(seed: int) -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(seed), len(args))
        return tuple(
            filled(a, k, case) for a, k in zip(args[first:], keys[first:], strict=True)
        )

    stored = [drawn(n) for n in range(1, 2 + ROTATED // stored_bytes(case))]
    dense_bytes = case.outputs * case.inputs * 2
    shape = jax.ShapeDtypeStruct((case.outputs, case.inputs), jnp.bfloat16)
    dense = [
        (filled(shape, jax.random.key(n), case),)
        for n in range(1, 2 + ROTATED // dense_bytes)
    ]
    made: dict[str, Any] = {"bfloat16": (lambda x, w: x @ w.T, (x,), dense)}
    for form in ("xla", "gpu"):
        name = f"jcompress.kernels.{case.operation}"
        module = importlib.import_module(f"{name}.{form}")
        if form == "gpu" and (why := module.refuses(*args, **static)):
            print(f"  the kernel refuses: {why}")
            continue
        run = functools.partial(getattr(module, form), **static)
        made[form] = (run, head, stored)
    return made


def all_products(
    run: Callable[..., Any], x: Sequence[Any], weights: list[Any]
) -> Callable[[], Any]:
    """One program that multiplies by each weight."""

    @jax.jit
    def program(x: Any, weights: Any) -> Any:
        return [run(*x, *weight) for weight in weights]

    call = functools.partial(program, tuple(x), weights)
    jax.block_until_ready(call())
    return call


def seconds(call: Callable[[], Any], calls: int = 5) -> float:
    """Of one call, the launches of several overlapping."""
    start = time.perf_counter()
    out = [call() for _ in range(calls)]
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


def copy_bandwidth() -> float:
    """Bytes a second that a program reads and writes that copies its argument."""
    x = jnp.zeros(ROTATED // 4, jnp.float32)
    program = jax.jit(lambda x: x + np.float32(1))
    jax.block_until_ready(program(x))
    return 2 * ROTATED / min(seconds(lambda: program(x)) for _ in range(10))


def measure(case: Case, rounds: int, bandwidth: float) -> None:
    """Time the contenders of a case and print their ratios."""
    calls = {}
    for name, (run, x, weights) in contenders(case).items():
        calls[name] = (all_products(run, x, weights), len(weights))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(calls)):
            call, count = calls[name]
            taken[name].append(seconds(call) / count)
    base = np.asarray(taken["bfloat16"])
    print(f"  bfloat16 {np.median(base) * 1e6:8.1f} us")
    for name in ("xla", "gpu"):
        if name in taken:
            times = np.asarray(taken[name])
            low, middle, high = np.percentile(base / times, [25, 50, 75])
            reached = stored_bytes(case) / float(np.median(times)) / bandwidth
            print(
                f"  {name:8} {middle:8.2f}  [{low:.2f}, {high:.2f}]  stored weight at "
                f"{reached:.0%} of the copy's bandwidth"
            )


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if jax.default_backend() != "gpu":
        parser.error(f"there is no GPU here: JAX runs on {jax.default_backend()!r}")
    device = jax.devices()[0]
    bandwidth = copy_bandwidth()
    print(
        f"{device.device_kind}, jax {jax.__version__}, copy {bandwidth / 1e9:.0f} GB/s"
    )
    # The mesh tells the kernels which device they are for.
    mesh = jax.sharding.Mesh(np.array([device]), ("device",))
    with jax.set_mesh(mesh):
        for name, case in CASES.items():
            if any(part in name for part in args.cases):
                print(name, flush=True)
                measure(case, args.rounds, bandwidth)


if __name__ == "__main__":
    main()
