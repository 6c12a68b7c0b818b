"""Fake quantization: train and evaluate with the errors that integers will make."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress._flow import Location, Use
from jcompress._interpreter import Bind, Handler, Program
from jcompress._jaxprs import aval_shape
from jcompress._matrix import leaf_axes
from jcompress._trace import Traced, trace
from jcompress.quantization.arithmetic import (
    Range,
    fake_quantize,
    fake_quantize_weight,
    range_of,
    scale_and_zero,
)
from jcompress.quantization.convert import check
from jcompress.quantization.formats import (
    Activation,
    MovingAverage,
    PerRow,
    Quantize,
)
from jcompress.rules import RuleError, Rules
from jcompress.sites import PRODUCTS, Site
from jcompress.tensors import is_compressed

Ranges = Mapping[str, Sequence[Range]]
"""For each leaf with moving-average inputs, one range for each of its products.

`low` and `high` are float32, shaped by the lengths of the scans that take the leaf
apart: scalars for a plain layer, [layers] for a scan over layers.
"""


def fake_quant(
    fn: Callable[..., Any], rules: Rules[Quantize], *, ranges: Ranges | None = None
) -> Callable[..., Any]:
    """Make a function compute with quantized weights and activations, in floats.

    Like `jax.grad`, it returns a function with the signature of `fn`. Weights are
    rounded once a call, inputs of products where they meet them; gradients pass
    straight through (`fake_quantize`). Nothing gets smaller or faster: the result is a
    simulation, exact in that `quantize` and `compressed` compute the same afterwards.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        rules: pairs of a predicate and a `Quantize`.
        ranges: for the leaves whose inputs have a `MovingAverage` range: what
            `init_ranges` made and `calibrate` filled. A range that has seen no data
            yet is replaced by that of the data at hand.

    Returns:
        A function with the arguments and results of `fn`. Called, it raises what
        `check` raises, and RuleError where activations cannot be quantized.

    References:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.quantization import Quantize, Weights, fake_quant
        >>> rules = [("w", Quantize(weights=Weights(bits=2)))]
        >>> layer = fake_quant(lambda params, x: x @ params["w"], rules)
        >>> layer({"w": jnp.array([[0.9], [0.2]])}, jnp.eye(2))
        Array([[0.9],
               [0. ]], dtype=float32)
    """

    @functools.wraps(fn)
    def simulated(variables: Any, *args: Any, **kwargs: Any) -> Any:
        plan = _Plan.of(fn, rules, variables, args, kwargs, transform="fake_quant")
        if plan.averaged and ranges is None:
            raise RuleError(
                "fake_quant: the inputs of "
                f"{', '.join(plan.averaged)} have moving-average ranges; pass "
                "ranges=init_ranges(fn, rules, variables, ...) as calibrate updates it,"
                " or use range=Dynamic()"
            )
        outs, _ = plan.run(ranges, simulate=True)
        return plan.traced.rebuild(outs)

    return simulated


def calibrate(
    fn: Callable[..., Any], rules: Rules[Quantize], *, simulate: bool = False
) -> Callable[..., Any]:
    """Make a function collect the moving-average ranges of its products' inputs.

    The function returned takes `(variables, ranges, *args)` and gives
    `(outputs, ranges)`; it can be jitted and scanned like any other.

    Args:
        fn: any function of a parameter tree.
        rules: the rules that will be given to `fake_quant` and `quantize`.
        simulate: whether the outputs are those of the fake-quantized function, for
            training with quantization, rather than those of `fn`. It quantizes with
            the ranges given, not yet with those of this batch.

    Returns:
        The function. Its ranges after a batch are
        `decay * ranges + (1 - decay) * (range of the batch)`, or the range of the
        batch where there was none. Called, it raises what `fake_quant` raises, and
        RuleError if no rule asks for a moving average.
    """

    @functools.wraps(fn)
    def observed(variables: Any, ranges: Ranges, *args: Any, **kwargs: Any) -> Any:
        plan = _Plan.of(fn, rules, variables, args, kwargs, transform="calibrate")
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
        RuleError: as `fake_quant`, and if no rule asks for a moving average.
    """
    plan = _Plan.of(fn, rules, variables, args, kwargs, transform="init_ranges")
    plan.require_averages("init_ranges")
    return {
        path: tuple(
            _empty(tuple(n for _, n in plan.traced.uses[where].stacked))
            for where in locations
        )
        for path, locations in plan.averaged.items()
    }


