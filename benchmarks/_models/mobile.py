"""Inverted residuals: MobileNetV2 and, with squeeze and excitation, EfficientNet."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from _models._model import Model, images, linen
from _models.plain import ConvNorm

Stage = tuple[int, float, int, int]
"""Expansion, width as a multiple of the model's, number of blocks, stride."""

MOBILE: tuple[Stage, ...] = (
    (1, 0.5, 1, 1),
    (6, 0.75, 2, 2),
    (6, 1, 3, 2),
    (6, 2, 4, 2),
    (6, 3, 3, 1),
    (6, 5, 3, 2),
    (6, 10, 1, 1),
)
EFFICIENT: tuple[Stage, ...] = (
    (1, 0.5, 1, 1),
    (6, 0.75, 2, 2),
    (6, 1.25, 2, 2),
    (6, 2.5, 3, 2),
    (6, 3.5, 3, 1),
    (6, 6, 4, 2),
    (6, 10, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project."""

    width: int
    expansion: int
    stride: int
    excite: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act = nn.swish if self.excite else nn.relu6
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = act(ConvNorm(hidden, 1, name="expand")(y, train))
        depthwise = ConvNorm(hidden, 3, self.stride, hidden, name="depthwise")
        y = act(depthwise(y, train))
        if self.excite:
            z = y.mean((1, 2), keepdims=True)
            z = act(nn.Conv(hidden // 4, (1, 1), name="squeeze")(z))
            y = y * nn.sigmoid(nn.Conv(hidden, (1, 1), name="excite")(z))
        y = ConvNorm(self.width, 1, name="project")(y, train)
        return x + y if x.shape == y.shape else y


class Mobile(nn.Module):
    """Stages of inverted residuals between two plain convolutions."""

    width: int
    stages: Sequence[Stage]
    excite: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        act = nn.swish if self.excite else nn.relu6
        x = act(ConvNorm(self.width, 3, 2, name="stem")(x, train))
        for stage, (expansion, times, depth, stride) in enumerate(self.stages):
            for number in range(depth):
                x = InvertedResidual(
                    int(self.width * times),
                    expansion,
                    1 if number else stride,
                    self.excite,
                    name=f"stage{stage}_{number}",
                )(x, train)
        x = act(ConvNorm(40 * self.width, 1, name="last")(x, train))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def mobilenet(
    width: int = 32, image: int = 128, stages: Sequence[Stage] = MOBILE
) -> Model:
    """MobileNetV2."""
    return linen(Mobile(width, tuple(stages), False), images(image))


def efficientnet(
    width: int = 32, image: int = 128, stages: Sequence[Stage] = EFFICIENT
) -> Model:
    """Like EfficientNet-B0, with 3x3 kernels throughout."""
    return linen(Mobile(width, tuple(stages), True), images(image))
