"""A student of half the width for your own NNX model, taught by the whole one."""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fashion_mnist import batches, load
from flax import nnx
from nnx_cnn import CNN

from jcompress.distillation import Loss, distill_step, init_state, narrower
from jcompress.distillation.logits import smoothed_labels, soft_targets
from jcompress.report import Metric, compare


def main() -> None:
    """Train the teacher, cut a student out of it, teach it, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=20_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=3, help="for each of two stages")
    args = parser.parse_args()
    x, y, x_test, y_test = load(args.train, args.test)
    size = 128
    steps = args.epochs * (len(x) // size)
    graph, teacher = nnx.split(CNN(nnx.Rngs(0)))

    def apply(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    def train(fn: Any, params: Any, losses: Any, teacher: Any, seed: int) -> Any:
        """`params` after some epochs of `fn` with these losses."""
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
        told = None if teacher is None else (lambda p, batch: apply(p, batch["x"]))
        step = distill_step(lambda p, batch: fn(p, batch["x"]), told, losses, optimizer)
        step = jax.jit(step, donate_argnums=0)
        state = init_state(jax.tree.map(jnp.array, params), optimizer)
        for images, labels in batches(x, y, size=size, epochs=args.epochs, seed=seed):
            state, _ = step(state, teacher, {"x": images, "y": labels})
        return state.params

    labels = {"labels": lambda s, t, batch: smoothed_labels(s, batch["y"])}
    teacher = train(apply, teacher, labels, None, seed=0)

    # Half of the channels and of the hidden units, those with the largest weights.
    student, params = narrower(apply, teacher, x[:1], keep=0.5)
    soft = functools.partial(soft_targets, temperature=2.0)
    losses = {**labels, "soft": Loss(fn=lambda s, t, batch: soft(s, t), weight=2.0)}
    taught = train(student, params, losses, teacher, seed=1)

    def accuracy(run: Any, params: Any) -> float:
        parts = range(0, len(x_test), 500)
        right = [np.argmax(run(params, x_test[i : i + 500]), -1) for i in parts]
        return float(np.mean(np.concatenate(right) == y_test))

    metric = Metric("accuracy", accuracy, higher_is_better=True, format=".2%")
    variants = {"teacher": (apply, teacher), "student": (student, taught)}
    parts = {n: [(x_test[i : i + n],) for i in range(4)] for n in (1, 64)}
    print(compare(variants, batches=parts, metrics=[metric]))


if __name__ == "__main__":
    main()
