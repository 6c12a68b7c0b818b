"""Networks that concatenate: DenseNet and U-Net."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from _models._model import Model, images, linen
from _models.plain import ConvNorm


class NormConv(nn.Module):
    """Batch normalization before a convolution."""

    width: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        size = (self.size, self.size)
        return nn.Conv(self.width, size, use_bias=False, name="conv")(x)


class DenseNet(nn.Module):
    """Every layer sees what all layers of its block before it made."""

    growth: int
    depths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(2 * self.growth, (7, 7), (2, 2), use_bias=False, name="stem")(x)
        width = 2 * self.growth
        for block, depth in enumerate(self.depths):
            if block:
                width //= 2
                x = NormConv(width, 1, name=f"transition{block}")(x, train)
                x = nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
            for layer in range(depth):
                name = f"block{block}_{layer}"
                y = NormConv(4 * self.growth, 1, name=f"{name}_in")(x, train)
                y = NormConv(self.growth, 3, name=f"{name}_out")(y, train)
                x = jnp.concatenate([x, y], axis=-1)
                width += self.growth
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class UNet(nn.Module):
    """Down, up by transposed convolutions, with what was there on the way down."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def pair(x: jax.Array, width: int, name: str) -> jax.Array:
            for number in range(2):
                layer = ConvNorm(width, name=f"{name}_{number}")
                x = nn.relu(layer(x, train))
            return x

        kept = []
        for level in range(self.depth):
            x = pair(x, self.width * 2**level, f"down{level}")
            kept.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = pair(x, self.width * 2**self.depth, "bottom")
        for level in reversed(range(self.depth)):
            width = self.width * 2**level
            x = nn.ConvTranspose(width, (2, 2), (2, 2), name=f"rise{level}")(x)
            x = pair(jnp.concatenate([kept[level], x], axis=-1), width, f"up{level}")
        return nn.Conv(2, (1, 1), name="head")(x)


def densenet(
    width: int = 32, image: int = 64, depths: Sequence[int] = (6, 12, 24, 16)
) -> Model:
    """DenseNet-121 without its first pooling."""
    return linen(DenseNet(width, tuple(depths)), images(image))


def unet(width: int = 32, image: int = 64, depth: int = 4) -> Model:
    """U-Net."""
    return linen(UNet(width, depth), images(image))
