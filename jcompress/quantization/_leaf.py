"""One leaf becomes the small numbers that are stored for it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jcompress.errors import MismatchError
from jcompress.quantization.learned import (
    LearnedScales,
    learned_numbers,
    learned_range,
)
from jcompress.quantization.spec import Quantize
from jcompress.rounding import Nearest, Rounding
from jcompress.rounding.base import Rounded
from jcompress.sites import PRODUCTS, Site, leaf_axes
from jcompress.statistics.moments import in_groups, out_of_groups
from jcompress.tensors import QTensor, WithOutliers
from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.outliers import split_outliers
from jcompress.tensors.placing import keep_rows, rows_of
from jcompress.tensors.ranges import InputScale, Range
from jcompress.tensors.specs import (
    Activation,
    MovingAverage,
    Static,
    Weights,
)


def _products(sites: Sequence[Site]) -> list[Site]:
    return [site for site in sites if site.operation in PRODUCTS]


def convert_leaf(
    path: str,
    leaf: Any,
    spec: Quantize,
    uses: Sequence[Site],
    ranges: Mapping[str, Sequence[Range]],
    moments: jax.Array | None,
    learned: LearnedScales | None,
) -> QTensor | WithOutliers:
    """The small numbers of a leaf, with scales, and what its inputs become.

    Args:
        path: its name.
        leaf: dense.
        spec: the formats; with one for the weight.
        uses: the sites of the leaf.
        ranges: by name, of the inputs of its products.
        moments: of its inputs, if they decide its numbers; of each group of them for
            the kernel of a convolution in groups.
        learned: its scales, if they were trained.
    """
    assert spec.weights is not None
    if spec.weights.outliers:
        axes = leaf_axes(uses)
        matrix, places, values = _split(
            jnp.asarray(leaf), axes, spec.weights.outliers, rows_of(leaf, axes)
        )
        if _known(values) and not np.isfinite(np.asarray(values)).all():
            raise ValueError(_broken(path, leaf))
        plain = dataclasses.replace(spec.weights, outliers=0.0)
        rest = from_matrix(matrix, axes, leaf.shape)
        own = dataclasses.replace(spec, weights=plain)
        base = convert_leaf(path, rest, own, uses, ranges, moments, learned)
        assert isinstance(base, QTensor)
        return WithOutliers(
            base=base,
            places=places,
            values=values,
            shape=leaf.shape,
            dtype=leaf.dtype,
            stack_axes=axes.stack,
            output_axes=axes.output,
            input_axes=axes.input,
        )
    products = _products(uses)
    activation = spec.activation if products else None
    axes = leaf_axes(uses)
    remembered: dict[str, Any] = {
        "activation": activation,
        "input_scales": _input_scales(path, activation, len(products), ranges),
    }
    if learned is not None and activation is not None and learned.inputs:
        remembered["input_scales"] = tuple(
            InputScale.of(learned_range(one, activation.format), activation.format)
            for one in learned.inputs
        )
    if learned is not None and learned.weights is not None:
        if _known(leaf) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(_broken(path, leaf))
        numbers = learned_numbers(
            jnp.asarray(leaf), axes, learned.weights, spec.weights.format
        )
        tensor = QTensor.pack(*numbers, spec.weights, leaf, axes, **remembered)
    elif isinstance(spec.rounding, Nearest) and not _apart(moments, axes):
        tensor = QTensor.quantize(
            leaf, axes, spec.weights, importance=moments, **remembered
        )
    else:
        values, scales, zeros = _rounded(
            jnp.asarray(leaf),
            moments,
            axes,
            spec.weights,
            spec.rounding,
            rows_of(leaf, axes),
        )
        tensor = QTensor.pack(
            values, scales, zeros, spec.weights, leaf, axes, **remembered
        )
    # A number that is not finite makes the scale so that serves it.
    if _known(tensor.scales) and not np.isfinite(np.asarray(tensor.float_scales)).all():
        raise ValueError(_broken(path, leaf))
    return tensor


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _rounded(
    leaf: jax.Array,
    moments: jax.Array | None,
    axes: Axes,
    weights: Weights,
    rounding: Rounding,
    place: NamedSharding | None,
) -> Rounded:
    matrix = in_groups(keep_rows(to_matrix(leaf, axes), place), moments)
    made = rounding.round(matrix, weights, moments)

    def whole(array: jax.Array) -> jax.Array:
        return keep_rows(out_of_groups(array, len(axes.stack)), place)

    return Rounded(*jax.tree.map(whole, tuple(made)))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _split(
    leaf: jax.Array, axes: Axes, fraction: float, place: NamedSharding | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    matrix, places, values = split_outliers(to_matrix(leaf, axes), fraction)
    return keep_rows(matrix, place), places, values


def _apart(moments: jax.Array | None, axes: Axes) -> bool:
    """Whether groups of outputs have moments of their own."""
    return moments is not None and moments.ndim > len(axes.stack) + 2


def _known(array: jax.Array) -> bool:
    return not isinstance(array, jax.core.Tracer)


def _broken(path: str, leaf: Any) -> str:
    count = int((~np.isfinite(np.asarray(leaf).astype(np.float32))).sum())
    if count:
        return (
            f"quantize: {path!r} holds {count} of {leaf.size} numbers that are not "
            "finite in float32; a scale taken from them would spoil the whole leaf"
        )
    return (
        f"quantize: the weights of {path!r} that share a scale span more than the "
        "largest float32; use a format with symmetric=True"
    )


def _input_scales(
    path: str,
    activation: Activation | None,
    products: int,
    ranges: Mapping[str, Sequence[Range]],
) -> tuple[InputScale, ...]:
    stored = MovingAverage | Static
    if activation is None or not isinstance(activation.range, stored):
        return ()
    if path not in ranges:
        given = ", ".join(ranges) or "none"
        raise MismatchError(
            f"quantize: the activation of {path} has {activation.range!r}, and "
            f"`ranges` has none for it (it has: {given}); pass what calibration or "
            "training collected, or use range=Dynamic()"
        )
    if len(ranges[path]) != products:
        raise MismatchError(
            f"quantize: {path} is in {products} products and `ranges` has "
            f"{len(ranges[path])} for it"
        )
    found = tuple(
        Range(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32))
        for low, high in ranges[path]
    )
    empty = [_known(low) and not np.isfinite(np.asarray(low)).all() for low, _ in found]
    if any(empty) and not all(empty):
        raise MismatchError(
            f"quantize: {path} is in {products} products, and the range of number "
            f"{empty.index(True)} has seen no data; calibrate with inputs that reach it"
        )
    # As in `fake_quant`, a range that has seen no data is that of each input.
    if all(empty):
        return ()
    return tuple(InputScale.of(one, activation.format) for one in found)
