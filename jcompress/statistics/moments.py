"""Second moments that a transform was given: checked, and beside the right weights."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jcompress.errors import MismatchError
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors.axes import matrix_shape
from jcompress.tensors.specs import PerBlock, PerTensor, Weights


def groups_of(sites: Sites, path: str) -> int:
    """In how many groups the inputs of a leaf are observed: 1 but for convolutions.

    Raises:
        MismatchError: its products have different numbers of groups.
    """
    found = {site.groups for site in sites.products(path)} or {1}
    if len(found) > 1:
        raise MismatchError(
            f"{path!r} is the kernel of convolutions with {sorted(found)} groups, so "
            "its inputs have no moments of one shape; exclude it by a rule "
            f"({path!r}, None)"
        )
    return found.pop()


def shared_by_groups(sites: Sites, path: str, weights: Weights | None) -> object:
    """What of a format makes groups of a convolution share a scale, or None.

    Each group has inputs of its own, from which its numbers follow, apart from those
    of the others: so its scales must be its own.
    """
    groups = groups_of(sites, path)
    if groups == 1 or weights is None:
        return None
    uses, per = sites.of(path), weights.granularity
    _, outputs, _ = matrix_shape(uses[0].shape, leaf_axes(uses))
    if weights.scales.has_factor:
        return weights.scales
    high = per.outputs if isinstance(per, PerBlock) else 1
    whole = isinstance(per, PerTensor) or outputs // groups % high != 0
    return per if whole else None


def in_groups(matrix: jax.Array, moments: jax.Array | None) -> jax.Array:
    """A matrix as copies that have moments each: [*S, N, K] -> [*S, G, N / G, K].

    Of a convolution in G > 1 groups each run of N / G outputs meets inputs of its own,
    which have moments of their own, [*S, G, K, K]. Other matrices, and those without
    moments, stay as they are.
    """
    if moments is None or moments.ndim == matrix.ndim:
        return matrix
    groups = moments.shape[-3]
    *stacks, outputs, inputs = matrix.shape
    return matrix.reshape(*stacks, groups, outputs // groups, inputs)


def out_of_groups(matrix: jax.Array, stacks: int) -> jax.Array:
    """Undo `in_groups`: [*S, G, N / G, K] -> [*S, N, K]; also for rows of scales.

    Args:
        matrix: what `in_groups` gave, or something that leads with the same axes.
        stacks: how many axes S has.
    """
    if matrix.ndim == stacks + 2:
        return matrix
    return matrix.reshape(*matrix.shape[:stacks], -1, matrix.shape[-1])


def moments_of(
    transform: str,
    moments: Mapping[str, Any] | None,
    wanted: Mapping[str, str] | Iterable[str],
    sites: Sites,
    *,
    grouped: bool = False,
) -> dict[str, Any]:
    """The second moments of the inputs of some leaves, after all were checked.

    Args:
        transform: the caller's name, for the errors.
        moments: by leaf, as `observe(fn, rules, SecondMoments())` gives them.
        wanted: the leaves that need some; as a mapping, with what needs them.
        sites: the sites of the function.
        grouped: whether the transform knows what to do with the kernel of a
            convolution in groups (see `in_groups`).

    Returns:
        Float [*S, K, K] for each wanted leaf; [*S, G, K, K] for the kernel of a
        convolution in G > 1 groups.

    Raises:
        MismatchError: a leaf has none, its moments are of another shape, or it is the
            kernel of a convolution in groups and the transform takes none.
        ValueError: moments hold a number that is not finite.
    """
    made: dict[str, Any] = {}
    given = moments or {}
    for path in wanted:
        if path not in given:
            why = f", which {wanted[path]} needs" if isinstance(wanted, Mapping) else ""
            raise MismatchError(
                f"{transform}: moments has none of {path!r}{why}; collect them with "
                "observe(fn, rules, SecondMoments()) and the same rules"
            )
        uses, groups = sites.of(path), groups_of(sites, path)
        if groups > 1 and not grouped:
            raise MismatchError(
                f"{transform}: {path!r} is the kernel of a convolution in {groups} "
                "groups, each of which has moments of its own, and it takes those of "
                f"one matrix; exclude it by a rule ({path!r}, None)"
            )
        axes, shape = leaf_axes(uses), uses[0].shape
        inputs = math.prod(shape[axis] for axis in axes.input)
        apart = (groups,) if groups > 1 else ()
        right = (*(shape[axis] for axis in axes.stack), *apart, inputs, inputs)
        found = given[path]
        if tuple(np.shape(found)) != right:
            raise MismatchError(
                f"{transform}: the moments of {path!r} are {list(np.shape(found))}, "
                f"not {list(right)}"
            )
        traced = isinstance(found, jax.core.Tracer)
        if not traced and not np.isfinite(found).all():
            raise ValueError(
                f"{transform}: the moments of {path!r} hold numbers that are not finite"
            )
        made[path] = found
    return made
