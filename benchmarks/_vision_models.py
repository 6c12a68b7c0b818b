"""ResNet-18, MobileNetV2 and U-Net: Flax models in evaluation, as others see them, too.

The weights are random, the statistics of batch normalization those of random images.
`Network` is the same computation in terms of a few operations, for libraries that know
nothing of Flax: it takes the weights in which the normalization has been folded.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import _models
import jax
import jax.numpy as jnp
import numpy as np
from _models import Model
from _models.mobile import MOBILE

from jcompress.leaves import named_leaves
from jcompress.rescaling import fold, folded

Host = np.ndarray


class Operations(Protocol):
    """What a library offers to compute a network; values are its own."""

    def conv(
        self,
        x: Any,
        kernel: Host,
        bias: Host,
        *,
        stride: int,
        groups: int,
        size: int,
        name: str,
    ) -> Any:
        """A convolution with "SAME" padding of images of `size`; kernel is HWIO.

        `name` is that of the kernel's leaf.
        """

    def relu(self, x: Any, top: float | None = None) -> Any:
        """max(x, 0), and at most `top`."""

    def add(self, x: Any, y: Any) -> Any:
        """The sum."""

    def pool(self, x: Any, *, size: int, window: int = 3) -> Any:
        """The maximum of square windows, two apart, with "SAME" padding."""

    def rise(self, x: Any, kernel: Host, bias: Host) -> Any:
        """A transposed convolution: of each position two by two; kernel is HWIO."""

    def join(self, x: Any, y: Any) -> Any:
        """The channels of both."""

    def head(self, x: Any, kernel: Host, bias: Host) -> Any:
        """A dense layer of the mean over all positions; kernel is [C, N]."""


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What "SAME" pads before and after an axis."""
    out = -(-size // stride)
    whole = max(0, (out - 1) * stride + kernel - size)
    return whole // 2, whole - whole // 2


class Network(NamedTuple):
    """A model at one size of images, its normalization folded.

    Attributes:
        name: for the tables.
        size: of an image's side.
        apply: `(variables, images) -> logits`.
        variables: its tree.
        plain: evaluates it in terms of `Operations`, given these and images.
    """

    name: str
    size: int
    apply: Callable[..., Any]
    variables: Any
    plain: Callable[[Operations, Any], Any]


class _Layers:
    """The folded layers by name, applied one after the other."""

    def __init__(self, ops: Operations, leaves: Mapping[str, Any], size: int) -> None:
        self.ops, self.leaves, self.size = ops, leaves, size

    def conv(self, x: Any, name: str, stride: int = 1, size: int | None = None) -> Any:
        kernel = np.asarray(self.leaves[f"params/{name}/conv/kernel"])
        bias = np.asarray(self.leaves[f"params/{name}/norm/bias"])
        grouped = name.endswith("depthwise")
        size = size or self.size
        self.size = -(-size // stride)
        return self.ops.conv(
            x,
            kernel,
            bias,
            stride=stride,
            groups=kernel.shape[3] if grouped else 1,
            size=size,
            name=f"params/{name}/conv/kernel",
        )

    def head(self, x: Any) -> Any:
        kernel, bias = (
            self.leaves[f"params/head/{name}"] for name in ("kernel", "bias")
        )
        return self.ops.head(x, np.asarray(kernel), np.asarray(bias))


def _resnet18(layers: _Layers, x: Any) -> Any:
    ops = layers.ops
    x = ops.relu(layers.conv(x, "stem", 2))
    x = ops.pool(x, size=layers.size)
    layers.size = -(-layers.size // 2)
    for stage in range(4):
        for number in range(2):
            name, size = f"stage{stage}_{number}", layers.size
            stride = 2 if stage and not number else 1
            y = ops.relu(layers.conv(x, f"{name}/conv1", stride))
            y = layers.conv(y, f"{name}/conv2")
            if f"params/{name}/shortcut/conv/kernel" in layers.leaves:
                x = layers.conv(x, f"{name}/shortcut", stride, size)
            x = ops.relu(ops.add(x, y))
    return layers.head(x)


def _mobilenet(layers: _Layers, x: Any) -> Any:
    ops, six = layers.ops, 6.0
    x = ops.relu(layers.conv(x, "stem", 2), six)
    for stage, (expansion, _, depth, step) in enumerate(MOBILE):
        for number in range(depth):
            name, stride = f"stage{stage}_{number}", 1 if number else step
            y = x
            if expansion != 1:
                y = ops.relu(layers.conv(y, f"{name}/expand"), six)
            y = ops.relu(layers.conv(y, f"{name}/depthwise", stride), six)
            y = layers.conv(y, f"{name}/project")
            x = ops.add(x, y) if number else y
    return layers.head(ops.relu(layers.conv(x, "last"), six))


def _unet(layers: _Layers, x: Any) -> Any:
    ops, leaves = layers.ops, layers.leaves

    def pair(x: Any, name: str) -> Any:
        for number in range(2):
            x = ops.relu(layers.conv(x, f"{name}_{number}"))
        return x

    kept = []
    for level in range(UNET_DEPTH):
        x = pair(x, f"down{level}")
        kept.append(x)
        x = ops.pool(x, size=layers.size, window=2)
        layers.size //= 2
    x = pair(x, "bottom")
    for level in reversed(range(UNET_DEPTH)):
        kernel, bias = (
            np.asarray(leaves[f"params/rise{level}/{n}"]) for n in ("kernel", "bias")
        )
        # Flax has the places of a window the other way round.
        x = ops.rise(x, kernel[::-1, ::-1], bias)
        layers.size *= 2
        x = pair(ops.join(kept[level], x), f"up{level}")
    kernel, bias = (np.asarray(leaves[f"params/head/{n}"]) for n in ("kernel", "bias"))
    name = "params/head/kernel"
    return ops.conv(x, kernel, bias, stride=1, groups=1, size=layers.size, name=name)


UNET_DEPTH = 4
_MADE: Mapping[str, tuple[Callable[..., Model], Callable[[_Layers, Any], Any]]] = {
    "ResNet-18": (_models.resnet18, _resnet18),
    "MobileNetV2": (_models.mobilenet, _mobilenet),
    "U-Net": (functools.partial(_models.unet, 16, depth=UNET_DEPTH), _unet),
}
NAMES = tuple(_MADE)


def network(name: str, size: int) -> Network:
    """A model by its name, for images [batch, size, size, 3]."""
    make, plain = _MADE[name]
    model = make(image=size)
    made = fold(model.evaluate, _settled(model), *model.inputs(1))
    leaves = dict(named_leaves(made.small))
    return Network(
        name,
        size,
        folded(model.evaluate, made.removed),
        made.small,
        lambda ops, x: plain(_Layers(ops, leaves, size), x),
    )


def _settled(model: Model) -> Any:
    """Random variables whose statistics are those of a batch of random images.

    Training forgets a 100th of its statistics in a step: from 0, what it then has is a
    100th of those of the batch.
    """
    variables = model.variables()
    empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updated = jax.jit(model.train)(
        {**variables, "batch_stats": empty}, *model.inputs(8)
    )
    found = jax.tree.map(lambda leaf: leaf * 100, updated["batch_stats"])
    return {**variables, "batch_stats": found}
