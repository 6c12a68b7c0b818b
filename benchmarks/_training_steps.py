"""Steps of training on two small models, timed side by side against the dense one.

Each round gives every contender a block of steps, in another order each time. A ratio
is that of a contender's median step to the dense one's of the same round; printed are
the median over the rounds and the quartiles.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

BAR = 1.05
"""How many times the dense step ours may take."""

Table = list[dict[str, Any]]


class ResNet(nn.Module):
    """Three stages of two residual blocks, of 16, 32 and 64 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, 10]."""
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        x = nn.relu(norm()(nn.Conv(16, (3, 3), use_bias=False)(x)))
        for stage, width in enumerate((16, 32, 64)):
            for number in range(2):
                stride = 2 if stage and not number else 1
                y = nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)
                y = nn.relu(norm()(y))
                y = norm()(nn.Conv(width, (3, 3), use_bias=False)(y))
                if x.shape != y.shape:
                    x = nn.Conv(width, (1, 1), (stride, stride), use_bias=False)(x)
                x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


class Transformer(nn.Module):
    """Encoder blocks before a classifier."""

    width: int = 192
    layers: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, width] -> [B, 10]."""
        heads, size = self.width // 32, self.width
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            q, k, v = (
                nn.Dense(size)(y).reshape(*y.shape[:2], heads, 32) for _ in range(3)
            )
            y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
            x = x + nn.Dense(size)(y)
            y = nn.Dense(4 * size)(nn.LayerNorm()(x))
            x = x + nn.Dense(size)(nn.gelu(y))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class Problem(NamedTuple):
    """A model, what it starts with, and a batch."""

    model: nn.Module
    variables: Any
    x: jax.Array
    y: jax.Array


def problems(quick: bool) -> dict[str, Problem]:
    """The models by name."""
    keys = iter(jax.random.split(jax.random.key(0), 4))
    batch = 16 if quick else 32
    inputs = {
        "resnet": (ResNet(), (batch, 32, 32, 3)),
        "transformer": (Transformer(), (batch, 64, 192)),
    }
    found = {}
    for name, (model, shape) in inputs.items():
        x = jax.random.normal(next(keys), shape)
        y = jnp.arange(shape[0]) % 10
        found[name] = Problem(model, model.init(next(keys), x), x, y)
    return found


Apply = Callable[..., Any]


def training(
    problem: Problem,
    function: Callable[[Any], Apply],
    extra: Any,
    optimizer: optax.GradientTransformation | None = None,
) -> "Steps":
    """A jitted step of what a contender makes of the model.

    Args:
        problem: the model and its batch.
        function: gives the function of the variables, from the learned scales.
        extra: the learned scales; None without.
        optimizer: momentum by default.
    """
    optimizer = optimizer or optax.sgd(1e-3, momentum=0.9)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trained: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        (params, scales), stats = trained

        def loss(learned: Any) -> tuple[jax.Array, Any]:
            variables = {"params": learned[0], **stats}
            out, changed = function(learned[1])(
                variables, problem.x, mutable=list(stats)
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(out, problem.y)
            return losses.mean(), changed

        learned = (params, scales)
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(learned)
        updates, state = optimizer.update(grads, state, learned)
        return (optax.apply_updates(learned, updates), stats), state, value

    stats = {key: value for key, value in problem.variables.items() if key != "params"}
    learned = (problem.variables["params"], extra)
    start = jax.tree.map(jnp.copy, ((learned, stats), optimizer.init(learned)))
    return Steps(step, *start)


class Steps:
    """A training that goes on where it was."""

    def __init__(self, step: Any, trained: Any, state: Any) -> None:
        self._step, self._trained, self._state = step, trained, state

    def __call__(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self._trained, self._state, value = self._step(self._trained, self._state)
        value.block_until_ready()
        spent = time.perf_counter() - start
        if not np.isfinite(value):
            raise ArithmeticError("a loss is not finite; what is wrong is not timed")
        return spent


def measure(
    steps: Mapping[str, Steps], rounds: int, block: int
) -> dict[str, list[float]]:
    """Median seconds of a step in each round, by name."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(steps)):
            calls = [steps[name]() for _ in range(block)]
            times[name].append(float(np.median(calls)))
    return times


def rows(model: str, times: dict[str, list[float]]) -> Table:
    """One row for each contender but the dense one."""
    found = []
    for name, seconds in times.items():
        low, middle, high = np.percentile(
            np.divide(seconds, times["dense"]), (25, 50, 75)
        )
        found.append(
            {
                "model": model,
                "contender": name,
                "milliseconds": 1e3 * float(np.median(seconds)),
                "ratio": float(middle),
                "quartiles": [float(low), float(high)],
            }
        )
    return found


def report(
    about: str,
    contenders: Callable[[Problem], Mapping[str, Steps]],
    missed: Callable[[Table], list[str]],
    *,
    rounds: tuple[int, int],
) -> int:
    """Measure, print, and tell whether a bar was missed.

    Args:
        about: what the program does, in a line.
        contenders: everything that is timed, by name; one of them "dense".
        missed: the bars that the rows miss, in words.
        rounds: how many, and how many if quick.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--models", nargs="+", default=["resnet", "transformer"])
    parser.add_argument("--contenders", nargs="+", help="beside dense; all by default")
    parser.add_argument("--rounds", type=int, help="of blocks of steps")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    count = options.rounds or rounds[options.quick]
    table: Table = []
    print(f"{'model':12} {'contender':10} {'ms':>8}  ratio to dense (quartiles)")
    for model, problem in problems(options.quick).items():
        if model not in options.models:
            continue
        steps = contenders(problem)
        if options.contenders:
            names = ("dense", *options.contenders)
            steps = {name: steps[name] for name in names}
        for row in rows(model, measure(steps, count, 3 if options.quick else 5)):
            table.append(row)
            low, high = row["quartiles"]
            print(
                f"{model:12} {row['contender']:10} {row['milliseconds']:8.2f}  "
                f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})",
                flush=True,
            )
    faults = missed(table)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": table, "missed": faults}, indent=1))
    print("\n".join(f"missed: {fault}" for fault in faults) or "every bar is met")
    return 1 if faults else 0
