"""`choose_ranges`: where data is clipped, by one of several criteria."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.calibration.histogram import (
    Host,
    Samples,
    Tallies,
    Tally,
    samples_of,
    tally,
)
from jcompress.errors import MismatchError
from jcompress.formats import NumberFormat
from jcompress.quantization._plan import QuantizationPlan
from jcompress.quantization.spec import Quantize
from jcompress.rules import Rules
from jcompress.tensors.range_specs import FullRange, LeastError, Percentile
from jcompress.tensors.ranges import Range, scale_and_zero
from jcompress.tensors.rounding import dequantize_values, quantize_values
from jcompress.tensors.specs import Entropy, Static
from jcompress.tracing.handlers import Bind, Handler
from jcompress.tracing.interpreter import Program
from jcompress.tracing.values import Location, Use


def choose_ranges(
    fn: Callable[..., Any],
    rules: Rules[Quantize],
    params: Any,
    batches: Sequence[tuple[Any, ...]],
) -> dict[str, tuple[Range, ...]]:
    """Choose the ranges of data whose rules have `Activation(range=Static(...))`.

    One pass over the batches counts how often numbers of each size occur, in 768 bins
    whose width grows with the size, whatever the batches' number; then each range is
    chosen on the host. The ranges go to `fake_quant(..., ranges=...)` and
    `quantize(..., ranges=...)`.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        rules: the rules that will be given to `fake_quant` and `quantize`.
        params: the parameters.
        batches: the further arguments of `fn`, one tuple for each batch, at least one.

    Returns:
        For each leaf with a static range, by its name, one range for each of its
        products: float32 scalars or, for a leaf that scans take apart, of their
        lengths. A range whose data was always 0 is [0, 0].

    Raises:
        TypeError: the rules are malformed.
        ValueError: there is no batch.
        MismatchError: as `fake_quant`, and if no rule has a static range.

    References:
        Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1;
        Migacz 2017, "8-bit Inference with TensorRT".

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.calibration import Static, choose_ranges
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Activation, FullRange, Quantize
        >>> data = Activation(format=Int(8), range=Static(by=FullRange()))
        >>> rules = [("w", Quantize(activation=data))]
        >>> batches = [(jnp.array([[1.0, -3.0]]),), (jnp.array([[2.0, 0.5]]),)]
        >>> model = lambda params, x: x @ params["w"]
        >>> choose_ranges(model, rules, {"w": jnp.ones((2, 1))}, batches)["w"][0].low
        Array(-3., dtype=float32)
    """
    if not batches:
        raise ValueError(
            "choose_ranges: batches is empty; give at least one tuple of the arguments "
            "that the function takes after the tree"
        )
    plan = QuantizationPlan.of(
        fn, rules, params, tuple(batches[0]), {}, transform="choose_ranges"
    )
    wanted = {
        path: places
        for path, places in plan.stored.items()
        if isinstance(plan.inputs[places[0]].range, Static)
    }
    if not wanted:
        raise MismatchError(
            "choose_ranges: no rule has an Activation(range=Static(...)), so there is "
            "no range to choose"
        )

    @jax.jit
    def count(params: Any, *args: Any) -> dict[Location, Tally]:
        traced = QuantizationPlan.of(
            fn, rules, params, args, {}, transform="choose_ranges"
        ).traced
        places = [where for each in wanted.values() for where in each]
        handlers: dict[Location, Handler] = dict.fromkeys(places, _Count())
        program = Program(traced=traced, handlers=handlers, statistic=Tallies())
        # What reads something is known to hand something back, in a branch not taken.
        reads = {where: jnp.zeros(plan.lengths(where)) for where in places}
        _, seen = program(traced.leaves, traced.data, reads)
        return dict(seen)

    total = count(params, *batches[0])
    for batch in batches[1:]:
        more = count(params, *batch)
        total = {
            where: Tallies().join(one, more[where]) for where, one in total.items()
        }
    return {
        path: tuple(_chosen(total[where], plan, where) for where in places)
        for path, places in wanted.items()
    }


@dataclasses.dataclass(frozen=True)
class _Count:
    """Handler of a product whose input is counted."""

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        assert use.data is not None
        return bind(inputs), tally(inputs[use.data])


def _chosen(found: Tally, plan: QuantizationPlan, where: Location) -> Range:
    activation = plan.inputs[where]
    assert isinstance(activation.range, Static)
    by, format = activation.range.by, activation.format
    host: Tally = jax.tree.map(np.asarray, found)
    shape = host.low.shape
    ends = np.zeros((2, *shape), np.float32)
    for place in np.ndindex(shape):
        own = Tally(*(part[place] for part in host))
        ends[(slice(None), *place)] = _range(own, by, format)
    return Range(jnp.asarray(ends[0]), jnp.asarray(ends[1]))


def _range(
    found: Tally,
    by: FullRange | Percentile | LeastError | Entropy,
    format: NumberFormat,
) -> tuple[float, float]:
    """Where data is clipped below and above."""
    low, high = float(found.low), float(found.high)
    if low == high or isinstance(by, FullRange):
        return low, high
    samples = samples_of(found)
    match by:
        case Percentile():
            return _percentiles(samples, by.percent / 100, symmetric=format.symmetric)
        case LeastError():
            parts = np.linspace(1, by.least, by.steps)
            errors = _squared_errors(samples, (low, high), parts, format)
        case Entropy():
            levels = min(2 ** int(format.bits), 256)
            parts, errors = _divergences(samples, (low, high), by.bins, levels)
    best = float(parts[int(np.argmin(errors))])
    return best * low, best * high


def _percentiles(
    samples: Samples, part: float, *, symmetric: bool
) -> tuple[float, float]:
    values, weights = samples
    if symmetric:
        order = np.argsort(np.abs(values), kind="stable")
        sizes, sums = np.abs(values)[order], np.cumsum(weights[order])
        end = float(sizes[min(int(np.searchsorted(sums, part)), len(sizes) - 1)])
        return -end, end
    sums = np.cumsum(weights)
    places = np.searchsorted(sums, [(1 - part) / 2, (1 + part) / 2])
    low, high = values[np.minimum(places, len(values) - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


def _squared_errors(
    samples: Samples, span: tuple[float, float], parts: Host, format: NumberFormat
) -> Host:
    """The mean squared error of each part of a range."""
    # Padded, so that few shapes are compiled.
    short = -len(samples.values) % 4096
    values = jnp.asarray(np.pad(samples.values, (0, short)), jnp.float32)
    weights = jnp.asarray(np.pad(samples.weights, (0, short)), jnp.float32)
    ends = jnp.asarray(np.outer(parts, span), jnp.float32)
    return np.asarray(_errors(values, weights, ends, format))


@functools.partial(jax.jit, static_argnums=3)
def _errors(
    values: jax.Array, weights: jax.Array, ends: jax.Array, format: NumberFormat
) -> jax.Array:
    def one(end: jax.Array) -> jax.Array:
        scale, zero = scale_and_zero(Range(end[0], end[1]), format)
        numbers = quantize_values(values, scale, zero, format)
        off = dequantize_values(numbers, scale, zero) - values
        return jnp.sum(weights * jnp.square(off))

    errors: jax.Array = jax.lax.map(one, ends)
    return errors


def _divergences(
    samples: Samples, span: tuple[float, float], bins: int, levels: int
) -> tuple[Host, Host]:
    """Parts of a range, and how far the quantized distribution is from that of data."""
    low, high = span
    counts, edges = np.histogram(
        samples.values, bins=bins, range=span, weights=samples.weights
    )
    centre = (edges[1:] + edges[:-1]) / 2
    parts, errors = [], []
    for kept in np.linspace(levels, bins, 64).astype(int):
        part = kept / bins
        inside = (centre >= part * low) & (centre <= part * high)
        first, last = np.flatnonzero(inside)[[0, -1]]
        clipped = counts[first : last + 1].copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last + 1 :].sum()
        parts.append(part)
        errors.append(_divergence(clipped, counts[first : last + 1], levels))
    return np.asarray(parts), np.asarray(errors)


def _divergence(clipped: Host, inside: Host, levels: int) -> float:
    """The divergence of what so few levels, spread over the bins, tell of counts."""
    group = np.arange(len(inside)) * levels // len(inside)
    live = inside > 0
    sums = np.bincount(group, weights=inside, minlength=levels)
    shared = np.bincount(group, weights=live, minlength=levels)
    told = np.where(live, sums[group] / np.maximum(shared[group], 1), 0)
    p = clipped / clipped.sum()
    q = told / max(told.sum(), np.finfo(np.float64).tiny)
    # What is clipped into an empty bin is told by nothing: a small number instead.
    ratio = np.where(p > 0, p, 1) / np.where(q > 0, q, 1e-9)
    return float(np.sum(np.where(p > 0, p * np.log(ratio), 0)))