def _empty(shape: tuple[int, ...]) -> Range:
    infinity = jnp.full(shape, jnp.inf, jnp.float32)
    return Range(infinity, -infinity)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What fake quantization does to one traced function.

    Attributes:
        traced: the function.
        specs: the spec of each leaf that is acted on.
        inputs: the activation spec of each product whose input is quantized.
        averaged: the locations of each leaf's products, for moving averages.
    """

    traced: Traced
    specs: Mapping[str, Quantize]
    inputs: Mapping[Location, Activation]
    averaged: Mapping[str, tuple[Location, ...]]

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        rules: Rules[Quantize],
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        transform: str,
    ) -> "_Plan":
        traced = trace(fn, variables, args, kwargs)
        specs = check(traced.sites, rules, transform=transform).leaves
        compressed = {
            name
            for name, leaf in zip(traced.names, traced.leaves, strict=True)
            if is_compressed(leaf)
        }
        for path in specs:
            if path in compressed:
                raise RuleError(
                    f"{transform}: {path} is compressed already; simulate with the "
                    f"dense weight, or exclude it by a rule ({path!r}, None)"
                )
        inputs: dict[Location, Activation] = {}
        averaged: dict[str, list[Location]] = {}
        for site in traced.sites:
            activation = specs[site.path].activation if site.path in specs else None
            if activation is None or site.operation not in PRODUCTS:
                continue
            _check_input(site, traced.uses[site.location], specs, transform)
            inputs[site.location] = activation
            if isinstance(activation.range, MovingAverage):
                averaged.setdefault(site.path, []).append(site.location)
        for path, spec in specs.items():
            met = any(site.location in inputs for site in traced.sites.of(path))
            if spec.weights is None and not met:
                raise RuleError(
                    f"{transform}: {path} is only looked up, so it meets no numbers "
                    "to quantize; its rule needs weights=Weights(...)"
                )
        locations = {path: tuple(where) for path, where in averaged.items()}
        return cls(traced, specs, inputs, locations)

    def require_averages(self, transform: str) -> None:
        if not self.averaged:
            raise RuleError(
                f"{transform}: no rule has an Activation(range=MovingAverage(...)), so "
                "there is no range to keep"
            )

    def run(
        self, ranges: Ranges | None, *, simulate: bool
    ) -> tuple[list[Any], dict[Location, Range]]:
        leaves = [
            self._faked(name, leaf) if simulate else leaf
            for name, leaf in zip(self.traced.names, self.traced.leaves, strict=True)
        ]
        reads = self._reads(ranges)
        handlers: dict[Location, Handler] = {
            where: _QuantizeInput(activation, simulate)
            for where, activation in self.inputs.items()
        }
        program = Program(
            traced=self.traced, handlers=handlers, statistic=RangeStatistic()
        )
        return program(leaves, self.traced.data, reads)

    def _faked(self, name: str, leaf: Any) -> Any:
        spec = self.specs.get(name)
        if spec is None or spec.weights is None:
            return leaf
        axes = leaf_axes(self.traced.sites.of(name))
        return fake_quantize_weight(jnp.asarray(leaf), axes, spec.weights)

    def _reads(self, ranges: Ranges | None) -> dict[Location, Range]:
        reads = {}
        for path, locations in self.averaged.items():
            if ranges is None or path not in ranges:
                raise RuleError(
                    f"ranges has no entry for {path}; make it with "
                    "init_ranges(fn, rules, variables, ...)"
                )
            if len(ranges[path]) != len(locations):
                raise RuleError(
                    f"ranges has {len(ranges[path])} entries for {path}, which is in "
                    f"{len(locations)} products"
                )
            for where, (low, high) in zip(locations, ranges[path], strict=True):
                shape = tuple(n for _, n in self.traced.uses[where].stacked)
                if jnp.shape(low) != shape or jnp.shape(high) != shape:
                    raise RuleError(
                        f"a range of {path} has shape {list(jnp.shape(low))} and "
                        f"{list(jnp.shape(high))}, not {list(shape)}"
                    )
                reads[where] = Range(low, high)
        return reads

    def updated(
        self, ranges: Ranges, seen: Mapping[Location, Range]
    ) -> dict[str, tuple[Range, ...]]:
        """The moving averages after a batch."""
        result = {}
        for path, locations in self.averaged.items():
            kind = self.inputs[locations[0]].range
            assert isinstance(kind, MovingAverage)
            result[path] = tuple(
                _averaged(old, seen[where], kind.decay)
                for where, old in zip(locations, ranges[path], strict=True)
            )
        return result


def _averaged(old: Range, new: Range, decay: float) -> Range:
    def one(past: jax.Array, now: jax.Array) -> jax.Array:
        mixed = decay * past + (1 - decay) * now
        mixed = jnp.where(jnp.isfinite(past), mixed, now)
        return jnp.where(jnp.isfinite(now), mixed, past)

    return Range(one(old.low, new.low), one(old.high, new.high))


def _check_input(
    site: Site, use: Use, specs: Mapping[str, Quantize], transform: str
) -> None:
    wanted = specs[site.path].activation
    if site.sealed:
        raise RuleError(
            f"{transform}: the input of {site.path} is inside a function with a custom "
            "gradient, which quantizing it would change; give the leaf a rule without "
            "activation"
        )
    if use.data is None:
        raise RuleError(
            f"{transform}: {site.path} is multiplied with another parameter, so there "
            "is no data to quantize; give the leaf a rule without activation"
        )
    others = {other.path for other in use.sites if other.operation in PRODUCTS}
    for path in others - {site.path}:
        spec = specs.get(path)
        if spec is None or spec.activation != wanted:
            raise RuleError(
                f"{transform}: {site.path} and {path} are one matrix when they meet "
                f"their input, so their rules need the same activation; they have "
                f"{wanted} and {None if spec is None else spec.activation}"
            )


class RangeStatistic:
    """Ranges of several executions of a site become the range that holds them all."""

    def empty(self, like: Any) -> Any:
        """The range of no data."""
        return _empty(like.low.shape)

    def join(self, a: Any, b: Any) -> Any:
        """The range that holds both."""
        return Range(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

    def reduce(self, stacked: Any) -> Any:
        """The range that holds all along the leading axis."""
        return Range(jnp.min(stacked.low, axis=0), jnp.max(stacked.high, axis=0))

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """The range that holds those of all devices."""
        return Range(
            jax.lax.pmin(value.low, axis_names), jax.lax.pmax(value.high, axis_names)
        )


def input_scale(
    x: jax.Array, use: Use, activation: Activation, stored: Range | None
) -> tuple[jax.Array, jax.Array | None]:
    """Scale and zero point of a product's input, broadcasting against it.

    Args:
        x: the input.
        use: the product.
        activation: how the input is quantized.
        stored: the range to use; None, or a range without data, takes that of `x`.
    """
    bits, symmetric = activation.bits, activation.symmetric
    given = jax.lax.stop_gradient(x)
    axes = None
    if isinstance(activation.granularity, PerRow):
        axes = contracted(use)
    now = range_of(given, axes)
    if stored is not None:
        known = jnp.isfinite(stored.low) & jnp.isfinite(stored.high)
        now = Range(
            jnp.where(known, stored.low, now.low),
            jnp.where(known, stored.high, now.high),
        )
    return scale_and_zero(now, bits=bits, symmetric=symmetric)


def contracted(use: Use) -> tuple[int, ...]:
    """The axes of a product's data that it sums over; of a convolution, all but one."""
    assert use.data is not None
    eqn = use.eqn
    match eqn.primitive.name:
        case "dot_general":
            return tuple(eqn.params["dimension_numbers"][0][use.data])
        case "conv_general_dilated":
            batch = eqn.params["dimension_numbers"].lhs_spec[0]
            rank = len(aval_shape(eqn.invars[0]))
            return tuple(axis for axis in range(rank) if axis != batch)
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    return tuple(numbers.dot_dimension_numbers[0][use.data])


@dataclasses.dataclass(frozen=True)
class _QuantizeInput:
    """Handler of a product whose input is quantized, or only looked at."""

    activation: Activation
    simulate: bool

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        assert use.data is not None
        inputs = list(inputs)
        x = inputs[use.data]
        seen = None
        if isinstance(self.activation.range, MovingAverage):
            seen = range_of(jax.lax.stop_gradient(x), None)
            seen = Range(seen.low.reshape(()), seen.high.reshape(()))
        if self.simulate:
            scale, zero = input_scale(x, use, self.activation, read)
            inputs[use.data] = fake_quantize(
                x,
                scale,
                zero,
                bits=self.activation.bits,
                symmetric=self.activation.symmetric,
            )
        return bind(inputs), seen
