"""How much each block or layer matters: which may go."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.depth.blocks import check_blocks, find_block, named
from jcompress.depth.passing import compare_passing, unlikeness
from jcompress.depth.removing import skipped
from jcompress.depth.stacks import find_layers
from jcompress.errors import MismatchError
from jcompress.shrinking.free import Named
from jcompress.shrinking.groups import Groups
from jcompress.shrinking.plan import cut_inputs, cut_outputs, shrink, shrunk
from jcompress.shrinking.scoring import Scores
from jcompress.tracing.trace import is_array, trace


@dataclasses.dataclass(frozen=True)
class BlockInfluence:
    """How far a block turns what passes through it; 0 if it passes that on unchanged.

    1 less the mean cosine, along the last axis, of what enters and what leaves it; 0
    for a block in a branch that the examples do not take. One evaluation of the
    function scores all blocks.

    References:
        Men et al. 2024, "ShortGPT", equation 1.
    """


@dataclasses.dataclass(frozen=True)
class OutputSimilarity:
    """How far the results turn when a block is left out; 0 if they stay as they are.

    1 less the mean cosine, along the last axis, of the results' arrays of floats with
    and without it. One evaluation of the function for each block, and one more.
    """


@dataclasses.dataclass(frozen=True)
class MetricDrop:
    """How much a metric falls when a block is left out; below 0 if it rises.

    One evaluation of the function for each block, and one more.

    Attributes:
        metric: `metric(result)`: a number; more is better.
    """

    metric: Callable[[Any], Any]


Importance = BlockInfluence | OutputSimilarity | MetricDrop
"""What the score of a block or layer says; the lowest goes first."""
_INFLUENCE = BlockInfluence()


def score_blocks(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    blocks: Sequence[str],
    by: Importance = _INFLUENCE,
) -> dict[str, float]:
    """Score blocks that are listed one by one; the lowest matters least.

    Args:
        fn: the function.
        variables: its tree.
        *args: its other arguments: examples.
        blocks: the candidates, as of `skipped`.
        by: what a score says.

    Returns:
        A number by block.

    Raises:
        MismatchError: as `skipped`; or the results have no array of floats to compare.
        TypeError: `by` is none of the three.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.depth.removing import remove_blocks, skipped
        >>> def model(params, x):
        ...     for name in ("a", "b", "c"):
        ...         x = x + jnp.tanh(x @ params[name]["w"])
        ...     return x
        >>> eye, none = jnp.eye(2), jnp.zeros((2, 2))
        >>> params = {"a": {"w": eye}, "b": {"w": none}, "c": {"w": -eye}}
        >>> x = jnp.asarray([[1.0, 3.0]])
        >>> scores = score_blocks(model, params, x, blocks=["a", "b", "c"])
        >>> least = sorted(scores, key=scores.get)[:1]
        >>> least
        ['b']
        >>> small = remove_blocks(params, least)
        >>> bool(jnp.allclose(skipped(model, least)(small, x), model(params, x)))
        True
    """
    check_blocks(blocks, [name for name, _ in named(variables)], "score_blocks")
    _check(by, "score_blocks")
    if isinstance(by, BlockInfluence):
        traced = trace(fn, variables, args, {})
        places = [find_block(traced, block, "score_blocks") for block in blocks]
        sums = (
            each.reshape(-1, 2).sum(axis=0) for each in compare_passing(traced, places)
        )
        return {
            block: float(apart / max(rows, 1))
            for block, (apart, rows) in zip(blocks, sums, strict=True)
        }
    whole = fn(variables, *args)
    lost = _lost(by, whole, "score_blocks")
    return {
        block: lost(whole, skipped(fn, [block])(variables, *args)) for block in blocks
    }


def score_layers(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    groups: Groups,
    stacks: Sequence[str],
    by: Importance = _INFLUENCE,
) -> Scores:
    """Score the layers that a `scan` runs over; the lowest matters least.

    The scores are those of units: sorted they tell `Groups.keep` which layers stay, and
    beside the scores of other groups they are what `choose` takes, with the rule
    `Width(reduced=True)`.

    Args:
        fn: the function.
        variables: its tree.
        *args: its other arguments: examples.
        groups: of `find_groups(fn, variables, *args)`, or of a `ShrinkableAxes`.
        stacks: names of the groups whose units are the layers of a `scan`; they are
            opt-in, since a loop with fewer steps computes something else.
        by: what a score says. A stack that is run several times is scored by the mean
            of its runs, or left out of all.

    Returns:
        float64 [layers] by group.

    Raises:
        MismatchError: a group is not there, no scan runs over its units, or what its
            layers change and pass on is no array of floats; the results have no array
            of floats to compare; or a leaf is compressed, unless `by` is
            `BlockInfluence`.
        TypeError: `by` is none of the three.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.shrinking.groups import find_groups
        >>> from jcompress.shrinking.plan import shrink, shrunk
        >>> def model(params, x):
        ...     layer = lambda x, w: (x + jnp.tanh(x @ w), None)
        ...     return jax.lax.scan(layer, x, params["w"])[0]
        >>> eye, none = jnp.eye(2), jnp.zeros((2, 2))
        >>> params = {"w": jnp.stack([eye, none, -eye])}
        >>> x = jnp.asarray([[1.0, 3.0]])
        >>> groups = find_groups(model, params, x)
        >>> scores = score_layers(model, params, x, groups=groups, stacks=["w:0"])
        >>> plan = groups.keep({"w:0": scores["w:0"].argsort()[1:]})
        >>> plan.kept["w:0"]
        array([0, 2], dtype=int32)
        >>> small = shrink(params, plan)
        >>> bool(jnp.allclose(shrunk(model, plan)(small, x), model(params, x)))
        True
    """
    if isinstance(stacks, str) or not stacks:
        raise MismatchError(
            f"score_layers: stacks are a list of names of groups, not {stacks!r}"
        )
    _check(by, "score_layers")
    traced, given = trace(fn, variables, args, {}), Named.of(args, {}).arrays
    runs = {
        name: find_layers(traced, given, groups, name, "score_layers")
        for name in stacks
    }
    if isinstance(by, BlockInfluence):
        places = [run.passage for each in runs.values() for run in each]
        steps = iter(compare_passing(traced, places))
        return {
            name: _by_layer(
                [(run.layers, next(steps)) for run in each], groups[name].size
            )
            for name, each in runs.items()
        }
    whole = fn(variables, *args)
    lost = _lost(by, whole, "score_layers")

    def without(name: str, layer: int) -> float:
        plan = groups.keep({name: np.delete(np.arange(groups[name].size), layer)})
        rest, _ = cut_inputs(plan, *args)
        result = shrunk(fn, plan)(shrink(variables, plan), *rest)
        return lost(cut_outputs(plan, whole), result)

    return {
        name: np.asarray([without(name, n) for n in range(groups[name].size)])
        for name in stacks
    }


def _by_layer(
    runs: Sequence[tuple[Any, Any]], size: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The mean by layer of the sums [..., steps, 2] of the runs of a stack."""
    total = np.zeros((size, 2))
    for layers, sums in runs:
        np.add.at(total, layers, sums.reshape(-1, len(layers), 2).sum(axis=0))
    mean: np.ndarray[Any, np.dtype[np.float64]] = total[:, 0] / total[:, 1].clip(1)
    return mean


