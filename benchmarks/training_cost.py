"""Time a training step with quantization against the dense one, and against qwix's.

    python benchmarks/training_cost.py
    python benchmarks/training_cost.py --quick --json cost.json
    python benchmarks/training_cost.py --models resnet

Two small Linen models, a ResNet with batch normalisation and a transformer; one step is
the gradient and an update by momentum, in one jitted program. The contenders:

    8 bits       weights per channel and activations per tensor, ranges from the data
    by row       the same with a range for each row, the library's default
    LSQ          the same numbers with learned scales
    qwix         its quantized training, products of integers (if it is installed)

Each round gives every contender a block of steps, in another order each time. A ratio
is that of a contender's median step to the dense one's of the same round; printed are
the median over the rounds and the quartiles. Exit code 1 if 8 bits or LSQ takes more
than 1.05 times the dense step, or 8 bits more than qwix.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.formats import Int
from jcompress.qat import Lsq, init_scales
from jcompress.quantization import (
    Activation,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
)

BAR = 1.05
"""How many times the dense step ours may take."""


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


def rules(range: Any = None, granularity: Any = None) -> Any:
    """8 bits everywhere."""
    given = {} if range is None else {"range": range}
    return [
        (
            ...,
            Quantize(
                weights=Weights(format=Int(8), **given),
                activation=Activation(format=Int(8), granularity=granularity, **given),
            ),
        )
    ]


def contenders(problem: Problem) -> dict[str, Steps]:
    """Everything that is timed, by name."""
    apply = problem.model.apply
    tensor, row, learned = rules(None, PerTensor()), rules(), rules(Lsq())
    scales = init_scales(
        lambda v, x: apply(v, x, mutable=["batch_stats"])[0],
        learned,
        problem.variables,
        problem.x,
    )
    found = {
        "dense": training(problem, lambda _: apply, None),
        "8 bits": training(problem, lambda _: fake_quant(apply, tensor), None),
        "by row": training(problem, lambda _: fake_quant(apply, row), None),
        "LSQ": training(
            problem, lambda s: fake_quant(apply, learned, scales=s), scales
        ),
    }
    if importlib.util.find_spec("qwix") is not None:
        found["qwix"] = _qwix(problem)
    return found


def _qwix(problem: Problem) -> Steps:
    qwix = importlib.import_module("qwix")
    rule = qwix.QtRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)
    model = qwix.quantize_model(problem.model, qwix.QtProvider([rule]))
    variables = model.init(jax.random.key(0), problem.x)
    peer = problem._replace(model=model, variables=variables)
    return training(peer, lambda _: model.apply, None)


def measure(steps: dict[str, Steps], rounds: int, block: int) -> dict[str, list[float]]:
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


def rows(model: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
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


def missed(table: list[dict[str, Any]]) -> list[str]:
    """The bars that fail, in words."""
    found = []
    for model in dict.fromkeys(row["model"] for row in table):
        ratio = {r["contender"]: r["ratio"] for r in table if r["model"] == model}
        for name in ("8 bits", "LSQ"):
            if ratio[name] > BAR:
                found.append(f"{model}: {name} takes {ratio[name]:.2f}x, bar {BAR}x")
        ours, theirs = ratio["8 bits"], ratio.get("qwix", np.inf)
        if ours > theirs:
            found.append(f"{model}: 8 bits takes {ours:.2f}x, qwix {theirs:.2f}x")
    return found


def main() -> int:
    """Measure, print, and tell whether a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps")
    parser.add_argument("--models", nargs="+", default=["resnet", "transformer"])
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    rounds, block = (5, 3) if options.quick else (21, 5)
    table = []
    print(f"{'model':12} {'contender':10} {'ms':>8}  ratio to dense (quartiles)")
    for model, problem in problems(options.quick).items():
        if model not in options.models:
            continue
        for row in rows(model, measure(contenders(problem), rounds, block)):
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


if __name__ == "__main__":
    sys.exit(main())
