"""Scores from what `jcompress.statistics.observe` saw of the data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.pruning.scores._trees import place_scores, scored_leaves
from jcompress.sites import Sites, leaf_axes
from jcompress.statistics import (
    AbsoluteMax,
    Average,
    DiagonalMoments,
    Histogram,
    Means,
    Observed,
    Several,
    Statistic,
    Zeros,
)
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix


def score_by_activations(
    observed: Observed, params: Any, *, sites: Sites, outputs: bool = False
) -> Any:
    """Score weights by a statistic of the activations of their unit.

    What was observed says which score it is:

    - `Means()`: the mean; `Means(absolute=True)`: that of the absolute values
    - `AbsoluteMax()`: the largest absolute value
    - `Several(Means(), DiagonalMoments())`: the variance; its relative error is that of
      float32, 6e-8, times the squared ratio of mean and standard deviation
    - `Zeros()`: 1 - APoZ, the share of data for which the unit is not zero
    - `Histogram(..., each=True)`: the entropy over the bins, in nats

    Activations are what the next weight meets, after the activation function. So look
    at a leaf's inputs: all of its weights that read a unit get the unit's score, and
    the pattern `Rows()` removes them together. For the units themselves, with all
    arrays that they touch, `jcompress.shrinking.score_units(..., mean=True)` takes the
    tree; and `spread_units` brings such scores to the weights that make the units, for
    the pattern `Channels()`.

    Args:
        observed: what `observe(fn, rules, statistic)` collected.
        params: the parameters.
        sites: the sites of the function that these parameters belong to.
        outputs: whether it was `observe(..., outputs=True)`: the score is then that of
            the outputs of the leaf, before bias and activation function, on the weights
            that make them.

    Returns:
        A tree of the structure of `params`: float32 arrays of the shapes of the
        observed leaves, and None at the others. Units without data score 0.

    Raises:
        TypeError: the statistic is none of these.
        MismatchError: a leaf that was observed is not in the tree, or its statistic is
            of another shape than the sites say.

    References:
        Hu et al. 2016, "Network Trimming" (APoZ); Luo and Wu 2017, "An Entropy-based
        Pruning Method for CNN Compression"; Molchanov et al. 2017, "Pruning
        Convolutional Neural Networks for Resource Efficient Inference", section 2.2
        (mean and variance).
    """
    transform = "score_by_activations"
    leaves = _leaves_of(transform, observed, params)
    made = {}
    for path, value in observed.items():
        shape, axes = jnp.shape(leaves[path]), leaf_axes(sites.of(path))
        units = _score(observed.statistic, value)
        matrix = _beside(transform, path, units, shape, axes, outputs)
        made[path] = from_matrix(matrix, axes, shape)
    return place_scores(params, made)


def score_by_positive_share(
    params: Any, *, inputs: Observed, outputs: Observed, sites: Sites
) -> Any:
    """Score each connection by its share of the positive input of its unit.

    For the weight w_ij from input x_j to unit i it is the sum over the data of
    relu(w_ij x_j), over that of relu(sum_j w_ij x_j): how much of what makes the unit
    speak comes by this connection. Of a unit that is never positive all score 0.

    Args:
        params: the parameters that were observed.
        inputs: what `observe(fn, rules, POSITIVE)` collected, with
            `POSITIVE = Several(Means(), Means(absolute=True))`.
        outputs: what `observe(fn, rules, POSITIVE, outputs=True)` collected on the same
            data.
        sites: the sites of the function.

    Returns:
        A tree of the structure of `params`: float32 arrays of the shapes of the
        observed leaves, and None at the others.

    Raises:
        TypeError: another statistic was collected.
        MismatchError: the two are of different leaves; a leaf is complex or not in the
            tree, or its statistic is of another shape than the sites say.
    """
    transform = "score_by_positive_share"
    for name, seen in (("inputs", inputs), ("outputs", outputs)):
        if seen.statistic != Several(Means(), Means(absolute=True)):
            raise TypeError(
                f"{transform}: {name} is {seen.statistic}; it needs "
                "Several(Means(), Means(absolute=True))"
            )
    if set(inputs) != set(outputs):
        raise MismatchError(
            f"{transform}: inputs are of {', '.join(inputs)}, outputs of "
            f"{', '.join(outputs)}; observe both with the same rules"
        )
    leaves = _leaves_of(transform, inputs, params)
    made = {}
    for path in inputs:
        leaf, axes = jnp.asarray(leaves[path]), leaf_axes(sites.of(path))
        if jnp.iscomplexobj(leaf):
            raise MismatchError(
                f"{transform}: {path!r} holds complex numbers, which have no sign"
            )
        (plain, size), (sums, sizes) = inputs[path], outputs[path]
        up = (size.total + plain.total) / 2
        down = (size.total - plain.total) / 2
        whole = (sizes.total + sums.total) / 2
        up, down, whole = (
            _beside(transform, path, each, leaf.shape, axes, side)
            for each, side in ((up, False), (down, False), (whole, True))
        )
        weights = to_matrix(leaf, axes).astype(jnp.float32)
        parts = jnp.where(weights > 0, weights * up, -weights * down)
        shares = jnp.where(whole > 0, parts / jnp.where(whole > 0, whole, 1), 0)
        made[path] = from_matrix(shares, axes, leaf.shape)
    return place_scores(params, made)


def _leaves_of(
    transform: str, observed: Mapping[str, Any], params: Any
) -> dict[str, Any]:
    leaves = scored_leaves(transform, params)
    for path in observed:
        if path not in leaves:
            raise MismatchError(
                f"{transform}: {path!r} was observed and is not in the tree: "
                + ", ".join(list(leaves)[:8])
            )
    return leaves


def _score(statistic: Statistic, value: Any) -> jax.Array:
    match statistic:
        case Means():
            mean: jax.Array = value.mean
            return mean
        case AbsoluteMax():
            return jnp.asarray(value)
        case Zeros():
            return jnp.where(value.rows[..., None] > 0, 1 - value.mean, 0)
        case Several(statistics=(Means(absolute=False), DiagonalMoments())):
            average, squares = value
            moment = Average(squares, average.rows).mean
            return jnp.maximum(moment - jnp.square(average.mean), 0)
        case Histogram(each=True):
            shares = value / jnp.maximum(jnp.sum(value, -1, keepdims=True), 1)
            logs = jnp.log(jnp.where(shares > 0, shares, 1))
            return -jnp.sum(shares * logs, axis=-1)
    raise TypeError(
        f"score_by_activations: {statistic} is no score of a unit; observe Means(), "
        "AbsoluteMax(), Several(Means(), DiagonalMoments()), Zeros() or "
        "Histogram(low=..., high=..., each=True)"
    )


def _beside(
    transform: str,
    path: str,
    units: jax.Array,
    shape: tuple[int, ...],
    axes: Axes,
    outputs: bool,
) -> jax.Array:
    """Numbers of the inputs or outputs of a leaf, for each entry of its matrix.

    Args:
        transform: the caller's name, for the errors.
        path: the leaf's name.
        units: [*S, K], of a convolution in G groups [*S, G, K]; of outputs [*S, N].
        shape: the leaf's shape.
        axes: its axes by role.
        outputs: whether they are those of the outputs.
    """
    stack, n, k = matrix_shape(shape, axes)
    found = tuple(np.shape(units))
    if outputs and found == (*stack, n):
        return jnp.broadcast_to(units[..., None], (*stack, n, k))
    if not outputs and found == (*stack, k):
        return jnp.broadcast_to(units[..., None, :], (*stack, n, k))
    if not outputs and len(found) == len(stack) + 2 and n % found[-2] == 0:
        # The outputs of a group stand together, and meet its inputs only.
        return jnp.repeat(units, n // found[-2], axis=-2)
    wanted = [*stack, n] if outputs else [*stack, k]
    raise MismatchError(
        f"{transform}: the statistic of {path!r} is {list(found)}, not {wanted}; pass "
        "outputs=True if, and only if, it was observe(..., outputs=True)"
    )
