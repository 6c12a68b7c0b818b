"""Randomness in the weights of a training with quantization."""

import abc
import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightNoise(abc.ABC):
    """What chance does to the weights of one call of a fake-quantized function.

    Attributes:
        key: a key of `jax.random`; fold the step into it, or split it, so that each
            step has another one.
    """

    key: jax.Array

    def key_of(self, path: str) -> jax.Array:
        """The key of a leaf, which does not depend on what other leaves there are."""
        return jax.random.fold_in(self.key, np.uint32(zlib.crc32(path.encode())))

    @abc.abstractmethod
    def shift(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """What is added before weights are rounded, float32, in steps; None for 0."""

    @abc.abstractmethod
    def chosen(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """Which weights are quantized at all, bool; None for all."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticRounding(WeightNoise):
    """Weights are rounded up or down by chance, so that they are right on average.

    A weight between two numbers becomes the upper one with the probability that it has
    come as far. For integers only.

    Attributes:
        key: a key of `jax.random`, another one at each step.

    References:
        Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.qat import StochasticRounding
        >>> from jcompress.quantization import Quantize, Weights, fake_quant
        >>> rules = [("w", Quantize(weights=Weights(format=Int(2))))]
        >>> params = {"w": jnp.array([[1.0], [0.25]])}
        >>> def weights(key):
        ...     noise = StochasticRounding(key=key)
        ...     return fake_quant(lambda p, x: x @ p["w"], rules, noise=noise)(
        ...         params, jnp.eye(2)
        ...     )
        >>> many = jax.vmap(weights)(jax.random.split(jax.random.key(0), 1000))
        >>> many.min(axis=0).ravel(), many.max(axis=0).ravel()
        (Array([1., 0.], dtype=float32), Array([1., 1.], dtype=float32))
        >>> bool(abs(many[:, 1].mean() - 0.25) < 0.05)
        True
    """

    def shift(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """Evenly distributed over one step: rounding to the nearest does the rest."""
        return jax.random.uniform(key, shape, jnp.float32, -0.5, 0.5)

    def chosen(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """All of them."""
        return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantNoise(WeightNoise):
    """At each step a random part of the weights is quantized; the others stay floats.

    So the gradient of most weights is exact, without a straight-through estimate.

    Attributes:
        key: a key of `jax.random`, another one at each step.
        share: the probability that a weight is quantized, in [0, 1]; may be traced,
            for instance to rise to 1 during the training.

    Raises:
        ValueError: `share` is a number outside of [0, 1].

    References:
        Fan et al. 2020, "Training with Quantization Noise for Extreme Model
        Compression", section 4, with blocks of one weight.
    """

    share: float | jax.Array = 0.5

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float)
        if number and not 0 <= self.share <= 1:
            raise ValueError(f"QuantNoise: share is in [0, 1], not {self.share!r}")

    def shift(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """Nothing: what is quantized is rounded to the nearest number."""
        return None

    def chosen(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """So many, each by itself."""
        return jax.random.bernoulli(key, self.share, shape)
