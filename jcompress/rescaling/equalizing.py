"""Cross-layer equalisation: neighbouring weights with equal ranges by channel."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jcompress.errors import MismatchError
from jcompress.rescaling._unknowns import Floats
from jcompress.rescaling.rescaled import Rescaled, finished, traced_for
from jcompress.rescaling.scalable import ScalableGroup, Scaling


def equalize(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    iterations: int = 20,
    tolerance: float = 1e-5,
    **kwargs: Any,
) -> Rescaled:
    """Give neighbouring weights the same range in each channel, without any data.

    Where channel j of the outputs of one weight meets column j of the next, through
    what commutes with a positive factor (see `find_scalable`), the two are divided and
    multiplied by

        s[j] = sqrt(max|W1[j, :]| / max|W2[:, j]|)

    so that both then reach as far: `sqrt(max|W1[j, :]| max|W2[:, j]|)`. Weights have
    neighbours on both sides, so this is repeated, pair after pair, until nothing
    changes. Per-tensor formats gain, which a single wide channel spoils. Of three
    weights that a channel passes, as with a depthwise convolution between two others,
    all come to reach as far.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the tree, with concrete arrays.
        *args: further arguments of `fn`, on which the check is made.
        iterations: how often all pairs are visited at most.
        tolerance: as of `smooth`.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The new parameters, what was scaled, and what was not and why. Where only a
        normalisation stands before a weight, it stays.

    Raises:
        MismatchError: no weight of a product has another one as its neighbour.
        ValueError: an array has no values, `iterations` is not positive, or the outputs
            differ by more than `tolerance`.

    References:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", section 4.1, equation 11.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.rescaling import equalize
        >>> def model(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> p = {"up": jnp.diag(jnp.array([1.0, 16.0])), "down": jnp.eye(2)}
        >>> equalize(model, p, jnp.ones((1, 2))).params["down"]
        Array([[1., 0.],
               [0., 4.]], dtype=float32)
    """
    if iterations < 1:
        raise ValueError(f"equalize: iterations={iterations} is not positive")
    traced = traced_for("equalize", fn, params, args, kwargs)
    scalings = [Scaling(traced)]
    if scalings[0].found.solution.chose:
        # Of three weights that a channel passes, each has two neighbours.
        scalings.append(Scaling(traced, turned=True))
    skipped = dict(scalings[0].inputs.skipped)
    pairs = [
        _Pair(scaling, group)
        for scaling in scalings
        for group in scaling.inputs
        if any(name in scaling.rows for name in group.producers)
    ]
    found = {path for pair in pairs for path in pair.group.consumers}
    for group in scalings[0].inputs:
        why = f"no product stands before it, only {', '.join(group.producers)}"
        skipped.update({path: why for path in group.consumers if path not in found})
    if not pairs:
        reasons = "; ".join(f"{path}: {why}" for path, why in skipped.items())
        raise MismatchError(
            "equalize: no weight has a weight before it with which it could share "
            f"factors. {reasons}"
        )
    values = np.zeros(len(scalings[0].group_of))
    for _ in range(iterations):
        if max(pair.balance(values) for pair in pairs) < 1e-4:
            break
    groups = _joined([pair.group for pair in pairs])
    return finished("equalize", scalings[0], params, values, skipped, tolerance, groups)


def _joined(groups: Sequence[ScalableGroup]) -> list[ScalableGroup]:
    """Groups with the same consumers as one."""
    made: dict[tuple[str, ...], ScalableGroup] = {}
    for group in groups:
        known = made.get(group.consumers, group)
        every = dict.fromkeys((*known.producers, *group.producers))
        made[group.consumers] = dataclasses.replace(known, producers=tuple(every))
    return list(made.values())


class _Pair:
    """The weights before and behind a set of factors.

    Attributes:
        group: the set.
    """

    def __init__(self, scaling: Scaling, group: ScalableGroup) -> None:
        self.group = group
        self._scaling = scaling
        roots = scaling.columns[group.name]
        self._mine = scaling.group_of == scaling.group_of[roots[roots != 0][0]]

    def balance(self, values: Floats) -> float:
        """Change the factors so that both sides reach as far; by how much at most."""
        scaling = self._scaling
        sides = []
        for names, roots, exponents, axis in (
            (self.group.producers, scaling.rows, scaling.row_exponents, -1),
            (self.group.consumers, scaling.columns, scaling.exponents, -2),
        ):
            reach = np.full(len(values), -np.inf)
            slope = np.zeros(len(values))
            for name in names:
                if name not in roots:
                    continue
                matrix = np.abs(scaling.matrix(name, values))
                found = matrix.max(axis, initial=0.0).reshape(roots[name].shape)
                mine = self._mine[roots[name]] & (found > 0)
                at = roots[name][mine]
                np.maximum.at(reach, at, np.log(found[mine]))
                slope[at] = exponents[name][mine]
            sides.append((reach, slope))
        (first, down), (second, up) = sides
        known = np.isfinite(first) & np.isfinite(second) & (up != down)
        steps = np.zeros(len(values))
        steps[known] = (first[known] - second[known]) / (up[known] - down[known])
        values += scaling.found.spread(steps)
        return float(np.abs(steps).max(initial=0.0))