def _check(by: Any, transform: str) -> None:
    if not isinstance(by, Importance):
        raise TypeError(
            f"{transform}: by is BlockInfluence(), OutputSimilarity() or "
            f"MetricDrop(metric), not {by!r}"
        )


def _lost(
    by: OutputSimilarity | MetricDrop, whole: Any, transform: str
) -> Callable[[Any, Any], float]:
    """How much worse a result is than the whole one, given as far as it has the other.

    The first argument is the whole result without what the other has not.
    """
    if isinstance(by, MetricDrop):
        metric = by.metric

        def measured(result: Any) -> float:
            value = metric(result)
            if np.ndim(value):
                raise MismatchError(
                    f"{transform}: MetricDrop's metric gives an array of the shape "
                    f"{list(np.shape(value))}, not one number"
                )
            return float(value)

        best = measured(whole)
        return lambda _, without: best - measured(without)
    if not _floats(whole):
        raise MismatchError(
            f"{transform}: the result has no array of floats to compare; "
            "MetricDrop(metric) compares whatever it is"
        )

    def lost(whole: Any, without: Any) -> float:
        pairs = list(zip(_floats(whole), _floats(without), strict=True))
        for a, b in pairs:
            if a.shape != b.shape:
                raise MismatchError(
                    f"{transform}: a result is {list(b.shape)} without a layer and "
                    f"{list(a.shape)} with it; MetricDrop(metric) compares whatever "
                    "they are"
                )
        total = jax.device_get([unlikeness(a, b) for a, b in pairs])
        return float(np.mean([apart / rows for apart, rows in total]))

    return lost


def _floats(result: Any) -> list[Any]:
    arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves(result) if is_array(leaf)]
    return [x for x in arrays if x.ndim and jnp.issubdtype(x.dtype, jnp.floating)]
