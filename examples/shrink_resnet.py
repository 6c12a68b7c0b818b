"""A trained ResNet made narrower: how it recovers, and whether the choice matters.

A residual network learns Fashion-MNIST; then whole channels go, in two rounds, until a
half, a quarter and an eighth of its multiplications are left. After each round the rest
learns from the labels and from the whole network. Channels are chosen by magnitude, by
the loss to first order (Taylor), or at random; every layer keeps the same fraction, so
that all choices end at the same sizes. So does a network that starts anew and learns as
the others do: for as many epochs as their recovery takes ("scratch"), or for as many as
that and the training of the whole network together ("scratch, long"). Printed is the
accuracy on the test images; every one is written to `--log` when it is known, and an
interrupted run goes on there.
"""

import argparse
import functools
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from fashion_mnist import batches, load

from jcompress import report
from jcompress.distillation.logits import soft_targets
from jcompress.pruning.scores import score_by_magnitude, score_by_taylor
from jcompress.shrinking import (
    Cost,
    Plan,
    find_groups,
    shrink_in_rounds,
    shrunk,
    static_cost,
)

SIZE = 128
ROUNDS = 2
PARTS = {"1/2": 0.5, "1/4": 0.25, "1/8": 0.125}
CHOICES = ("magnitude", "taylor", "random")
WAYS = (*CHOICES, "scratch", "scratch, long")

Data = tuple[np.ndarray, np.ndarray]


class Unit(nn.Module):
    """A convolution and batch normalization."""

    width: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalized, before the nonlinearity."""
        window, strides = (self.size, self.size), (self.stride, self.stride)
        x = nn.Conv(self.width, window, strides, use_bias=False)(x)
        y: jax.Array = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return y


class ResNet(nn.Module):
    """A stem and three residual blocks, on 14 x 14 positions and fewer."""

    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits [n, 10] of images [n, 28, 28, 1]."""
        x = nn.relu(Unit(self.widths[0], stride=2)(x, train))
        for stage, width in enumerate(self.widths):
            stride = 2 if stage else 1
            y = nn.relu(Unit(width, stride=stride)(x, train))
            y = Unit(width)(y, train)
            if stage:
                x = Unit(width, size=1, stride=stride)(x, train)
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


def in_training(variables: Any, x: jax.Array) -> Any:
    """Logits, and the statistics after this batch."""
    return ResNet().apply(variables, x, train=True, mutable=["batch_stats"])


def evaluate(variables: Any, x: jax.Array) -> Any:
    """Logits."""
    return ResNet().apply(variables, x)


def error(logits: jax.Array, labels: jax.Array, said: jax.Array | None) -> jax.Array:
    """The mean loss; `said` are the logits of the whole network."""
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if said is None:
        return jnp.mean(hard)
    return jnp.mean(hard + soft_targets(logits, said, temperature=2.0))


