"""Everything on one model: shrink, drop blocks, then 8 bits, always distilled.

A perceptron 784-1024-1024-10 in plain JAX. After each stage: bytes stored, accuracy,
and the latency beside the dense model, all of them timed in one run.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fashion_mnist import batches, load

from jcompress import report
from jcompress.distillation.logits import soft_targets
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.pruning import Block, Pattern, Prune, prune, to_sparse
from jcompress.pruning.scores import score_by_magnitude
from jcompress.quantization import Quantize, Weights, fake_quant, quantize
from jcompress.rules import Rules
from jcompress.shrinking import Width, shrink_in_rounds, shrunk
from jcompress.sites import find_sites

Model = Callable[[Any, Any], jax.Array]
SIZE = 128


def perceptron(params: Any, x: jax.Array) -> jax.Array:
    """Logits [n, 10] of images [n, 28, 28, 1]."""
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["first"]["w"] + params["first"]["b"][None])
    x = jax.nn.relu(x @ params["second"]["w"] + params["second"]["b"][None])
    logits: jax.Array = x @ params["last"]["w"] + params["last"]["b"][None]
    return logits


def fresh(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Parameters at random, scaled by the number of inputs (He et al. 2015)."""
    sizes = {"first": (784, 1024), "second": (1024, 1024), "last": (1024, 10)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: {
            "w": jax.random.normal(key, size) * np.float32((2 / size[0]) ** 0.5),
            "b": jnp.zeros(size[1]),
        }
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def trained(
    model: Model,
    params: Any,
    data: tuple[Any, Any],
    *,
    epochs: int,
    seed: int,
    teacher: Any = None,
    wrap: Callable[[Any], Any] = lambda optimizer: optimizer,
) -> Any:
    """Train on the labels and, if there is a teacher, on what it says."""
    x, y = data
    steps = max(2, epochs * (len(x) // SIZE))
    optimizer = wrap(optax.adam(optax.cosine_decay_schedule(1e-3, steps)))

    @jax.jit
    def step(params: Any, state: Any, teacher: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = model(params, x)
            hard = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            if teacher is None:
                return jnp.mean(hard)
            soft = soft_targets(logits, perceptron(teacher, x), temperature=2.0)
            return jnp.mean(soft + hard)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for batch in batches(x, y, size=SIZE, epochs=epochs, seed=seed):
        params, state = step(params, state, teacher, *batch)
    return params


def shown(times: report.Latency, name: str) -> str:
    """Time over that of the dense model, with its quartiles."""
    if name == "dense":
        return "1"
    ratio = times.ratio(name)
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def main() -> None:
    """Train, compress stage by stage, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=60_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=4, help="of each stage")
    args = parser.parse_args()
    x, y, x_test, y_test = load(args.train, args.test)
    train = functools.partial(trained, data=(x, y), epochs=args.epochs)
    image = x[:1]

    dense = train(perceptron, fresh(jax.random.key(0)), seed=0)
    stages: dict[str, tuple[Model, Any]] = {"dense": (perceptron, dense)}

    # Whole units go, in two rounds, until 40 % of the parameters are left. The sizes
    # are multiples of 16, so that what follows fits them.
    plan, params = shrink_in_rounds(
        perceptron,
        dense,
        image,
        target=0.4,
        rounds=2,
        score=lambda fn, params: score_by_magnitude(params),
        recover=lambda plan, params, number: train(
            shrunk(perceptron, plan), params, seed=1 + number, teacher=dense
        ),
        rules=[(..., Width(multiple=16))],
    )
    small = shrunk(perceptron, plan)
    stages["shrunk"] = small, params

    # Of the blocks of 8 outputs by 8 inputs in a hidden layer half stay.
    sites = find_sites(small, params, image)
    blocks = Block((8, 8))
    half = Prune(pattern=blocks, sparsity=0.5)
    pattern: Rules[Prune] = [("last/w", None), (..., half)]
    masked = functools.partial(prune, rules=pattern, sites=sites)
    params = train(small, params, seed=3, teacher=dense, wrap=masked)
    sparse: Rules[Pattern] = [("last/w", None), (..., blocks)]
    stages["blocks"] = compressed(small), to_sparse(params, sparse, sites=sites)

    # What is left becomes 8-bit integers, one scale a unit.
    bits = [(..., Quantize(weights=Weights(format=Int(8))))]
    simulated = fake_quant(small, bits)
    params = train(simulated, params, seed=4, teacher=dense, wrap=masked)
    tree = to_sparse(quantize(params, bits, sites=sites), sparse, sites=sites)
    stages["blocks, 8 bits"] = compressed(small), tree

    times = {
        size: report.latency(stages, [(x_test[i : i + size],) for i in range(4)])
        for size in (1, 64)
    }
    head = ("", "bytes", "accuracy", "ms at 1", "ms at 64", "time at 1", "time at 64")
    rows: list[tuple[str, ...]] = [head]
    for name, (fn, tree) in stages.items():
        right = np.mean(np.argmax(jax.jit(fn)(tree, x_test), -1) == y_test)
        ratios = [shown(times[size], name) for size in times]
        rows.append(
            (
                name,
                f"{report.stored_bytes(tree):,}",
                f"{right:.2%}",
                *(f"{times[size].time(name).median * 1e3:.3f}" for size in times),
                *ratios,
            )
        )
    print(report.aligned(rows, right=(1, 2, 3, 4)))


if __name__ == "__main__":
    main()
