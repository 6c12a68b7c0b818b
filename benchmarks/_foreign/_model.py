"""What every foreign model is reduced to."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Foreign(NamedTuple):
    """A model of a public package.

    Attributes:
        fn: `fn(variables, *inputs)`, in evaluation mode.
        variables: its parameters and statistics, random.
        inputs: what it is applied to.
        shrinks: whether an axis of it can shrink: none of a table of codes that are
            compared with the data, or of weights masked by blocks.
    """

    fn: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    shrinks: bool = True


class Unavailable(ImportError):
    """The package of a model is not installed, or does not run with this JAX."""


def random_like(tree: Any) -> Any:
    """Random numbers of the shapes of a tree, of a size that a trained model has.

    Variances and scales of normalisations are about 1, weights about one over the
    square root of their inputs.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s; leaves other than floats stay.
    """

    def fill(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
            return jnp.zeros(leaf.shape, leaf.dtype) if is_shape else leaf
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        noise = rng.normal(size=leaf.shape)
        positive = ("scale", "var", "gamma", "layer_norm", "layernorm", "ln_")
        vector = sum(size != 1 for size in leaf.shape) <= 1
        if vector and any(part in name.lower() for part in positive):
            values = 1 + 0.1 * np.abs(noise)
        elif vector:
            values = 0.1 * noise
        else:
            values = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, tree)


def normal(*shape: int) -> jax.Array:
    """Inputs: float32 numbers of a normal distribution, the same in each run."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def words(*shape: int, count: int = 50) -> jax.Array:
    """Inputs: int32 numbers from 3 below `count`, the same in each run."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(3, count, size=shape), jnp.int32)
