"""Accuracy of a convolutional network on digits after its kernels are factored.

    python benchmarks/low_rank_digits.py
    python benchmarks/low_rank_digits.py --parts 0.1 --seeds 0 --epochs 10

A small network is trained on the embedded digits; its two wide kernels are then split
in each of the four ways into factors with a part of their numbers, and the factors,
with everything else, are trained for a few epochs more. Printed: bytes of the two
kernels, their relative errors, and the accuracy on the test part before and after that
training, each the mean over the seeds. The dense network gets the same further
training, for comparison.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from low_rank import splits

from jcompress.conversion import describe_changes
from jcompress.execution import compressed
from jcompress.low_rank.factorizing import (
    Cp,
    Factoring,
    Tucker,
    factorize,
)
from jcompress.recipes import Examples, load_digits
from jcompress.rules import Rules
from jcompress.sites import find_sites

Apply = Callable[[Any, jax.Array], jax.Array]

BATCH = 64


def apply_network(tree: Any, x: jax.Array) -> jax.Array:
    """The logits of images."""
    out: Any = Network().apply(tree, x)
    logits: jax.Array = out
    return logits


class Network(nn.Module):
    """Three convolutions, a mean over the positions and a product."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [B, 8, 8, 1] to logits [B, 10]."""
        for width, stride in ((32, 1), (64, 2), (64, 1)):
            x = nn.relu(nn.Conv(width, (3, 3), strides=stride)(x))
        out: jax.Array = nn.Dense(10)(x.mean((1, 2)))
        return out


def train(apply: Apply, tree: Any, part: Examples, *, epochs: int, rate: float) -> Any:
    """Lower the cross-entropy with Adam, the rate falling to 0."""
    count = len(part.labels) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, epochs * count))

    @jax.jit
    def step(tree: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def loss(tree: Any) -> jax.Array:
            logits = apply(tree, x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            mean: jax.Array = losses.mean()
            return mean

        updates, state = optimizer.update(jax.grad(loss)(tree), state)
        return optax.apply_updates(tree, updates), state

    state, order = optimizer.init(tree), np.random.default_rng(0)
    for _ in range(epochs):
        for batch in np.split(
            order.permutation(len(part.labels))[: count * BATCH], count
        ):
            x, y = jnp.asarray(part.images[batch]), jnp.asarray(part.labels[batch])
            tree, state = step(tree, state, x, y)
    return tree


def accuracy(apply: Apply, tree: Any, part: Examples) -> float:
    """Per cent of the images that are told right."""
    found = jax.jit(apply)(tree, jnp.asarray(part.images))
    return float(100 * np.mean(np.argmax(found, -1) == part.labels))


def ways(part: float, seed: int) -> dict[str, Rules[Factoring]]:
    """Rules for the two wide kernels, each way to split them."""
    first, second = splits(32, 64, part), splits(64, 64, part)
    rules: dict[str, Rules[Factoring]] = {}
    for name in first:
        specs = [first[name], second[name]]
        if name == "cp":
            specs = [Cp(parameters=part, seed=seed)] * 2
        if name == "tucker":
            ranks = [spec.ranks for spec in specs if isinstance(spec, Tucker)]
            specs = [Tucker(ranks=pair) for pair in ranks]
        paths = [f"params/Conv_{number}/kernel" for number in (1, 2)]
        rules[name] = list(zip(paths, specs, strict=True))
    return rules


def measure(seed: int, args: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    """Name, bytes, two errors and two accuracies of each way, the dense one first."""
    digits, apply = load_digits(), apply_network
    x = jnp.asarray(digits.test.images[:1])
    dense = jax.jit(Network().init)(jax.random.key(seed), x)
    dense = train(apply, dense, digits.train, epochs=args.epochs, rate=3e-3)
    more = functools.partial(train, part=digits.train, epochs=args.more, rate=1e-3)
    kernels = [dense["params"][f"Conv_{number}"]["kernel"] for number in (1, 2)]
    before = accuracy(apply, dense, digits.test)
    after = accuracy(apply, more(apply, dense), digits.test)
    yield "dense", [sum(k.nbytes for k in kernels), 0, 0, before, after]
    sites = find_sites(apply, dense, x)
    run = compressed(apply)
    for part in args.parts:
        for name, rules in ways(part, seed).items():
            small = factorize(dense, rules, sites=sites)
            rows = describe_changes(dense, small, rules, sites=sites).changed
            before = accuracy(run, small, digits.test)
            after = accuracy(run, more(run, small), digits.test)
            row = [sum(r.bytes_after for r in rows), *(r.error or 0 for r in rows)]
            yield f"{name} {part}", [*row, before, after]


def main() -> None:
    """Parse the arguments, train, print the means over the seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=float, nargs="+", default=[0.05, 0.1, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--more", type=int, default=5, help="epochs with the factors")
    args = parser.parse_args()
    runs = [dict(measure(seed, args)) for seed in args.seeds]
    print("weight         bytes    errors       accuracy  after training")
    for name in runs[0]:
        size, first, second, before, after = np.mean([run[name] for run in runs], 0)
        errors = f"{first:.3f} {second:.3f}"
        print(f"{name:13}  {size:7,.0f}  {errors}  {before:8.2f}  {after:8.2f}")


if __name__ == "__main__":
    main()
