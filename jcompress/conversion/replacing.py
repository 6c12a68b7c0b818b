"""Put other leaves into a parameter tree, all of them after all were checked."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jcompress.conversion.finding import find_leaves
from jcompress.leaves import path_name
from jcompress.sites import Sites
from jcompress.tensors import is_compressed

Spec = TypeVar("Spec")


def replace_leaves(params: Any, made: Mapping[str, Any]) -> Any:
    """The tree with other leaves under the given names.

    A compressed leaf is one leaf, and so is None, on either side.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: made.get(path_name(path), leaf),
        params,
        is_leaf=lambda leaf: leaf is None or is_compressed(leaf),
    )


def convert_leaves(
    transform: str,
    params: Any,
    specs: Mapping[str, Spec],
    convert: Callable[[str, Any, Spec], Any],
    *,
    sites: Sites | None = None,
    source: str = "the sites",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    accept: tuple[type, ...] = (),
    advice: str = "give the tree of dense weights",
    dtypes: Any = jnp.floating,
    traced: str | None = None,
) -> Any:
    """Convert the named leaves of a tree, after all of them were found and checked.

    Args:
        transform: the caller's name, for the errors.
        params: the parameters.
        specs: what each leaf becomes, by its name.
        convert: makes the new leaf of a name, a leaf and its spec.
        sites: as of `find_leaves`, like all that follow.
        source: where the names come from.
        shapes: the shapes that the leaves must have.
        accept: types of compressed leaves that may arrive.
        advice: what to do about a leaf that is compressed otherwise.
        dtypes: the kind of dtypes that a leaf may have.
        traced: why a leaf must not be traced.

    Returns:
        A tree of the same structure but for the converted leaves.

    Raises:
        MismatchError, ValueError: as `find_leaves`.
    """
    found = find_leaves(
        transform,
        params,
        specs,
        sites=sites,
        source=source,
        shapes=shapes,
        accept=accept,
        advice=advice,
        dtypes=dtypes,
        traced=traced,
    )
    made = {name: convert(name, leaf, specs[name]) for name, leaf in found.items()}
    return replace_leaves(params, made)
