"""Means of trees of parameters: soups, and differences from a common start."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.tensors import is_compressed


def average(trees: Sequence[Any], *, weights: Sequence[float] | None = None) -> Any:
    """The mean of the parameters of several models: a uniform or weighted soup.

    It is one model, as fast and as large as each. Works for models that were trained
    from one common start, or made alike by `align`; recompute the statistics of a batch
    norm afterwards.

    Args:
        trees: of one structure, with dense leaves. What is no float must be the same
            in all.
        weights: one number for each tree, summing to 1; None for all alike. They may
            be negative.

    Returns:
        A tree of that structure; the mean is taken in float32 (float64 for float64) and
        rounded to the dtype of the leaf.

    Raises:
        MismatchError: there is no tree, two differ in names, shapes, dtypes or in what
            is no float, or a leaf is compressed.
        ValueError: there is not one finite weight for each tree, or they do not sum to
            1.

    References:
        Wortsman et al. 2022, "Model soups", section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.merging import average
        >>> average([{"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}])["w"].tolist()
        [2.5]
    """
    trees = list(trees)
    check_alike("average", trees)
    shares = np.full(len(trees), 1 / len(trees))
    if weights is not None:
        shares = np.asarray(weights, np.float64)
        if shares.shape != (len(trees),) or not np.isfinite(shares).all():
            raise ValueError(
                f"average: weights are one finite number for each of {len(trees)} "
                f"trees, not {weights!r}"
            )
        if abs(shares.sum() - 1) > 1e-4:
            raise ValueError(f"average: weights sum to {shares.sum():.6g}, not to 1")
    return jax.tree.map(lambda *leaves: _mixed(leaves, shares), *trees)


def add_tasks(
    base: Any, tuned: Sequence[Any], *, amounts: float | Sequence[float] = 1.0
) -> Any:
    """Add what fine-tuned models have learned to the model that they came from.

        base + sum over i of amounts[i] (tuned[i] - base)

    A negative amount makes the model forget a task.

    Args:
        base: the tree that all were tuned from.
        tuned: trees of the same structure.
        amounts: one number for all, or one for each.

    Returns:
        A tree of that structure; what is no float is that of `base`.

    Raises:
        MismatchError: there is no tuned tree, or trees differ as in `average`.
        ValueError: there is not one finite amount for each tree.

    References:
        Ilharco et al. 2023, "Editing Models with Task Arithmetic", section 2.
    """
    tuned = list(tuned)
    if not tuned:
        raise MismatchError("add_tasks: there is no tuned tree")
    check_alike("add_tasks", [base, *tuned])
    each = np.asarray(amounts, np.float64)
    if each.shape not in ((), (len(tuned),)) or not np.isfinite(each).all():
        raise ValueError(
            f"add_tasks: amounts are one finite number, or one for each of "
            f"{len(tuned)} trees, not {amounts!r}"
        )
    each = np.broadcast_to(each, (len(tuned),))
    shares = np.concatenate([[1 - each.sum()], each])
    return jax.tree.map(lambda *leaves: _mixed(leaves, shares), base, *tuned)


class Soup(NamedTuple):
    """What `greedy_soup` made.

    Attributes:
        params: the mean of the chosen trees.
        members: their numbers, in the order in which they were taken.
        score: of the mean.
    """

    params: Any
    members: tuple[int, ...]
    score: float


def greedy_soup(
    trees: Sequence[Any], score: Callable[[Any], float], *, scores: Any = None
) -> Soup:
    """Average those models that make the mean better on held-out data.

    Beginning with the best, each further one is taken into the mean if the score does
    not fall: never worse than the best alone, on the data of the score.

    Args:
        trees: as for `average`.
        score: the held-out score of a tree; more is better.
        scores: those of the trees, if they are known; None computes them.

    Returns:
        The soup.

    Raises:
        MismatchError: as `average`.
        ValueError: there is not one score for each tree, or one is NaN.

    References:
        Wortsman et al. 2022, algorithm 1.
    """
    trees = list(trees)
    check_alike("greedy_soup", trees)
    known = [float(score(tree)) for tree in trees] if scores is None else list(scores)
    if len(known) != len(trees):
        raise ValueError(
            f"greedy_soup: there are {len(known)} scores for {len(trees)} trees"
        )
    if np.isnan(np.asarray(known, np.float64)).any():
        raise ValueError(f"greedy_soup: a score is not a number: {known}")
    order = sorted(range(len(trees)), key=lambda number: -float(known[number]))
    taken, params, best = [order[0]], trees[order[0]], float(known[order[0]])
    for number in order[1:]:
        tried = average([trees[i] for i in [*taken, number]])
        found = float(score(tried))
        if found >= best:
            taken, params, best = [*taken, number], tried, found
    return Soup(params, tuple(taken), best)


def check_alike(transform: str, trees: Sequence[Any]) -> None:
    """Raise MismatchError unless trees differ in their floats alone."""
    if not trees:
        raise MismatchError(f"{transform}: there is no tree")
    first = dict(named_leaves(trees[0]))
    for name, leaf in first.items():
        if is_compressed(leaf):
            raise MismatchError(
                f"{transform}: {name!r} is a {type(leaf).__name__}; merge the dense "
                "weights, and compress the result"
            )
    for number, tree in enumerate(trees[1:], 1):
        other = dict(named_leaves(tree))
        odd = sorted(set(first) ^ set(other))
        kinds: list[Any] = [jax.tree.structure(one) for one in (trees[0], tree)]
        if odd or kinds[0] != kinds[1]:
            what = f"{odd[0]!r} is in one only" if odd else "their containers differ"
            raise MismatchError(
                f"{transform}: tree {number} is of another structure than tree 0: "
                f"{what}"
            )
        for name, leaf in first.items():
            ours, theirs = (
                (jnp.shape(x), jnp.result_type(x)) for x in (leaf, other[name])
            )
            if ours != theirs:
                raise MismatchError(
                    f"{transform}: {name!r} is {ours[1]} {list(ours[0])} in tree 0 and "
                    f"{theirs[1]} {list(theirs[0])} in tree {number}"
                )


def wide_dtype(dtype: Any) -> Any:
    """What sums of a float dtype are taken in: float32 for those that are narrower."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize < 4
    return jnp.float32 if narrow else dtype


def _mixed(leaves: Sequence[Any], shares: np.ndarray[Any, Any]) -> Any:
    dtype = jnp.result_type(leaves[0])
    if not jnp.issubdtype(dtype, jnp.inexact):
        return leaves[0]
    wide = wide_dtype(dtype)
    parts = (
        jnp.asarray(leaf).astype(wide) * np.asarray(share, np.float64).astype(wide)
        for leaf, share in zip(leaves, shares, strict=True)
    )
    first, *rest = parts
    return sum(rest, first).astype(dtype)
