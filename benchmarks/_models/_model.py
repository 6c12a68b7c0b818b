"""What every model here offers: inputs, a tree of variables, evaluation, training."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A function of a tree, at one size.

    Attributes:
        init: makes the tree, given a key and the inputs.
        evaluate: `(variables, *inputs) -> outputs`.
        train: `(variables, *inputs) -> (outputs, updated statistics)`.
        inputs: the inputs of a batch of the given size.
    """

    init: Callable[..., Any]
    evaluate: Callable[..., Any]
    train: Callable[..., Any]
    inputs: Callable[[int], tuple[jax.Array, ...]]

    def shapes(self) -> Any:
        """The tree of variables, of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(self.init, jax.random.key(0), *self.inputs(1))

    def variables(self) -> Any:
        """The tree, with random numbers; those of scales and variances are near 1."""
        return filled(self.shapes())


def filled(shapes: Any) -> Any:
    """Random numbers for a tree of shapes, scaled like the usual initializers."""

    def one(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(f"{name} {leaf.shape}".encode()))
        value = rng.normal(size=leaf.shape)
        if any(word in name for word in ("var", "scale")):
            value = 1 + 0.2 * np.tanh(value)
        elif len(leaf.shape) > 1:
            fan = max(int(np.prod(leaf.shape[:-1])), 1)
            value = value * (2 / fan) ** 0.5
        else:
            value = 0.1 * value
        return jnp.asarray(value.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(one, shapes)


def linen(module: nn.Module, inputs: Callable[[int], tuple[jax.Array, ...]]) -> Model:
    """A Linen module whose call takes the inputs and `train`."""

    def train(variables: Any, *args: jax.Array) -> Any:
        return module.apply(variables, *args, train=True, mutable=["batch_stats"])

    return Model(init=module.init, evaluate=module.apply, train=train, inputs=inputs)


def images(size: int) -> Callable[[int], tuple[jax.Array, ...]]:
    """Random images [batch, size, size, 3]."""

    def make(batch: int) -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(batch)
        shape = (batch, size, size, 3)
        return (jnp.asarray(rng.normal(size=shape).astype(np.float32)),)

    return make


def sequences(length: int, features: int) -> Callable[[int], tuple[jax.Array, ...]]:
    """Random sequences [batch, length, features]."""

    def make(batch: int) -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(batch)
        shape = (batch, length, features)
        return (jnp.asarray(rng.normal(size=shape).astype(np.float32)),)

    return make


def tokens(length: int, words: int) -> Callable[[int], tuple[jax.Array, ...]]:
    """Random words [batch, length]."""

    def make(batch: int) -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(batch)
        shape = (batch, length)
        return (jnp.asarray(rng.integers(0, words, shape, dtype=np.int32)),)

    return make
