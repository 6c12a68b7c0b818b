"""Fake quantization: train and evaluate with the errors that small numbers make."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.quantization._folds import Folds
from jcompress.quantization._inputs import empty_range
from jcompress.quantization._plan import QuantizationPlan, Ranges
from jcompress.quantization.learned import Scales
from jcompress.quantization.noise import WeightNoise
from jcompress.quantization.spec import Quantize
from jcompress.rules import Rules
from jcompress.tensors.ranges import Range


def fake_quant(
    fn: Callable[..., Any],
    rules: Rules[Quantize],
    *,
    ranges: Ranges | None = None,
    scales: Scales | None = None,
    noise: WeightNoise | None = None,
    active: bool | jax.Array | None = None,
    folds: Folds | None = None,
) -> Callable[..., Any]:
    """Make a function compute with quantized weights and activations, in floats.

    Like `jax.grad`, it returns a function with the signature of `fn`. Weights are
    rounded once a call, inputs of products where they meet them; gradients pass
    straight through (`fake_quantize`). Nothing gets smaller or faster: the result is a
    simulation, exact in that `quantize` and `compressed` compute the same afterwards.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        rules: pairs of a predicate and a `Quantize`.
        ranges: for the leaves whose inputs have a `MovingAverage` range what
            `init_ranges` made and `calibrate` filled, for those with a `Static` one
            what `jcompress.calibration.choose_ranges` gave. A range that has seen no
            data yet is replaced by that of the data at hand.
        scales: for the leaves with an `Lsq` or `Pact` range: what
            `jcompress.qat.init_scales` made. Gradients flow to them, so make the
            transform inside the loss that takes them as an argument.
        noise: what chance does to the weights at this call, such as
            `jcompress.qat.StochasticRounding(key=key)`.
        active: bool, may be traced, such as `step >= 1000`: whether anything is
            quantized at all; where it is False the results are those of `fn`.
        folds: what `jcompress.rescaling.find_folds(evaluate, variables, x)` found in
            the function that will be served. Weights that a normalization follows are
            rounded as they will be when it is folded into them, and divided by its
            factor again; no gradient flows through the factor. What is trained is then
            what `fold` and `quantize` make of the tree.

    Returns:
        A function with the arguments and results of `fn`. Called, it raises what
        `check` raises, and MismatchError where activations cannot be quantized,
        ranges or scales are missing or of another shape, or folds are of another tree.

    References:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights, fake_quant
        >>> rules = [("w", Quantize(weights=Weights(format=Int(2))))]
        >>> layer = fake_quant(lambda params, x: x @ params["w"], rules)
        >>> layer({"w": jnp.array([[0.9], [0.2]])}, jnp.eye(2))
        Array([[0.9],
               [0. ]], dtype=float32)
    """

    @functools.wraps(fn)
    def simulated(variables: Any, *args: Any, **kwargs: Any) -> Any:
        plan = QuantizationPlan.of(
            fn, rules, variables, args, kwargs, transform="fake_quant", folds=folds
        )
        if plan.stored and ranges is None:
            raise MismatchError(
                "fake_quant: the inputs of "
                f"{', '.join(plan.stored)} have stored ranges; pass "
                "ranges=init_ranges(fn, rules, variables, ...) as calibrate updates "
                "it, for range=Static() what jcompress.calibration.choose_ranges "
                "gives, or use range=Dynamic()"
            )
        outs, _ = plan.run(
            ranges,
            simulate=True,
            scales=scales,
            noise=noise,
            active=None if active is None else jnp.asarray(active, jnp.bool_),
        )
        return plan.traced.rebuild(outs)

    return simulated


def calibrate(
    fn: Callable[..., Any],
    rules: Rules[Quantize],
    *,
    simulate: bool = False,
    folds: Folds | None = None,
) -> Callable[..., Any]:
    """Make a function collect the moving-average ranges of its products' inputs.

    The function returned takes `(variables, ranges, *args)` and gives
    `(outputs, ranges)`; it can be jitted and scanned like any other.

    Args:
        fn: any function of a parameter tree.
        rules: the rules that will be given to `fake_quant` and `quantize`.
        simulate: whether the outputs are those of the fake-quantized function, for
            training with quantization, rather than those of `fn`. It quantizes with
            the ranges given, not yet with those of this batch. Scales that are learned
            it does not know, so that it raises.
        folds: as of `fake_quant`, for `simulate`.

    Returns:
        The function. Its ranges after a batch are
        `decay * ranges + (1 - decay) * (range of the batch)`, or the range of the
        batch where there was none. Called, it raises what `fake_quant` raises, and
        MismatchError if no rule asks for a moving average.
    """

    @functools.wraps(fn)
    def observed(variables: Any, ranges: Ranges, *args: Any, **kwargs: Any) -> Any:
        plan = QuantizationPlan.of(
            fn, rules, variables, args, kwargs, transform="calibrate", folds=folds
        )
        plan.require_averages("calibrate")
        outs, seen = plan.run(ranges, simulate=simulate)
        return plan.traced.rebuild(outs), plan.updated(ranges, seen)

    return observed


def init_ranges(
    fn: Callable[..., Any],
    rules: Rules[Quantize],
    variables: Any,
    *args: Any,
    **kwargs: Any,
) -> dict[str, tuple[Range, ...]]:
    """Ranges that have seen no data, for `calibrate` and `fake_quant` to start from.

    Args:
        fn: any function of a parameter tree.
        rules: the rules.
        variables: the tree of parameters; shapes suffice.
        *args: further arguments of `fn`; shapes suffice.
        **kwargs: further keyword arguments of `fn`.

    Raises:
        MismatchError: as `fake_quant`, and if no rule asks for a moving average.
    """
    plan = QuantizationPlan.of(
        fn, rules, variables, args, kwargs, transform="init_ranges"
    )
    plan.require_averages("init_ranges")
    return {
        path: tuple(
            empty_range(tuple(n for _, n in plan.traced.uses[where].stacked))
            for where in locations
        )
        for path, locations in plan.stored.items()
    }
