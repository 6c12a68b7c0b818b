"""What quantization rules mean for one traced function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.quantization._inputs import (
    QuantizeInput,
    moving_average,
)
from jcompress.quantization.convert import check
from jcompress.quantization.spec import Quantize
from jcompress.rounding import Nearest
from jcompress.rules import Rules
from jcompress.sites import PRODUCTS, Site, leaf_axes
from jcompress.statistics import kinds
from jcompress.tensors import is_compressed
from jcompress.tensors.ranges import Range
from jcompress.tensors.specs import Activation, MovingAverage
from jcompress.tensors.weight_matrix import fake_quantize_weight
from jcompress.tracing.handlers import Handler
from jcompress.tracing.interpreter import Program
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.values import Location, Use

Ranges = Mapping[str, Sequence[Range]]
"""For each leaf with moving-average inputs, one range for each of its products.

`low` and `high` are float32, shaped by the lengths of the scans that take the leaf
apart: scalars for a plain layer, [layers] for a scan over layers.
"""


@dataclasses.dataclass(frozen=True)
class QuantizationPlan:
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
    ) -> "QuantizationPlan":
        traced = trace(fn, variables, args, kwargs)
        specs = check(traced.sites, rules, transform=transform).leaves
        compressed = {
            name
            for name, leaf in zip(traced.names, traced.leaves, strict=True)
            if is_compressed(leaf)
        }
        for path in specs:
            if path in compressed:
                raise MismatchError(
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
            if not isinstance(spec.rounding, Nearest):
                raise MismatchError(
                    f"{transform}: {path} has rounding={spec.rounding!r}, which "
                    "chooses numbers once, from data; simulate with rounding=Nearest()"
                )
            met = any(site.location in inputs for site in traced.sites.of(path))
            if spec.weights is None and not met:
                raise MismatchError(
                    f"{transform}: {path} is only looked up, so it meets no numbers "
                    "to quantize; its rule needs weights=Weights(...)"
                )
        locations = {path: tuple(where) for path, where in averaged.items()}
        return cls(traced, specs, inputs, locations)

    def require_averages(self, transform: str) -> None:
        if not self.averaged:
            raise MismatchError(
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
            where: QuantizeInput(activation, simulate)
            for where, activation in self.inputs.items()
        }
        program = Program(
            traced=self.traced, handlers=handlers, statistic=kinds.Ranges()
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
                raise MismatchError(
                    f"ranges has no entry for {path}; make it with "
                    "init_ranges(fn, rules, variables, ...)"
                )
            if len(ranges[path]) != len(locations):
                raise MismatchError(
                    f"ranges has {len(ranges[path])} entries for {path}, which is in "
                    f"{len(locations)} products"
                )
            for where, (low, high) in zip(locations, ranges[path], strict=True):
                shape = tuple(n for _, n in self.traced.uses[where].stacked)
                if jnp.shape(low) != shape or jnp.shape(high) != shape:
                    raise MismatchError(
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
                moving_average(old, seen[where], kind.decay)
                for where, old in zip(locations, ranges[path], strict=True)
            )
        return result


def _check_input(
    site: Site, use: Use, specs: Mapping[str, Quantize], transform: str
) -> None:
    wanted = specs[site.path].activation
    if site.in_custom_gradient:
        raise MismatchError(
            f"{transform}: the input of {site.path} is inside a function with a custom "
            "gradient, which quantizing it would change; give the leaf a rule without "
            "activation"
        )
    if use.data is None:
        raise MismatchError(
            f"{transform}: {site.path} is multiplied with another parameter, so there "
            "is no data to quantize; give the leaf a rule without activation"
        )
    dtype = use.eqn.invars[use.data].aval.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise MismatchError(
            f"{transform}: {site.path} meets {dtype} data, and only floats can be "
            "quantized; give the leaf a rule without activation"
        )
    others = {other.path for other in use.sites if other.operation in PRODUCTS}
    for path in others - {site.path}:
        spec = specs.get(path)
        if spec is None or spec.activation != wanted:
            raise MismatchError(
                f"{transform}: {site.path} and {path} are one matrix when they meet "
                f"their input, so their rules need the same activation; they have "
                f"{wanted} and {None if spec is None else spec.activation}"
            )
