"""Find the leaves that a transform acts on, and refuse what does not fit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.sites import Sites
from jcompress.tensors import is_compressed


def find_leaves(
    transform: str,
    params: Any,
    names: Iterable[str],
    *,
    sites: Sites | None = None,
    source: str = "the sites",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    accept: tuple[type, ...] = (),
    advice: str = "give the tree of dense weights",
    dtypes: Any = jnp.floating,
    traced: str | None = None,
) -> dict[str, Any]:
    """Find the leaves that a transform is to convert, and check them.

    Args:
        transform: the caller's name, for the errors.
        params: the parameters.
        names: the leaves to find.
        sites: the sites of the function that uses `params`, with the same names; None
            if the names come from elsewhere.
        source: where the names come from, for the errors.
        shapes: the shapes that the leaves must have, without `sites`; None allows any.
        accept: types of compressed leaves that may arrive.
        advice: what to do about a leaf that is compressed otherwise, for the error.
        dtypes: the kind of dtypes that a leaf may have, such as `jnp.floating` or
            `jnp.inexact`; None allows any.
        traced: why a leaf must not be traced, for the error; None if it may be.

    Returns:
        The leaves by name, in the order of `names`: compressed leaves as they are,
        others with a shape and a dtype.

    Raises:
        MismatchError: a leaf is absent, of another shape, compressed, or of another
            dtype.
        ValueError: a leaf is traced and must not be.
    """
    present = dict(named_leaves(params))
    found = {}
    for name in names:
        if name not in present:
            raise MismatchError(
                _absent(transform, name, list(present), source, sites is not None)
            )
        leaf = present[name]
        exclude = f"exclude it by a rule ({name!r}, None)"
        if is_compressed(leaf) and not isinstance(leaf, accept):
            alone = f", or {exclude}" if sites is not None else ""
            raise MismatchError(
                f"{transform}: {name!r} is already a {type(leaf).__name__}; {advice}"
                f"{alone}"
            )
        shape = _wanted(name, sites, shapes)
        if shape is not None and tuple(np.shape(leaf)) != tuple(shape):
            place = "at its sites" if sites is not None else f"in {source}"
            again = "; trace the sites with this tree" if sites is not None else ""
            raise MismatchError(
                f"{transform}: {name!r} is {list(np.shape(leaf))} in the tree and "
                f"{list(shape)} {place}{again}"
            )
        parts = jax.tree.leaves(leaf)
        if traced and any(isinstance(part, jax.core.Tracer) for part in parts):
            raise ValueError(
                f"{transform}: {name!r} is traced, and {traced}; call it outside of jit"
            )
        if not hasattr(leaf, "dtype"):
            leaf = jnp.asarray(leaf)
        if dtypes is not None and not jnp.issubdtype(leaf.dtype, dtypes):
            raise MismatchError(
                f"{transform}: {name!r} is {leaf.dtype} {list(leaf.shape)}, and only "
                f"{kind_name(dtypes)} can be converted"
                + (f"; {exclude}" if sites is not None else "")
            )
        found[name] = leaf
    return found


def kind_name(dtypes: Any) -> str:
    """What numbers of a kind of dtypes are called in errors and tables."""
    return "floats" if dtypes is jnp.floating else "floats and complex numbers"


def _wanted(
    name: str, sites: Sites | None, shapes: Mapping[str, tuple[int, ...]] | None
) -> tuple[int, ...] | None:
    if sites is not None:
        return sites.of(name)[0].shape
    return None if shapes is None else shapes[name]


def _absent(
    transform: str, name: str, present: Sequence[str], source: str, sited: bool
) -> str:
    listed = ", ".join(present[:8]) + (", ..." if len(present) > 8 else "")
    text = (
        f"{transform}: {source} have {name!r}, which is not in the tree: "
        f"{listed or 'it is empty'}"
    )
    for other in present:
        if name.endswith("/" + other):
            prefix = name[: -len(other) - 1]
            if sited:
                return f"{text}; for this subtree pass sites=sites.below({prefix!r})"
            return f"{text}; give the whole tree, or {source} below {prefix!r}"
    for other in present:
        if other.endswith("/" + name):
            return f"{text}; pass the subtree {other[: -len(name) - 1]!r}"
    if not sited:
        return text
    return f"{text}; if the tree is part of what was traced, pass sites.below(prefix)"
