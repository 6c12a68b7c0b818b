"""The convolutional network that learns Fashion-MNIST while it is pruned."""

import functools
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.sites import Sites, find_sites

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import fashion_mnist

CLASSES = 10


class Data(NamedTuple):
    """Images [n, 28, 28, 1] and labels."""

    x: jax.Array
    y: jax.Array
    test: tuple[jax.Array, jax.Array]


def load(count: int) -> Data:
    """The first so many images to train with, and all to test with."""
    x, y, x_test, y_test = fashion_mnist.load(count, 10_000)
    test = jnp.asarray(x_test), jnp.asarray(y_test)
    return Data(jnp.asarray(x), jnp.asarray(y), test)


def init(key: jax.Array) -> Any:
    """Two convolutions and two products, 207,354 parameters."""
    shapes = {
        "conv1": (3, 3, 4, 16),
        "conv2": (3, 3, 16, 32),
        "hidden": (7 * 7 * 32, 128),
        "last": (128, CLASSES),
    }
    return {
        name: {
            "w": jax.random.normal(key, shape)
            * np.float32((2 / np.prod(shape[:-1])) ** 0.5),
            "b": jnp.zeros(shape[-1]),
        }
        for key, (name, shape) in zip(
            jax.random.split(key, len(shapes)), shapes.items(), strict=True
        )
    }


def apply(params: Any, x: jax.Array) -> jax.Array:
    """[B, 28, 28, 1] -> [B, 10]."""
    x = _squares(x, 14).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 14, 14, 4)
    x = _squares(_convolved(params["conv1"], x), 7).mean((2, 4))
    x = _convolved(params["conv2"], x).reshape(len(x), -1)
    x = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
    out: jax.Array = x @ params["last"]["w"] + params["last"]["b"][None]
    return out


def _squares(x: jax.Array, size: int) -> jax.Array:
    """[B, 2 S, 2 S, C] -> [B, S, 2, S, 2, C]."""
    return x.reshape(len(x), size, 2, size, 2, x.shape[-1])


def _convolved(own: Any, x: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(
        x, own["w"], (1, 1), "SAME", dimension_numbers=layout
    )
    return jax.nn.relu(out + own["b"][None, None, None])


@functools.cache
def sites() -> Sites:
    """Where the weights are used."""
    params = jax.eval_shape(init, jax.random.key(0))
    return find_sites(apply, params, jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32))


def loss_of(
    params: Any, x: jax.Array, y: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """The mean cross-entropy."""
    logits = apply(params, x) / np.float32(temperature)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


@jax.jit
def _right(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    right: jax.Array = jnp.argmax(apply(params, x), -1) == y
    return jnp.mean(right, dtype=jnp.float32)


def accuracy(params: Any, given: tuple[jax.Array, jax.Array]) -> float:
    """The fraction that is classified as labelled."""
    return float(_right(params, *given))
