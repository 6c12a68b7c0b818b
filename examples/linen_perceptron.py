"""The 784-128-10 perceptron in Linen: prune, quantize and distil in your own loop."""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from fashion_mnist import batches, load
from flax.training.train_state import TrainState

from jcompress.distillation.logits import soft_targets
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.pruning import Prune, Unstructured, prune
from jcompress.pruning.schedules import cubic_schedule
from jcompress.quantization import Quantize, Weights, fake_quant, quantize
from jcompress.report import Metric, compare
from jcompress.sites import find_sites


class Perceptron(nn.Module):
    """784-128-10."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [n, 10] of images [n, 28, 28, 1]."""
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


def main() -> None:
    """Train dense, compress while fine-tuning, convert, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=60_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=4, help="for each of two stages")
    args = parser.parse_args()
    x, y, x_test, y_test = load(args.train, args.test)
    model, size = Perceptron(), 128
    steps = args.epochs * (len(x) // size)

    @jax.jit
    def train_step(state: TrainState, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = state.apply_fn({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    params = model.init(jax.random.key(0), x[:1])["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))
    for batch in batches(x, y, size=size, epochs=args.epochs, seed=0):
        state = train_step(state, *batch)
    teacher = state.params

    # Half of the weights go, the others become 4-bit integers, one scale a unit.
    sites = find_sites(model.apply, {"params": teacher}, x[:1])
    rules = [(..., Quantize(weights=Weights(format=Int(4))))]
    schedule = cubic_schedule(final_sparsity=0.5, steps=steps // 2)
    optimizer = prune(
        optax.adam(optax.cosine_decay_schedule(5e-4, steps)),
        [(..., Prune(pattern=Unstructured(), sparsity=schedule))],
        sites=sites.below("params"),
        every=max(1, steps // 20),
    )
    simulated = fake_quant(model.apply, rules)

    def teach(x: Any) -> Any:
        return model.apply({"params": teacher}, x)

    @jax.jit
    def compress_step(state: TrainState, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = state.apply_fn({"params": params}, x)
            soft = soft_targets(logits, teach(x), temperature=2.0)
            hard = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(soft + hard)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    state = TrainState.create(apply_fn=simulated, params=teacher, tx=optimizer)
    for batch in batches(x, y, size=size, epochs=args.epochs, seed=1):
        state = compress_step(state, *batch)

    small = quantize({"params": state.params}, rules, sites=sites)
    accuracy = Metric(
        "accuracy",
        lambda run, tree: np.mean(np.argmax(run(tree, x_test), -1) == y_test),
        higher_is_better=True,
        format=".2%",
    )
    measured = compare(
        {
            "dense": (model.apply, {"params": teacher}),
            "compressed": (compressed(model.apply), small),
        },
        batches={n: [(x_test[i : i + n],) for i in range(4)] for n in (1, 64)},
        metrics=[accuracy],
    )
    print(measured)


if __name__ == "__main__":
    main()
