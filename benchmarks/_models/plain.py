"""Perceptrons, VGG and residual networks."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from _models._model import Model, images, linen


class MLP(nn.Module):
    """Dense layers with dropout between them."""

    widths: Sequence[int]
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"dense{number}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(10, name="head")(x)


class ConvNorm(nn.Module):
    """A convolution and batch normalization."""

    width: int
    size: int = 3
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(
            self.width,
            (self.size, self.size),
            (self.stride, self.stride),
            feature_group_count=self.groups,
            use_bias=False,
            name="conv",
        )(x)
        norm = nn.BatchNorm(use_running_average=not train, name="norm")
        normed: jax.Array = norm(x)
        return normed


class VGG(nn.Module):
    """VGG-16: five stages of 3x3 convolutions, three dense layers."""

    width: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for stage, (times, depth) in enumerate(
            zip((1, 2, 4, 8, 8), (2, 2, 3, 3, 3), strict=True)
        ):
            for layer in range(depth):
                name = f"conv{stage}_{layer}"
                x = nn.relu(ConvNorm(self.width * times, name=name)(x, train))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, name="dense0")(x))
        x = nn.relu(nn.Dense(self.hidden, name="dense1")(x))
        return nn.Dense(10, name="head")(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.width, 3, self.stride, name="conv1")(x, train)
        y = ConvNorm(self.width, name="conv2")(nn.relu(y), train)
        if x.shape != y.shape:
            x = ConvNorm(self.width, 1, self.stride, name="shortcut")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, and a shortcut."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.width, 1, name="conv1")(x, train)
        y = ConvNorm(self.width, 3, self.stride, name="conv2")(nn.relu(y), train)
        y = ConvNorm(4 * self.width, 1, name="conv3")(nn.relu(y), train)
        if x.shape != y.shape:
            x = ConvNorm(4 * self.width, 1, self.stride, name="shortcut")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stages of residual blocks, each of twice the width and half the image."""

    width: int
    depths: Sequence[int]
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(ConvNorm(self.width, 7, 2, name="stem")(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                x = self.block(
                    self.width * 2**stage, stride, name=f"stage{stage}_{number}"
                )(x, train)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def mlp(width: int = 512, image: int = 28, dropout: float = 0.0) -> Model:
    """Two hidden layers, the second of half the width."""
    return linen(MLP((width, width // 2), dropout), images(image))


def vgg16(width: int = 64, image: int = 64) -> Model:
    """VGG-16 with batch normalization."""
    return linen(VGG(width, 8 * width), images(image))


def resnet18(
    width: int = 64, image: int = 128, depths: Sequence[int] = (2, 2, 2, 2)
) -> Model:
    """ResNet-18."""
    return linen(ResNet(width, tuple(depths), BasicBlock), images(image))


def resnet50(
    width: int = 64, image: int = 128, depths: Sequence[int] = (3, 4, 6, 3)
) -> Model:
    """ResNet-50."""
    return linen(ResNet(width, tuple(depths), Bottleneck), images(image))
