"""The network of the main job: a small residual CNN with batch normalisation."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jcompress.recipes.data import CLASSES


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, figure 2).

    Attributes:
        width: channels of the output.
        stride: of the first convolution; the shortcut is projected if it or the
            number of channels changes the shape.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Apply the block: float[N, H, W, C] -> float[N, H/stride, W/stride, width]."""
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9)
        strides = (self.stride, self.stride)
        y = nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)
        y = nn.relu(norm()(y))
        y = nn.Conv(self.width, (3, 3), use_bias=False)(y)
        y = norm()(y)
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), strides, use_bias=False, name="project")(x)
            x = norm(name="project_norm")(x)
        return nn.relu(x + y)


class ResidualCNN(nn.Module):
    """A stem, one residual block for each width, mean pooling and a classifier.

    Every block but the first halves height and width.

    Attributes:
        widths: channels of the blocks.
    """

    widths: tuple[int, ...] = (32, 64)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classify float[N, H, W, 1] images; returns float32[N, 10] logits.

        Args:
            images: pixel values in [0, 1].
            train: normalise by the statistics of the batch and update the running
                ones, instead of using the running ones.
        """
        x = nn.Conv(self.widths[0], (3, 3), use_bias=False, name="stem")(images)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="stem_norm")(x))
        for index, width in enumerate(self.widths):
            block = ResidualBlock(
                width, stride=1 if index == 0 else 2, name=f"block_{index}"
            )
            x = block(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(CLASSES, name="head")(x)


def init_model(model: ResidualCNN, key: jax.Array) -> dict[str, Any]:
    """Fresh variables of the model for 8 x 8 images: `params` and `batch_stats`."""
    return dict(model.init(key, jnp.zeros((1, 8, 8, 1), jnp.float32)))
