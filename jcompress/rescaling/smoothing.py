"""SmoothQuant: move what is hard to quantize from activations to weights."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jcompress.errors import MismatchError
from jcompress.rescaling._unknowns import Floats
from jcompress.rescaling.rescaled import Rescaled, finished, traced_for
from jcompress.rescaling.scalable import Scaling


def smooth(
    fn: Callable[..., Any],
    params: Any,
    maxima: Mapping[str, Any],
    *args: Any,
    strength: float = 0.5,
    tolerance: float = 1e-5,
    **kwargs: Any,
) -> Rescaled:
    """Divide inputs of products by channel so that they are easier to quantize.

    Channel j of the inputs of a group of weights is divided by

        s[j] = max|X[j]|^strength / max|W[j]|^(1 - strength)

    and column j of each weight multiplied by it, so that outliers of activations are
    shared with the weights. What stands before the products takes up the division (see
    `find_scalable`), so the function stays the same; it is evaluated before and after.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the tree, with concrete arrays.
        maxima: by weight the largest absolute values of its inputs [*S, K], as
            `observe(fn, rules, AbsoluteMax())` gives them. Weights without are scaled
            with the others of their group and have no say.
        *args: further arguments of `fn`, on which the check is made.
        strength: how much goes to the weights: 0 nothing of the activations' range, 1
            all of it.
        tolerance: how far outputs may differ, relative to the largest. For other
            dtypes than float32 at least 8 times their precision is allowed.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The new parameters, what was scaled, and what was not and why.

    Raises:
        MismatchError: nothing can be scaled, or maxima are of another shape.
        ValueError: `strength` is not in [0, 1], an array has no values, a number is not
            finite, or the outputs differ by more than `tolerance`.

    References:
        Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training
        Quantization for Large Language Models", section 4, equation 4.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.rescaling import smooth
        >>> from jcompress.statistics import AbsoluteMax, observe
        >>> def model(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> p = {"up": jnp.diag(jnp.array([1.0, 9.0])), "down": jnp.eye(2)}
        >>> x = jnp.ones((1, 2))
        >>> _, maxima = observe(model, [("down", True)], AbsoluteMax())(p, x)
        >>> made = smooth(model, p, maxima, x)
        >>> made.factors["down"]
        array([1., 3.], dtype=float32)
        >>> made.params["up"]
        Array([[1., 0.],
               [0., 3.]], dtype=float32)
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"smooth: strength={strength} is not between 0 and 1")
    traced = traced_for("smooth", fn, params, args, kwargs)
    scaling = Scaling(traced)
    given = statistics_of("smooth", "maxima", scaling, maxima)
    size = len(scaling.group_of)
    data, weight = np.full(size, -np.inf), np.full(size, -np.inf)
    with np.errstate(divide="ignore"):
        for path, values in given.items():
            roots, exponents = scaling.columns[path], scaling.exponents[path]
            live = roots != 0
            columns = np.abs(scaling.matrix(path)).max(-2, initial=0.0)
            for total, found in ((data, values), (weight, columns)):
                logs = np.log(found[live]) / exponents[live]
                np.maximum.at(total, roots[live], logs)
    known = np.isfinite(data) & np.isfinite(weight)
    logs = np.zeros(size)
    logs[known] = strength * data[known] - (1 - strength) * weight[known]
    skipped = {**scaling.inputs.skipped}
    for group in scaling.inputs:
        if not set(group.consumers) & set(given):
            skipped.update(dict.fromkeys(group.consumers, "maxima has none of it"))
    values = scaling.found.spread(logs)
    return finished("smooth", scaling, params, values, skipped, tolerance)


def statistics_of(
    transform: str, what: str, scaling: Scaling, given: Mapping[str, Any]
) -> dict[str, Floats]:
    """Statistics [*S, K] of the weights that can be scaled, after all were checked.

    Raises:
        MismatchError: they name no weight of a product, or are of another shape.
        ValueError: a number is negative or not finite.
    """
    made = {}
    for path, value in given.items():
        if not scaling.traced.sites.products(path):
            raise MismatchError(
                f"{transform}: {what} names {path!r}, which is no weight of a product "
                "of this function"
            )
        if path not in scaling.columns:
            continue
        right = scaling.columns[path].shape
        found = np.asarray(value).astype(np.float64)
        if found.shape != right:
            raise MismatchError(
                f"{transform}: {what} of {path!r} are {list(found.shape)}, not "
                f"{list(right)}; collect them with observe and the same function"
            )
        if not np.isfinite(found).all() or (found < 0).any():
            raise ValueError(
                f"{transform}: {what} of {path!r} hold numbers that are negative or "
                "not finite"
            )
        made[path] = found
    return made
