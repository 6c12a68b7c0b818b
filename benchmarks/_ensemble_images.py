"""Perceptrons on Fashion-MNIST that are trained side by side, for benchmarks."""

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import fashion_mnist

PIXELS, CLASSES, BATCH = 784, 10, 128
WIDTH = 128
Loss = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
"""`(params, x, labels, numbers of the examples) -> loss`."""


class Data(NamedTuple):
    """Images [n, 784] and labels; those held out choose weights and temperatures."""

    x: jax.Array
    y: jax.Array
    held: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


def load(quick: bool) -> Data:
    """The training set less 10,000 images that are held out (2,000 if quick)."""
    x, y, x_test, y_test = fashion_mnist.load(60_000, 10_000)
    flat = x.reshape(-1, PIXELS), x_test.reshape(-1, PIXELS)
    first, last = (8_000, 10_000) if quick else (50_000, 60_000)
    part = jnp.asarray
    return Data(
        x=part(flat[0][:first]),
        y=part(y[:first]),
        held=(part(flat[0][first:last]), part(y[first:last])),
        test=(part(flat[1]), part(y_test)),
    )


def init(key: jax.Array, width: int = WIDTH) -> Any:
    """Two hidden layers of `width`."""
    sizes = (PIXELS, width, width, CLASSES)
    keys = jax.random.split(key, 3)
    return {
        name: {
            "w": jax.random.normal(key, (a, b)) * np.float32((2 / a) ** 0.5),
            "b": jnp.zeros(b),
        }
        for name, key, a, b in zip(
            ("first", "second", "last"), keys, sizes, sizes[1:], strict=False
        )
    }


def apply(params: Any, x: jax.Array) -> jax.Array:
    """[B, 784] -> [B, 10]."""
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"][None])
    out: jax.Array = x @ params["last"]["w"] + params["last"]["b"][None]
    return out


def cross_entropy(
    params: Any, x: jax.Array, y: jax.Array, numbers: jax.Array
) -> jax.Array:
    """The loss on labels."""
    del numbers
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
    return jnp.mean(losses)


class Trainer:
    """Trains one network, or several at once if the arrays are stacked.

    Attributes:
        optimizer: of optax.
        epoch: `(params, state, keys) -> (params, state)`: one pass over the data in an
            order by key.
    """

    def __init__(
        self,
        data: Data,
        schedule: optax.Schedule,
        *,
        loss: Loss = cross_entropy,
        members: bool = False,
        link: optax.GradientTransformation | None = None,
    ) -> None:
        links = [optax.adamw(schedule, weight_decay=1e-4)]
        self.optimizer = optax.chain(*links, *([] if link is None else [link]))
        run = functools.partial(_epoch, data, self.optimizer, loss)
        self.epoch = jax.jit(jax.vmap(run) if members else run, donate_argnums=(0, 1))
        self._members = members

    def start(self, params: Any) -> Any:
        """The state before the first epoch."""
        begin = jax.vmap(self.optimizer.init) if self._members else self.optimizer.init
        return jax.jit(begin)(params)

    def train(
        self,
        params: Any,
        key: jax.Array,
        epochs: int,
        after: Callable[[int, Any, Any], None] | None = None,
    ) -> tuple[Any, Any]:
        """The parameters and the state after so many epochs.

        Args:
            params: those to begin with, which are not changed.
            key: one for each member if they are stacked.
            epochs: how many.
            after: called with the number of the epoch, the parameters and the state.
        """
        params = jax.tree.map(jnp.array, params)
        state = self.start(params)
        fold = jax.vmap(jax.random.fold_in, (0, None)) if self._members else None
        for number in range(epochs):
            now = (fold or jax.random.fold_in)(key, number)
            params, state = self.epoch(params, state, now)
            if after is not None:
                after(number, params, state)
        return params, state


def _epoch(
    data: Data, optimizer: Any, loss: Loss, params: Any, state: Any, key: jax.Array
) -> tuple[Any, Any]:
    count = len(data.x) // BATCH
    order = jax.random.permutation(key, len(data.x))[: count * BATCH]

    def step(carry: Any, numbers: jax.Array) -> tuple[Any, None]:
        params, state = carry
        slope = jax.grad(loss)(params, data.x[numbers], data.y[numbers], numbers)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry, _ = jax.lax.scan(step, (params, state), order.reshape(count, BATCH))
    params, state = carry
    return params, state


def steps(data: Data, epochs: int) -> int:
    """How many steps there are in so many epochs."""
    return len(data.x) // BATCH * epochs


def width_of(values: float) -> int:
    """The width at which a perceptron has about so many parameters."""
    # w^2 + w (784 + 10 + 2) + 10
    b = PIXELS + CLASSES + 2
    return max(1, round((math.sqrt(b * b + 4 * (values - CLASSES)) - b) / 2))
