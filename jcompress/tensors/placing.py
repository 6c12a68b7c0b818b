"""Matrices of weights that lie on several devices, cut by their rows."""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jcompress.tensors.axes import Axes


def rows_of(leaf: Any, axes: Axes) -> NamedSharding | None:
    """How the rows of a leaf's matrix [*S, N, K] lie on a mesh.

    Args:
        leaf: a weight.
        axes: the role of each of its axes.

    Returns:
        The sharding of [*S, N]; None if the leaf is traced, lies on one device or is
        whole on each, or if shardings are part of the types of its mesh.
    """
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    place = leaf.sharding
    if not isinstance(place, NamedSharding) or place.is_fully_replicated:
        return None
    if any(kind != AxisType.Auto for kind in place.mesh.axis_types):
        return None
    spec = (*place.spec, *(None,) * (leaf.ndim - len(place.spec)))
    rows = spec[axes.output[0]] if axes.output else None
    names = (*(spec[axis] for axis in axes.stack), rows)
    if not any(names):
        return None
    return NamedSharding(place.mesh, PartitionSpec(*names))


def keep_rows(array: jax.Array, place: NamedSharding | None) -> jax.Array:
    """Have what belongs to rows, [*S, N, ...], lie as `rows_of` says; under `jit`.

    Arrays with another number of rows, such as scales that several share, stay free.
    """
    if place is None:
        return array
    rows = len(place.spec) - 1
    names = place.spec[rows]
    names = names if isinstance(names, tuple) else (names,)
    parts = [place.mesh.shape[name] for name in names if name is not None]
    for part in parts:
        if array.ndim <= rows or array.shape[rows] % part:
            return array
    kept: jax.Array = jax.lax.with_sharding_constraint(array, place)
    return kept
