"""AWQ: scale the columns that large activations meet, as far as it helps rounding."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.quantization import FullRange, Quantize, Weights
from jcompress.rescaling._unknowns import Floats
from jcompress.rescaling.rescaled import Rescaled, finished, traced_for
from jcompress.rescaling.scalable import Scaling
from jcompress.rescaling.smoothing import statistics_of
from jcompress.rules import Rules, resolve
from jcompress.statistics.moments import (
    in_groups,
    moments_of,
    out_of_groups,
    shared_by_groups,
)
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes, to_matrix
from jcompress.tensors.weight_matrix import quantize_matrix


def awq(
    fn: Callable[..., Any],
    params: Any,
    rules: Rules[Quantize],
    moments: Mapping[str, Any],
    *args: Any,
    means: Mapping[str, Any] | None = None,
    steps: int = 20,
    tolerance: float = 1e-5,
    **kwargs: Any,
) -> Rescaled:
    """Scale weights by the activations that they meet before they are rounded.

    Columns that large activations meet matter most, and are rounded with less error if
    they are multiplied by more before, and their inputs divided. For each group of
    weights with the same inputs (see `find_scalable`), and each layer of a `scan`,

        s[j] = mean|X[j]|^a / sqrt(max s min s)

    with the `a` of a grid from 0 to 1 that makes the least error of the outputs of the
    quantized products, `tr((W - W') H (W - W')^T)`, where `W' = round(W s) / s` and H
    are the second moments of the inputs. With `a = 0` all stays, so that no group is
    worse off on these data. Quantize the result with the same rules.

    AWQ then clips the weights of each scale where that makes less error of the outputs.
    Here that is the range of the rules, `Weights(range=LeastError())`, which is taken
    into account while `a` is chosen: quantize with `moments=made.moments(moments)`.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the tree, with concrete arrays.
        rules: pairs of a predicate and a `Quantize`, as `quantize` will get them; the
            weights of a group that no rule takes are scaled along and have no say.
            Rounding is to the nearest here, whatever a rule says.
        moments: by weight [*S, K, K], as `observe(fn, rules, SecondMoments())` gives
            them; of a convolution in G > 1 groups [*S, G, K, K].
        *args: further arguments of `fn`, on which the check is made.
        means: by weight the means of the inputs' absolute values [*S, K], of
            `observe(fn, rules, Means(absolute=True))`, each `Average.mean`. Without,
            the roots of the mean squares take their place: the diagonal of `moments`.
        steps: how many values of `a` above 0 are tried.
        tolerance: as of `smooth`.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The new parameters, what was scaled, and what was not and why.
        `Rescaled.moments(moments)` are those of the new inputs, for GPTQ.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: nothing can be scaled, a weight has no moments, or some of
            another shape; or no `a` above 0 makes the error less anywhere.
        ValueError: `steps` is not positive, a number is not finite, an array has no
            values, or the outputs differ by more than `tolerance`.

    References:
        Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression
        and Acceleration", section 3.2, equations 4 and 5.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights
        >>> from jcompress.rescaling import awq
        >>> from jcompress.statistics import SecondMoments, observe
        >>> def model(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> p = {"up": jax.random.normal(keys[0], (8, 32)),
        ...      "down": jax.random.normal(keys[1], (32, 4))}
        >>> p["up"] = p["up"] * jnp.exp2(jnp.arange(32) % 6)[None]
        >>> x = jax.random.normal(keys[2], (64, 8))
        >>> rules = [("down", Quantize(weights=Weights(format=Int(3))))]
        >>> _, moments = observe(model, rules, SecondMoments())(p, x)
        >>> [group.name for group in awq(model, p, rules, moments, x).scaled]
        ['down']
    """
    if steps < 1:
        raise ValueError(f"awq: steps={steps} is not positive")
    traced = traced_for("awq", fn, params, args, kwargs)
    resolved = resolve(rules, traced.sites, transform="awq")
    scaling = Scaling(traced)
    specs: dict[str, Weights] = {}
    skipped = dict(scaling.inputs.skipped)
    for path, spec in resolved.leaves.items():
        if not isinstance(spec, Quantize):
            raise TypeError(f"awq: the spec of {path!r} is Quantize(...), not {spec!r}")
        if spec.weights is None or path not in scaling.columns:
            continue
        per = shared_by_groups(traced.sites, path, spec.weights)
        if per is not None and not isinstance(spec.weights.range, FullRange):
            skipped[path] = (
                f"groups of its convolution share scales, by {per!r}, so that none "
                "makes the least error"
            )
            continue
        specs[path] = spec.weights
    if not specs:
        reasons = "; ".join(f"{path}: {why}" for path, why in skipped.items())
        raise MismatchError(
            "awq: no weight that the rules take has inputs that can be scaled. "
            + reasons
        )
    checked = moments_of("awq", moments, specs, traced.sites, grouped=True)
    found = {path: jnp.asarray(one, jnp.float32) for path, one in checked.items()}
    if means is None:
        means = {
            path: np.sqrt(
                np.maximum(np.diagonal(np.asarray(value), axis1=-2, axis2=-1), 0)
            )
            for path, value in found.items()
        }
    missing = [path for path in specs if path not in means]
    if missing:
        raise MismatchError(
            f"awq: means has none of {', '.join(missing)}; collect them with "
            "observe(fn, rules, Means(absolute=True)) and the same rules"
        )
    sizes = statistics_of("awq", "means", scaling, {p: means[p] for p in specs})
    search = _Search(scaling, specs, found, sizes)
    logs = search.best(np.linspace(0, 1, steps + 1))
    for group in scaling.inputs:
        if not set(group.consumers) & set(specs):
            skipped.update(dict.fromkeys(group.consumers, "no rule takes its group"))
    values = scaling.found.spread(logs)
    return finished("awq", scaling, params, values, skipped, tolerance)


class _Search:
    """Tries one exponent after the other, for each set of factors by itself."""

    def __init__(
        self,
        scaling: Scaling,
        specs: Mapping[str, Weights],
        moments: Mapping[str, jax.Array],
        means: Mapping[str, Floats],
    ) -> None:
        self._scaling, self._specs, self._moments = scaling, specs, moments
        self._cells = int(scaling.cell_of.max()) + 1
        largest = np.full(len(scaling.cell_of), -np.inf)
        with np.errstate(divide="ignore"):
            for path, value in means.items():
                roots, exponents = scaling.columns[path], scaling.exponents[path]
                live = roots != 0
                logs = np.log(value[live]) / exponents[live]
                np.maximum.at(largest, roots[live], logs)
        self._live = np.isfinite(largest)
        self._means = np.where(self._live, largest, 0.0)

    def best(self, grid: Floats) -> Floats:
        """By root the logarithm of its factor at the best exponent of its cell."""
        cells = self._scaling.cell_of
        least = np.full(self._cells, np.inf)
        best = np.zeros(len(cells))
        for exponent in grid:
            logs = self._logs(float(exponent))
            errors = self._errors(logs)
            # What moves nothing is not worth it.
            better = errors < least * (1 - 1e-6)
            least = np.where(better, errors, least)
            chosen = (cells >= 0) & better[cells]
            best[chosen] = logs[chosen]
        return best

    def _logs(self, exponent: float) -> Floats:
        cells, logs = self._scaling.cell_of, exponent * self._means
        low, high = np.full(self._cells, np.inf), np.full(self._cells, -np.inf)
        np.minimum.at(low, cells[self._live], logs[self._live])
        np.maximum.at(high, cells[self._live], logs[self._live])
        with np.errstate(invalid="ignore"):
            middle = np.where(high >= low, (low + high) / 2, 0.0)
        return np.where(self._live, logs - middle[cells], 0.0)

    def _errors(self, logs: Floats) -> Floats:
        scaling = self._scaling
        total = np.zeros(self._cells)
        for path, weights in self._specs.items():
            roots = scaling.columns[path]
            factor = np.exp(scaling.exponents[path] * logs[roots])
            each = _output_error(
                scaling.leaf(path),
                jnp.asarray(factor, jnp.float32),
                self._moments[path],
                axes=scaling.axes(path),
                weights=weights,
            )
            cell = scaling.cell_of[roots.reshape(-1, roots.shape[-1])].max(-1)
            errors = np.asarray(each).astype(np.float64).reshape(-1)
            np.add.at(total, cell[cell >= 0], errors[cell >= 0])
        return total


@functools.partial(jax.jit, static_argnames=("axes", "weights"))
def _output_error(
    leaf: jax.Array,
    factor: jax.Array,
    moments: jax.Array,
    *,
    axes: Axes,
    weights: Weights,
) -> jax.Array:
    """The squared error [*S], or [*S, G], of a product whose scaled weight is rounded.

    Args:
        leaf: the weight.
        factor: of its columns, [*S, K] or [*S, G, K].
        moments: [*S, K, K] or [*S, G, K, K].
        axes, weights: of the leaf.
    """
    leaf = leaf.astype(jnp.float32)
    matrix = in_groups(to_matrix(leaf, axes), moments)
    factor = factor[..., None, :]
    scaled, stacks = matrix * factor, len(axes.stack)
    importance = None
    if isinstance(weights.range, FullRange):
        # Here groups may share a scale.
        scaled = out_of_groups(scaled, stacks)
    else:
        importance = moments / (factor * jnp.swapaxes(factor, -2, -1))
    values, scales, zeros = jax.tree.map(
        lambda part: out_of_groups(part, stacks),
        quantize_matrix(scaled, weights, importance),
    )
    small = QTensor.pack(values, scales, zeros, weights, leaf, axes)
    error = matrix - in_groups(to_matrix(small.dense(), axes), moments) / factor
    weighed = jnp.matmul(error, moments, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(weighed * error, axis=(-2, -1))
