"""Weights read from a file, put in the places of a model's parameter tree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcompress.conversion import replace_leaves
from jcompress.errors import MismatchError
from jcompress.interchange.layers import Tensors
from jcompress.leaves import named_leaves
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.axes import Axes


def place(params: Any, tensors: Tensors, names: Mapping[str, str]) -> Any:
    """Put weights that were read from a file into a parameter tree.

    The names of a file and those of a Flax model are a matter of the two; this helper
    takes the mapping, checks it, and gives each weight the shape of its leaf: a
    `QTensor` [K, N] stands for a kernel of several axes, such as [K, heads, size] or
    [heads, size, N], if these are K and N split up in their order.

    Args:
        params: the tree; what is not named stays.
        tensors: what a reader returned; what is not named is not used.
        names: for names of `tensors` those of leaves, such as
            `{"model.layers.0.mlp.up_proj.weight": "params/layer_0/up/kernel"}`.

    Returns:
        The tree with the weights in it. Arrays take the dtype of the leaf that they
        replace; compressed leaves stand for weights of that dtype.

    Raises:
        MismatchError: a name is not there, two weights go to one leaf, nothing is
            named, or a weight has another shape than its leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.tensors import QTensor
        >>> from jcompress.tensors.axes import Axes
        >>> from jcompress.tensors.specs import Weights
        >>> params = {"query": {"kernel": jnp.zeros((8, 2, 3)), "bias": jnp.zeros(6)}}
        >>> read = QTensor.quantize(jnp.ones((8, 6)), Axes((), (1,), (0,)), Weights())
        >>> found = {"q_proj.weight": read, "q_proj.bias": jnp.ones(6)}
        >>> names = {
        ...     "q_proj.weight": "query/kernel",
        ...     "q_proj.bias": "query/bias",
        ... }
        >>> placed = place(params, found, names)
        >>> placed["query"]["kernel"].shape, placed["query"]["kernel"].output_axes
        ((8, 2, 3), (1, 2))
    """
    leaves = dict(named_leaves(params))
    if not names:
        raise MismatchError("place: names= names nothing")
    made: dict[str, Any] = {}
    for source, target in names.items():
        if source not in tensors:
            raise MismatchError(
                f"place: {source!r} was not read; there are {_listed(tensors)}"
            )
        if target not in leaves:
            raise MismatchError(
                f"place: {target!r} is not in the tree; there are {_listed(leaves)}"
            )
        if target in made:
            raise MismatchError(f"place: two weights go to {target!r}")
        made[target] = _fitted(source, tensors[source], target, leaves[target])
    return replace_leaves(params, made)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")


def _fitted(source: str, weight: Any, target: str, leaf: Any) -> Any:
    shape, dtype = tuple(np.shape(leaf)), np.dtype(leaf.dtype)
    if isinstance(weight, QTensor):
        axes = _split(weight, shape)
        if axes is not None:
            return dataclasses.replace(
                weight,
                shape=shape,
                dtype=dtype,
                stack_axes=axes.stack,
                output_axes=axes.output,
                input_axes=axes.input,
            )
    elif not is_compressed(weight) and tuple(weight.shape) == shape:
        return jax.device_put(np.asarray(weight).astype(dtype))
    kind = f"a {type(weight).__name__}" if is_compressed(weight) else "an array"
    turned = (
        "; it is the other way round: transpose what was read, or keep= it"
        if tuple(weight.shape) == shape[::-1] and len(shape) > 1
        else ""
    )
    raise MismatchError(
        f"place: {source!r} is {kind} {list(weight.shape)}, and {target!r} is "
        f"{list(shape)}{turned}"
    )


def _split(weight: QTensor, shape: tuple[int, ...]) -> Axes | None:
    """The roles of the axes of `shape`, into which those of a leaf are split up."""
    if shape == weight.shape:
        return weight.axes
    roles = dict.fromkeys(weight.output_axes, "output")
    roles |= dict.fromkeys(weight.input_axes, "input")
    found: dict[str, list[int]] = {"stack": [], "output": [], "input": []}
    axis = 0
    for old, size in enumerate(weight.shape):
        whole = 1
        start = axis
        while axis < len(shape) and (whole < size or axis == start):
            whole *= shape[axis]
            found[roles.get(old, "stack")].append(axis)
            axis += 1
        if whole != size:
            return None
    if axis != len(shape):
        return None
    return Axes(tuple(found["stack"]), tuple(found["output"]), tuple(found["input"]))
