"""Second moments that a transform was given: those of each leaf, of the right shape."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jcompress.errors import MismatchError
from jcompress.sites import Sites, leaf_axes


def moments_of(
    transform: str,
    moments: Mapping[str, Any] | None,
    wanted: Mapping[str, str] | Iterable[str],
    sites: Sites,
) -> dict[str, Any]:
    """The second moments of the inputs of some leaves, after all were checked.

    Args:
        transform: the caller's name, for the errors.
        moments: by leaf, as `observe(fn, rules, SecondMoments())` gives them.
        wanted: the leaves that need some; as a mapping, with what needs them.
        sites: the sites of the function.

    Returns:
        Float [*S, K, K] for each wanted leaf.

    Raises:
        MismatchError: a leaf has none, or its moments are of another shape.
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
        uses = sites.of(path)
        axes, shape = leaf_axes(uses), uses[0].shape
        inputs = math.prod(shape[axis] for axis in axes.input)
        right = (*(shape[axis] for axis in axes.stack), inputs, inputs)
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
