"""What is trained of adapted leaves: taken out, put back, merged into the weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from jcompress.conversion import convert_leaves
from jcompress.errors import MismatchError
from jcompress.formats import Binary, Ternary
from jcompress.leaves import named_leaves
from jcompress.tensors import Adapted, QTensor, is_compressed
from jcompress.tensors.base import CompressedTensor
from jcompress.tensors.range_specs import FullRange, MeanAbsolute
from jcompress.tensors.specs import (
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    Weights,
)

Spec = TypeVar("Spec")

Adapters = dict[str, dict[str, jax.Array]]
"""The trainable factors `down` and `up` of each adapted leaf, by its name."""


def take_adapters(tree: Any) -> Adapters:
    """The trainable factors of every adapted leaf, as a tree of their own for optax.

    Args:
        tree: what `add_adapters` returned.

    Returns:
        For each adapted leaf, by name, its `down` [*S, R, K] and `up` [*S, N, R].

    Raises:
        MismatchError: no leaf is adapted.
    """
    found: Adapters = {
        name: {"down": leaf.down, "up": leaf.up}
        for name, leaf in named_leaves(tree)
        if isinstance(leaf, Adapted)
    }
    if not found:
        raise MismatchError(
            "take_adapters: no leaf of the tree is adapted; add_adapters does that"
        )
    return found


def put_adapters(tree: Any, adapters: Mapping[str, Mapping[str, jax.Array]]) -> Any:
    """The tree with other trainable factors; what is frozen stays.

    Args:
        tree: what `add_adapters` returned.
        adapters: what `take_adapters` returned, trained.

    Raises:
        MismatchError: the names are not those of the adapted leaves, or an array is
            absent, of another shape or no float.
    """
    names = [n for n, leaf in named_leaves(tree) if isinstance(leaf, Adapted)]
    absent = [name for name in names if name not in adapters]
    if absent:
        raise MismatchError(
            f"put_adapters: {absent[0]!r} has no adapter; adapted are: "
            f"{', '.join(names)}"
        )

    def place(name: str, leaf: Any, part: Mapping[str, jax.Array]) -> Adapted:
        if not isinstance(leaf, Adapted):
            raise MismatchError(
                f"put_adapters: {name!r} has an adapter but no adapted leaf; adapted "
                f"are: {', '.join(names)}"
            )
        try:
            return dataclasses.replace(leaf, down=part["down"], up=part["up"])
        except KeyError as error:
            raise MismatchError(
                f"put_adapters: the adapter of {name!r} has no {error}, only "
                f"{sorted(part)}"
            ) from None
        except ValueError as error:
            raise MismatchError(f"put_adapters: {name!r}: {error}") from None

    return _convert_adapted("put_adapters", tree, adapters, place)


def merge_adapters(tree: Any, *, requantize: bool = False) -> Any:
    """Make plain leaves of the adapted ones.

    Args:
        tree: a tree with adapted leaves.
        requantize: whether a leaf with a quantized base is rounded to the format of
            that base again, which costs accuracy; otherwise it becomes dense.

    Returns:
        The tree with a dense array, or a `QTensor`, for each adapted leaf.

    Raises:
        MismatchError: no leaf is adapted; or `requantize`, and a base is compressed but
            not quantized, so that the sum would not fit its storage.
    """

    def merged(name: str, leaf: Adapted, _: Any) -> Any:
        dense = leaf.dense()
        if not requantize or not is_compressed(leaf.base):
            return dense
        if not isinstance(leaf.base, QTensor):
            raise MismatchError(
                f"merge_adapters: the base of {name!r} is a "
                f"{type(leaf.base).__name__}, whose storage does not fit the sum; "
                "merge without requantize, then compress the dense leaf again"
            )
        return _requantized(dense, leaf.base)

    return _convert_adapted("merge_adapters", tree, take_adapters(tree), merged)


def _convert_adapted(
    transform: str,
    tree: Any,
    adapters: Mapping[str, Spec],
    convert: Callable[[str, Any, Spec], Any],
) -> Any:
    """Convert the leaves that adapters name, of whatever shapes and dtypes."""
    return convert_leaves(
        transform,
        tree,
        adapters,
        convert,
        source="the adapters",
        accept=(CompressedTensor,),
        dtypes=None,
    )


def _requantized(dense: jax.Array, base: QTensor) -> QTensor:
    *_, outputs, inputs = base.matrix_shape
    rows, groups = base.scales.shape[-2:]
    granularity: PerTensor | PerChannel | PerGroup | PerBlock = PerChannel()
    if rows not in (1, outputs):
        granularity = PerBlock(outputs=outputs // rows, inputs=inputs // groups)
    elif groups > 1:
        granularity = PerGroup(inputs // groups)
    elif rows == 1 and outputs > 1:
        granularity = PerTensor()
    by_mean = isinstance(base.format, Binary | Ternary)
    spec = Weights(
        format=base.format,
        granularity=granularity,
        range=MeanAbsolute() if by_mean else FullRange(),
        scales=base.scale_format,
    )
    return QTensor.quantize(
        dense,
        base.axes,
        spec,
        activation=base.activation,
        input_scales=base.input_scales,
    )
