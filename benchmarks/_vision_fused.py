"""A network of our quantized convolutions, each with what follows it in its own call.

Written by hand over the graph of `Network.plain`: what a pass over the traced program
can reach. A result that only the next convolution reads is stored as its integers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _vision_models import Host, Network, same

from jcompress.formats import Int
from jcompress.kernels import Nonlinearity
from jcompress.kernels.quantized_conv import quantized_conv
from jcompress.tensors.ranges import scale_and_zero

EIGHT = Int(8, symmetric=False)
Scaling = tuple[Any, Any]
"""Scale and zero point."""


class _Node(NamedTuple):
    kind: str
    inputs: tuple[int, ...]
    given: Mapping[str, Any]


class _Graph:
    """The operations as a list of nodes; values are their numbers."""

    def __init__(self) -> None:
        self.nodes = [_Node("images", (), {})]

    def _new(self, kind: str, *inputs: int, **given: Any) -> int:
        self.nodes.append(_Node(kind, inputs, given))
        return len(self.nodes) - 1

    def conv(self, x: int, kernel: Host, bias: Host, **given: Any) -> int:
        """A convolution."""
        return self._new("conv", x, kernel=kernel, bias=bias, **given)

    def relu(self, x: int, top: float | None = None) -> int:
        """max(x, 0), and at most `top`."""
        return self._new("relu", x, top=top)

    def add(self, x: int, y: int) -> int:
        """The sum."""
        return self._new("add", x, y)

    def pool(self, x: int, *, size: int) -> int:
        """The maximum of windows."""
        return self._new("pool", x, size=size)

    def head(self, x: int, kernel: Host, bias: Host) -> int:
        """The mean over positions, and a dense layer."""
        return self._new("head", x, kernel=kernel, bias=bias)

    def readers(self, number: int) -> list[int]:
        """The nodes that read a node."""
        return [i for i, node in enumerate(self.nodes) if number in node.inputs]


def fused(
    model: Network, small: Mapping[str, Any], ranges: Mapping[str, Any]
) -> tuple[Callable[..., Any], Any]:
    """A function of a tree and images, and the tree.

    Args:
        model: the network.
        small: the compressed leaves by name.
        ranges: those of the inputs of the kernels by name.
    """
    graph = _Graph()
    last = model.plain(graph, 0)
    tree: dict[str, Any] = {}
    order = [i for i, node in enumerate(graph.nodes) if node.kind == "conv"]
    named = {number: graph.nodes[number].given["name"] for number in order}
    for number in order:
        leaf = small[named[number]].for_kernels()
        (span,) = ranges[named[number]]
        tree[str(number)] = {
            "values": leaf.values,
            "scales": leaf.scales,
            "scaling": scale_and_zero(span, EIGHT),
            "bias": jnp.asarray(graph.nodes[number].given["bias"]),
        }
    head = graph.nodes[last].given
    tree["head"] = {
        "kernel": jnp.asarray(head["kernel"]),
        "bias": jnp.asarray(head["bias"]),
    }
    return lambda tree, images: _run(graph, tree, images), tree


def _run(graph: _Graph, tree: Any, images: jax.Array) -> jax.Array:
    values: dict[int, Any] = {0: images}
    result = images
    for number, node in enumerate(graph.nodes):
        if number in values:
            continue
        if node.kind == "conv":
            out, value = _conv(graph, number, tree, values)
            values[out] = value
        elif node.kind == "pool":
            low, high = same(node.given["size"], 3, 2)
            edge = ((0, 0), (low, high), (low, high), (0, 0))
            values[number] = jax.lax.reduce_window(
                values[node.inputs[0]],
                -np.inf,
                jax.lax.max,
                (1, 3, 3, 1),
                (1, 2, 2, 1),
                edge,
            )
        elif node.kind == "head":
            mean = values[node.inputs[0]].mean((1, 2))
            result = mean @ tree["head"]["kernel"] + tree["head"]["bias"]
    return result


def _conv(
    graph: _Graph, number: int, tree: Any, values: dict[int, Any]
) -> tuple[int, jax.Array]:
    """The last node that a convolution's call computes, and its value."""
    node, mine = graph.nodes[number], tree[str(number)]
    after: dict[str, Any] = {}
    end = number
    while len(readers := graph.readers(end)) == 1:
        following = graph.nodes[readers[0]]
        if following.kind == "add" and "addend" not in after:
            (other,) = (i for i in following.inputs if i != end)
            if other not in values:
                break
            after["addend"] = values[other]
        elif following.kind == "relu" and "activation" not in after:
            six = following.given["top"] is not None
            after["activation"] = Nonlinearity.RELU6 if six else Nonlinearity.RELU
        else:
            break
        end = readers[0]
    if len(readers) == 1 and graph.nodes[readers[0]].kind == "conv":
        scale, zero = tree[str(readers[0])]["scaling"]
        after |= {"y_bits": 8, "y_scale": scale, "y_zero": zero}
    x, given = values[node.inputs[0]], node.given
    kernel, stride = given["kernel"].shape[:2], given["stride"]
    scale, zero = mine["scaling"]
    return end, quantized_conv(
        x,
        mine["values"],
        mine["scales"],
        bits=8,
        kernel=kernel,
        strides=(stride, stride),
        padding=(same(given["size"], kernel[0], stride),) * 2,
        groups=given["groups"],
        x_bits=8,
        x_scale=scale,
        x_zero=zero,
        bias=mine["bias"],
        **after,
    )
