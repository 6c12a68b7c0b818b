"""What quantization rules mean for one traced function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.quantization._folds import Folds, factors_of, into, out_of
from jcompress.quantization._inputs import (
    InputRead,
    QuantizeInput,
    moving_average,
    whole_range,
)
from jcompress.quantization._weights import simulate_weight
from jcompress.quantization.convert import check
from jcompress.quantization.learned import Scales, check_learned, learns
from jcompress.quantization.noise import WeightNoise
from jcompress.quantization.spec import Quantize
from jcompress.rounding import Nearest
from jcompress.rules import Rules
from jcompress.sites import PRODUCTS, Site, leaf_axes
from jcompress.statistics import kinds
from jcompress.tensors import is_compressed
from jcompress.tensors.axes import matrix_shape
from jcompress.tensors.range_specs import Lsq
from jcompress.tensors.ranges import Range
from jcompress.tensors.specs import Activation, MovingAverage, Static
from jcompress.tensors.weight_matrix import scale_shape
from jcompress.tracing.handlers import Handler
from jcompress.tracing.interpreter import OnceMade, Program
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.values import Location, Use, by_data

Ranges = Mapping[str, Sequence[Range]]
"""For each leaf with stored ranges of inputs, one for each of its products.

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
        stored: the locations of each leaf's products, for ranges that are stored.
        learned: the same of each leaf with learned scales, for its inputs' scales;
            empty where only those of its own numbers are learned.
        factors: what a leaf is multiplied with before it is rounded, and divided by
            after, by name.
    """

    traced: Traced
    specs: Mapping[str, Quantize]
    inputs: Mapping[Location, Activation]
    stored: Mapping[str, tuple[Location, ...]]
    learned: Mapping[str, tuple[Location, ...]]
    factors: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)

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
        folds: Folds | None = None,
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
        stored: dict[str, list[Location]] = {}
        learned: dict[str, list[Location]] = {
            path: [] for path, spec in specs.items() if learns(spec.weights)
        }
        for site in traced.sites:
            activation = specs[site.path].activation if site.path in specs else None
            if activation is None or site.operation not in PRODUCTS:
                continue
            _check_input(site, traced.uses[site.location], specs, transform)
            inputs[site.location] = activation
            if isinstance(activation.range, MovingAverage | Static):
                stored.setdefault(site.path, []).append(site.location)
            if learns(activation):
                learned.setdefault(site.path, []).append(site.location)
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
        factors: dict[str, jax.Array] = {}
        if folds is not None:
            by_name = dict(zip(traced.names, traced.leaves, strict=True))
            rounded = {p: spec for p, spec in specs.items() if spec.weights is not None}
            factors = factors_of(transform, folds, by_name, rounded)
        return cls(traced, specs, inputs, _fixed(stored), _fixed(learned), factors)

    def require_averages(self, transform: str) -> None:
        kinds = (self.inputs[where[0]].range for where in self.stored.values())
        if not any(isinstance(kind, MovingAverage) for kind in kinds):
            raise MismatchError(
                f"{transform}: no rule has an Activation(range=MovingAverage(...)), so "
                "there is no range to keep"
            )

    def run(
        self,
        ranges: Ranges | None,
        *,
        simulate: bool,
        scales: Scales | None = None,
        noise: WeightNoise | None = None,
        active: jax.Array | None = None,
    ) -> tuple[list[Any], dict[Location, Range]]:
        stored = self._stored_ranges(ranges)
        leaves = list(self.traced.leaves)
        reads = {where: InputRead(range) for where, range in stored.items()}
        if simulate:
            self._check_scales(scales)
            leaves = [
                self._faked(name, leaf, scales or {}, noise, active)
                for name, leaf in zip(self.traced.names, leaves, strict=True)
            ]
            reads = self._reads(stored, scales or {}, active)
        handlers: dict[Location, Handler] = {
            where: QuantizeInput(activation, simulate)
            for where, activation in self.inputs.items()
        }
        program = Program(
            traced=self.traced,
            handlers=handlers,
            statistic=kinds.Ranges(),
            once_made=self._shared() if simulate else {},
        )
        return program(leaves, self.traced.data, reads)

    def _shared(self) -> Mapping[Location, Mapping[Any, OnceMade]]:
        """How values are rounded that all who read them get rounded."""
        uses = [
            self.traced.uses[where]
            for where, activation in self.inputs.items()
            if activation.shared
        ]
        return {
            at: {value: self._round_once(readers) for value, readers in values.items()}
            for at, values in by_data(uses).items()
        }

    def _round_once(self, readers: Sequence[Use]) -> OnceMade:
        """Rounds a value as the first of its readers does."""
        first = readers[0]
        handler = QuantizeInput(self.inputs[first.location], True)

        def rounded(x: Any, reads: Mapping[Location, Any]) -> Any:
            seen = dict.fromkeys((use.location for use in readers), whole_range(x))
            return handler.rounded(x, first, reads[first.location]), seen

        return rounded

    def _faked(
        self,
        name: str,
        leaf: Any,
        scales: Scales,
        noise: WeightNoise | None,
        active: jax.Array | None,
    ) -> Any:
        spec = self.specs.get(name)
        if spec is None or spec.weights is None:
            return leaf
        leaf, factor = jnp.asarray(leaf), self.factors.get(name)
        axes = leaf_axes(self.traced.sites.of(name))
        step = scales[name].weights if name in self.learned else None
        folded = into(leaf, factor)
        faked = simulate_weight(folded, axes, spec.weights, step, noise, name)
        faked = out_of(faked, factor, leaf)
        return faked if active is None else jnp.where(active, faked, leaf)

    def lengths(self, where: Location) -> tuple[int, ...]:
        """The lengths of the scans that take the leaf of a product apart."""
        return tuple(n for _, n in self.traced.uses[where].stacked)

    def weight_scale_shape(self, path: str) -> tuple[int, ...] | None:
        """That of a leaf's learned scales, [*S, R, G]; None without any."""
        spec = self.specs[path]
        if spec.weights is None or not isinstance(spec.weights.range, Lsq):
            return None
        uses = self.traced.sites.of(path)
        stacks, outputs, inputs = matrix_shape(uses[0].shape, leaf_axes(uses))
        return scale_shape((*stacks, outputs, inputs), spec.weights.granularity)

    def _check_scales(self, scales: Scales | None) -> None:
        for path, locations in self.learned.items():
            if scales is None or path not in scales:
                raise MismatchError(
                    f"fake_quant: the scales of {path} are learned, and `scales` has "
                    "none for it; pass scales=init_scales(fn, rules, variables, ...) "
                    "of jcompress.qat, as training updates them"
                )
            spec, given = self.specs[path], scales[path]
            check_learned("fake_quant", path, spec, given, len(locations))
            shapes: list[tuple[Any, tuple[int, ...] | None]] = [
                (given.weights, self.weight_scale_shape(path))
            ]
            shapes += [
                (one, self.lengths(where))
                for where, one in zip(locations, given.inputs, strict=True)
            ]
            for one, shape in shapes:
                for part in jax.tree.leaves(one):
                    if jnp.shape(part) != shape:
                        raise MismatchError(
                            f"fake_quant: a learned scale of {path} has shape "
                            f"{list(jnp.shape(part))}, not {list(shape or ())}; make "
                            "it with init_scales"
                        )

    def _reads(
        self, stored: Mapping[Location, Range], scales: Scales, active: Any
    ) -> dict[Location, InputRead]:
        learned = {
            where: one
            for path, locations in self.learned.items()
            for where, one in zip(locations, scales[path].inputs, strict=True)
        }
        return {
            where: InputRead(
                stored.get(where),
                learned.get(where),
                None
                if active is None
                else jnp.broadcast_to(active, self.lengths(where)),
            )
            for where in self.inputs
        }

    def _stored_ranges(self, ranges: Ranges | None) -> dict[Location, Range]:
        reads = {}
        for path, locations in self.stored.items():
            if ranges is None or path not in ranges:
                raise MismatchError(
                    f"ranges has no entry for {path}; make it with "
                    "init_ranges(fn, rules, variables, ...), for range=Static() with "
                    "jcompress.calibration.choose_ranges"
                )
            if len(ranges[path]) != len(locations):
                raise MismatchError(
                    f"ranges has {len(ranges[path])} entries for {path}, which is in "
                    f"{len(locations)} products"
                )
            for where, (low, high) in zip(locations, ranges[path], strict=True):
                shape = self.lengths(where)
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
        for path, locations in self.stored.items():
            kind = self.inputs[locations[0]].range
            if isinstance(kind, Static):
                result[path] = tuple(ranges[path])
                continue
            assert isinstance(kind, MovingAverage)
            result[path] = tuple(
                moving_average(old, seen[where], kind.decay)
                for where, old in zip(locations, ranges[path], strict=True)
            )
        return result


def _fixed(
    locations: Mapping[str, list[Location]],
) -> dict[str, tuple[Location, ...]]:
    return {path: tuple(where) for path, where in locations.items()}


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
    if others != {site.path} and isinstance(wanted, Activation) and learns(wanted):
        raise MismatchError(
            f"{transform}: {' and '.join(sorted(others))} are one matrix when they "
            "meet their input, which can have one range only, so none of "
            f"{wanted.range!r}; use range=Dynamic(), Static() or MovingAverage()"
        )
    for path in others - {site.path}:
        spec = specs.get(path)
        if spec is None or spec.activation != wanted:
            raise MismatchError(
                f"{transform}: {site.path} and {path} are one matrix when they meet "
                f"their input, so their rules need the same activation; they have "
                f"{wanted} and {None if spec is None else spec.activation}"
            )
