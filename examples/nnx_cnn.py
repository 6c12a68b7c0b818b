"""A CNN in NNX: prune, quantize and distil in your own training loop."""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fashion_mnist import batches, load
from flax import nnx

from jcompress.distillation.logits import soft_targets
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.pruning import Prune, Unstructured, prune
from jcompress.pruning.schedules import cubic_schedule
from jcompress.quantization import Quantize, Weights, fake_quant, quantize
from jcompress.report import Metric, compare
from jcompress.rules import Rules
from jcompress.sites import find_sites


class CNN(nnx.Module):
    """Two convolutions with pooling, two dense layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Random weights."""
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.dense1 = nnx.Linear(7 * 7 * 32, 64, rngs=rngs)
        self.dense2 = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [n, 10] of images [n, 28, 28, 1]."""
        pool = functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
        x = pool(nnx.relu(self.conv1(x)))
        x = pool(nnx.relu(self.conv2(x)))
        return self.dense2(nnx.relu(self.dense1(x.reshape(x.shape[0], -1))))


def main() -> None:
    """Train dense, compress while fine-tuning, convert, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=20_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=3, help="for each of two stages")
    args = parser.parse_args()
    x, y, x_test, y_test = load(args.train, args.test)
    size, model = 128, CNN(nnx.Rngs(0))
    steps = args.epochs * (len(x) // size)
    graph = nnx.graphdef(model)

    def apply(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    def hard(logits: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @nnx.jit
    def train_step(model: CNN, optimizer: nnx.Optimizer[CNN], x: Any, y: Any) -> None:
        gradients = nnx.grad(lambda model: hard(model(x), y))(model)
        optimizer.update(model, gradients)

    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    for batch in batches(x, y, size=size, epochs=args.epochs, seed=0):
        train_step(model, optimizer, *batch)
    teacher = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))

    # Half of each weight goes, the first layer's 8 and the others' 4 bits stay.
    sites = find_sites(apply, teacher, x[:1])
    rules: Rules[Quantize] = [
        ("conv1/kernel", Quantize(weights=Weights(format=Int(8)))),
        (..., Quantize(weights=Weights(format=Int(4)))),
    ]
    simulated = fake_quant(apply, rules)
    schedule = cubic_schedule(final_sparsity=0.5, steps=steps // 2)
    transformation = prune(
        optax.adam(optax.cosine_decay_schedule(5e-4, steps)),
        [(..., Prune(pattern=Unstructured(), sparsity=schedule))],
        sites=sites,
        every=max(1, steps // 20),
    )

    @nnx.jit
    def compress_step(
        model: CNN, optimizer: nnx.Optimizer[CNN], x: Any, y: Any
    ) -> None:
        def loss(model: CNN) -> Any:
            logits = simulated(nnx.state(model, nnx.Param), x)
            soft = soft_targets(logits, apply(teacher, x), temperature=2.0)
            return hard(logits, y) + soft.mean()

        optimizer.update(model, nnx.grad(loss)(model))

    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    for batch in batches(x, y, size=size, epochs=args.epochs, seed=1):
        compress_step(model, optimizer, *batch)

    def accuracy(run: Any, params: Any) -> float:
        parts = range(0, len(x_test), 500)
        right = [np.argmax(run(params, x_test[i : i + 500]), -1) for i in parts]
        return float(np.mean(np.concatenate(right) == y_test))

    small = quantize(nnx.state(model, nnx.Param), rules, sites=sites)
    variants = {"dense": (apply, teacher), "compressed": (compressed(apply), small)}
    parts = {n: [(x_test[i : i + n],) for i in range(4)] for n in (1, 64)}
    metric = Metric("accuracy", accuracy, higher_is_better=True, format=".2%")
    print(compare(variants, batches=parts, metrics=[metric]))


if __name__ == "__main__":
    main()