def trained(
    fn: Callable[..., Any],
    variables: Any,
    data: Data,
    *,
    epochs: int,
    seed: int,
    said: np.ndarray | None = None,
) -> Any:
    """Train `fn`, which returns statistics too, on labels and on `said` if given."""
    x, y = data
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, epochs * (len(x) // SIZE)))

    @jax.jit
    def step(variables: Any, state: Any, x: Any, y: Any, said: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, changed = fn({**variables, "params": params}, x)
            return error(logits, y, said), changed

        gradients, changed = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **changed}, state

    state = optimizer.init(variables["params"])
    every = np.arange(len(x))
    for images, rows in batches(x, every, size=SIZE, epochs=epochs, seed=seed):
        told = None if said is None else said[rows]
        variables, state = step(variables, state, images, y[rows], told)
    return variables


def logits_of(fn: Callable[..., Any], variables: Any, x: np.ndarray) -> np.ndarray:
    """Logits [n, 10] of many images."""
    run = jax.jit(fn)
    return np.concatenate(
        [run(variables, x[i : i + 500]) for i in range(0, len(x), 500)]
    )


def accuracy(fn: Callable[..., Any], variables: Any, data: Data) -> float:
    """The fraction of images whose largest logit is that of the label."""
    x, y = data
    return float(np.mean(np.argmax(logits_of(fn, variables, x), -1) == y))


def anew(like: Any, key: jax.Array) -> Any:
    """Fresh variables of the shapes of `like`."""

    def one(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if leaf.ndim > 1:
            mine = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return jax.nn.initializers.lecun_normal()(mine, leaf.shape, leaf.dtype)
        return jnp.full_like(leaf, 1 if "scale" in name or "var" in name else 0)

    return jax.tree_util.tree_map_with_path(one, like)


def scores(
    choice: str, seed: int, data: Data
) -> Callable[[Callable[..., Any], Any], Any]:
    """How elements are scored, as `shrink_in_rounds` asks."""

    def taylor(fn: Callable[..., Any], variables: Any) -> Any:
        @jax.jit
        def gradients(params: Any, x: Any, y: Any) -> Any:
            def loss(params: Any) -> jax.Array:
                return error(fn({**variables, "params": params}, x), y, None)

            return jax.grad(loss)(params)

        params = variables["params"]
        found = [
            gradients(params, *batch)
            for batch in batches(*data, size=1000, epochs=1, seed=seed)
        ]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
        return {"params": score_by_taylor(params, mean)}

    def magnitude(fn: Callable[..., Any], variables: Any) -> Any:
        return {"params": score_by_magnitude(variables["params"])}

    def random(fn: Callable[..., Any], variables: Any) -> Any:
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables)

    return {"magnitude": magnitude, "taylor": taylor, "random": random}[choice]


class Seed:
    """A network trained with one seed, and what becomes of it."""

    def __init__(self, seed: int, data: Data, held_out: Data, args: Any) -> None:
        self.seed, self.data, self.held_out, self.args = seed, data, held_out, args

    @functools.cached_property
    def whole(self) -> Any:
        """The variables of the whole network."""
        start = ResNet().init(jax.random.key(self.seed), self.data[0][:1])
        epochs = self.args.epochs
        return trained(in_training, start, self.data, epochs=epochs, seed=self.seed)

    @functools.cached_property
    def said(self) -> np.ndarray:
        """Its logits of the training images."""
        return logits_of(evaluate, self.whole, self.data[0])

    def before(self) -> float:
        """The accuracy of the whole network."""
        return accuracy(evaluate, self.whole, self.held_out)

    def accuracy(self, part: str, way: str) -> float:
        """Of a small network, made in one of the ways."""
        plan, small = self.shrunk(part, way)
        if way not in CHOICES:
            long = self.args.epochs if way == "scratch, long" else 0
            small = trained(
                shrunk(in_training, plan),
                anew(small, jax.random.key(100 + self.seed)),
                self.data,
                epochs=ROUNDS * self.args.recovery + long,
                seed=self.seed,
                said=self.said,
            )
        return accuracy(shrunk(evaluate, plan), small, self.held_out)

    def shrunk(self, part: str, way: str) -> tuple[Plan, Any]:
        """The plan and the recovered variables; not recovered if they start anew."""

        def recover(plan: Plan, variables: Any, number: int) -> Any:
            if way not in CHOICES:
                return variables
            return trained(
                shrunk(in_training, plan),
                variables,
                self.data,
                epochs=self.args.recovery,
                seed=10 * self.seed + number + 1,
                said=self.said,
            )

        choice = way if way in CHOICES else "random"
        return shrink_in_rounds(
            evaluate,
            self.whole,
            self.data[0][:1],
            target=PARTS[part],
            rounds=ROUNDS,
            score=scores(choice, self.seed, self.data),
            recover=recover,
            cost=Cost.MULTIPLICATIONS,
        )

    def left(self, part: str) -> float:
        """The fraction of the multiplications that is left."""
        groups = find_groups(evaluate, self.whole, self.data[0][:1])
        cost = static_cost(groups, Cost.MULTIPLICATIONS)
        return cost(self.shrunk(part, "scratch")[0]) / cost(None)


def measured(args: Any) -> Iterator[tuple[int, str, float]]:
    """Every figure by seed and name, from the log where it knows it."""
    x, y, x_test, y_test = load(60_000, args.test)
    data = x[: args.train], y[: args.train]
    held_out = (x[-5000:], y[-5000:]) if args.validation else (x_test, y_test)
    given = (args.train, args.test, args.validation, args.epochs, args.recovery)
    about = "-".join(str(int(number)) for number in given)
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    known = {tuple(line[:-1]): line[-1] for line in map(json.loads, lines)}
    for number in range(args.seeds):
        seed = Seed(number, data, held_out, args)
        tasks: dict[str, Callable[[], float]] = {"whole": seed.before}
        for part in args.parts:
            tasks[f"{part} left"] = functools.partial(seed.left, part)
            for way in args.ways:
                tasks[f"{part} {way}"] = functools.partial(seed.accuracy, part, way)
        for name, task in tasks.items():
            key = (about, number, name)
            if key not in known:
                known[key] = task()
                with args.log.open("a") as file:
                    file.write(json.dumps([*key, known[key]]) + "\n")
            yield number, name, known[key]


def table(args: Any) -> str:
    """Means over seeds, with standard deviations, by part and way."""
    found: dict[str, list[float]] = {}
    for _, name, value in measured(args):
        found.setdefault(name, []).append(value)

    def cell(name: str) -> str:
        given = 100 * np.array(found[name])
        spread = f" ± {np.std(given, ddof=1):.2f}" if len(given) > 1 else ""
        return f"{np.mean(given):.2f}{spread}"

    lines: list[tuple[str, ...]] = [("multiplications", *args.ways)]
    for part in args.parts:
        cells = (cell(f"{part} {way}") for way in args.ways)
        lines.append((f"{part} ({np.mean(found[f'{part} left']):.3f})", *cells))
    head = f"whole network: {cell('whole')} % of the images; {args.seeds} seeds"
    return f"{head}\n{report.aligned(lines, right=tuple(range(1, len(args.ways) + 1)))}"


def main() -> None:
    """Train what the log does not know yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=20_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--validation", action="store_true", help="in place of test")
    parser.add_argument("--epochs", type=int, default=8, help="of the whole network")
    parser.add_argument("--recovery", type=int, default=2, help="epochs of each round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--log", type=pathlib.Path, default=pathlib.Path("shrink_resnet.jsonl")
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    print(table(parser.parse_args()))


if __name__ == "__main__":
    main()
