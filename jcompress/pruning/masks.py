"""Which weights stay: trees of Booleans, True for keep."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.pruning._host import on_host, place_like
from jcompress.pruning.ranking import choose
from jcompress.pruning.spec import Prune, Sparsity, make_plan
from jcompress.rules import Rules
from jcompress.sites import Sites
from jcompress.tensors import is_compressed


def make_masks(
    scores: Any,
    rules: Rules[Prune],
    *,
    sites: Sites,
    sparsity: Sparsity | None = None,
    step: int | jax.Array | None = None,
) -> Any:
    """Choose which weights stay, by their scores.

    Groups are removed from the lowest score upwards, and of equal scores the first
    in the leaf goes first (over several leaves: in tree order), so the count is exact
    whatever the scores: of G competing groups `round(sparsity * G)` go, but one always
    stays. A rule with a threshold removes what scores less instead. It can be traced,
    with the sparsity as an array too. On a CPU nothing is
    compiled for scores that are not traced; the masks are the same.

    Args:
        scores: a tree like the parameters, such as `score_by_magnitude(params)` or any
            other of `jcompress.pruning.scores`.
        rules: ordered pairs of a predicate and a `Prune`; the first match wins. A rule
            for many leaves passes over those that hold neither floats nor complex
            numbers.
        sites: the sites of the function that these parameters belong to.
        sparsity: for rules that have none of their own.
        step: where schedules are read.

    Returns:
        A tree of the structure of `scores`: Boolean arrays at the pruned leaves, True
        for keep, and None at the others, so that nothing is stored for them.

    Raises:
        MismatchError: a rule matches nothing, does not fit its leaves or has no
            sparsity; a leaf is missing or has a score that is NaN (checked outside of
            tracing); a schedule without a `step`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.pruning import Prune, Unstructured
        >>> from jcompress.pruning.scores import score_by_magnitude
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.array([[4.0, -1.0], [2.0, -3.0]])}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 2)))
        >>> scores = score_by_magnitude(params)
        >>> rules = [(..., Prune(pattern=Unstructured(), sparsity=0.5))]
        >>> masks = make_masks(scores, rules, sites=sites)
        >>> apply_masks(params, masks)["w"].tolist()
        [[4.0, 0.0], [0.0, -3.0]]
    """
    plan = make_plan(rules, sites, sparsity, "make_masks")
    found = plan.find(scores)
    if step is None and plan.scheduled:
        raise MismatchError(
            "make_masks: a sparsity or threshold is a schedule; say at which step="
        )
    return place_masks(scores, choose(plan, found, 0 if step is None else step))


def apply_masks(params: Any, masks: Any) -> Any:
    """Set the weights that a mask removes to zero.

    Args:
        params: a tree of arrays; gradients serve as well.
        masks: what `make_masks` returns; leaves are matched by name.

    Returns:
        The tree with exact zeros, each leaf of its own dtype.

    Raises:
        MismatchError: a mask has no leaf of its name and shape or is not Boolean, or
            there is no mask.
    """
    return apply_by_name("apply_masks", params, dict(named_leaves(masks)))


def apply_by_name(transform: str, tree: Any, masks: Mapping[str, Any]) -> Any:
    """Set what masks given by leaf name remove to zero."""
    if not masks:
        raise MismatchError(f"{transform}: the tree of masks holds no mask")
    for name, mask in masks.items():
        if mask.dtype != np.bool_:
            raise MismatchError(
                f"{transform}: the mask of {name!r} is {mask.dtype}; masks are "
                "Boolean, True for keep"
            )
    return convert_leaves(
        transform,
        tree,
        masks,
        _masked,
        source="the masks",
        shapes={name: tuple(np.shape(mask)) for name, mask in masks.items()},
        advice="mask before converting",
        dtypes=None,
    )


def _masked(name: str, leaf: Any, mask: Any) -> jax.Array:
    host, keep = on_host(leaf), on_host(mask)
    if host is not None and keep is not None:
        return place_like(np.where(keep, host, np.zeros((), host.dtype)), leaf)
    return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def place_masks(tree: Any, masks: Mapping[str, jax.Array]) -> Any:
    """A tree of the structure of `tree` with masks by name, and None elsewhere."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: masks.get(path_name(path)), tree, is_leaf=is_compressed
    )
