"""The steps of a recipe: what happens to a model, one after the other."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jcompress.calibration import Static
from jcompress.conversion import resolve_specs
from jcompress.distillation.students import plan_narrower
from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.low_rank import Svd, factorize
from jcompress.models.storing import quantized
from jcompress.models.work import Work
from jcompress.pruning import NM, Unstructured
from jcompress.pruning.one_shot import Magnitude, OneShot, SparseGpt, prune_weights
from jcompress.quantization import (
    Activation,
    LeastError,
    PerGroup,
    Quantize,
    Weights,
)
from jcompress.rounding import Gptq, Nearest
from jcompress.rules import Rules, resolve
from jcompress.shrinking import shrink, shrunk
from jcompress.sites import Operation, Site


class Step(abc.ABC):
    """One step of a recipe; subclass it as a frozen dataclass for steps of your own."""

    @abc.abstractmethod
    def apply(self, work: Work) -> Work:
        """The model after the step.

        Raises:
            MismatchError: the step does not fit the model.
        """

    def rules(self, work: Work) -> Rules[Quantize]:
        """What it quantizes, if that is what it does; for `expect`."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeStep(Step):
    """Weights in few bits.

    Attributes:
        bits: of the weights of products and convolutions.
        group: inputs that share a scale; None for one scale an output. A weight whose
            inputs it does not divide has one scale an output.
        activations: whether data is rounded to 8 bits, row by row.
        static: whether a range of the data is chosen for each product once, from the
            batches that `compress` gets, or else from the example.
        shared: whether all that reads this data gets it rounded.
        exclude: leaves that stay, as globs of their names.
    """

    bits: int
    group: int | None = None
    activations: bool = False
    static: bool = False
    shared: bool = False
    exclude: tuple[str, ...] = ()

    def rules(self, work: Work) -> Rules[Quantize]:
        """A rule a kind of weight."""
        own: list[tuple[Any, Quantize | None]] = [(glob, None) for glob in self.exclude]
        taken = work.quantized
        # Rows of tables are picked, not summed: 8 bits, without data to round.
        tables = Quantize(weights=Weights(format=Int(8)))
        grouped = None if self.group is None else PerGroup(self.group)
        kinds: list[tuple[Callable[[Site], bool], Quantize]] = [
            (lambda site: site.operation is Operation.LOOKUP, tables),
            (lambda site: not self._fits(site), self._products(work, None)),
            (self._fits, self._products(work, grouped)),
        ]
        weights = [
            work.sites.of(path)[0]
            for path in resolve_specs(
                [*own, (..., tables)],
                work.sites,
                Quantize,
                transform="compress",
                usage="Quantize(...)",
            ).leaves
            if path not in taken
        ]
        for predicate, spec in kinds:
            if any(predicate(site) for site in weights):
                own.append((predicate, spec))
                weights = [site for site in weights if not predicate(site)]
        return own

    def _fits(self, site: Site) -> bool:
        return self.group is None or _inputs(site) % self.group == 0

    def _products(self, work: Work, granularity: PerGroup | None) -> Quantize:
        few = self.bits < 8
        fields: dict[str, Any] = {"format": Int(self.bits)}
        if granularity is not None:
            fields["granularity"] = granularity
        # Where a training follows, it makes up for rounding to the nearest.
        learns = few and bool(work.data) and not work.trains
        if few and not learns:
            fields["range"] = LeastError()
        return Quantize(
            weights=Weights(**fields),
            activation=self._data() if self.activations else None,
            rounding=Gptq() if learns else Nearest(),
        )

    def _data(self) -> Activation:
        if not self.static:
            return Activation()
        return Activation(range=Static(), shared=self.shared)

    def apply(self, work: Work) -> Work:
        """Quantize; by GPTQ if there is data and bits are few."""
        return quantized(work, self.rules(work))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseStep(Step):
    """Some weights go, and only the others are stored.

    Attributes:
        pattern: `NM` or `Unstructured`.
        sparsity: the fraction removed; None for `NM`.
    """

    pattern: NM | Unstructured
    sparsity: float | None = None

    def apply(self, work: Work) -> Work:
        """By SparseGPT if there is data, else by magnitude."""
        method = SparseGpt() if work.data else Magnitude()
        sites, pattern = work.sites, self.pattern
        m = pattern.m if isinstance(pattern, NM) else 1

        def fits(site: Site) -> bool:
            return bool(sites.products(site.path)) and _inputs(site) % m == 0

        if not any(map(fits, sites)):
            raise MismatchError(
                f"compress: {pattern}: {m} divides the number of inputs of no weight"
            )
        spec = OneShot(method=method, pattern=pattern, sparsity=self.sparsity)
        rules = [(fits, spec)]
        moments = work.moments(rules) if method.learns else None
        zeros = prune_weights(work.params, rules, sites=sites, moments=moments)
        return dataclasses.replace(
            work,
            params=zeros,
            sparse=(*work.sparse, (fits, pattern)),
            pruned=work.pruned | {site.path for site in sites if fits(site)},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NarrowStep(Step):
    """Whole units go, the least important of every width.

    Attributes:
        keep: the fraction that stays.
        recover: `recover(fn, params) -> params` trains the narrow model, which is of
            little use before that.
    """

    keep: float
    recover: Callable[[Callable[..., Any], Any], Any] | None = None

    def apply(self, work: Work) -> Work:
        """Cut, and recover if a way is given."""
        plan = plan_narrower(work.fn, work.params, *work.args, keep=self.keep)
        fn, params = shrunk(work.fn, plan), shrink(work.params, plan)
        if self.recover is not None:
            params = self.recover(fn, params)
        plan = plan if work.plan is None else work.plan.then(plan)
        return dataclasses.replace(work, fn=fn, params=params, plan=plan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankStep(Step):
    """Two thin factors for each weight.

    Attributes:
        parameters: the fraction of its parameters that stay.
    """

    parameters: float

    def apply(self, work: Work) -> Work:
        """By the singular values, of the outputs on the data if there is some."""
        sites = work.sites
        rules = [
            (
                lambda site: (
                    bool(sites.products(site.path)) and site.operation is Operation.DOT
                ),
                Svd(parameters=self.parameters),
            )
        ]
        moments = work.moments(rules) if work.data else None
        small = factorize(work.params, rules, sites=sites, moments=moments)
        return dataclasses.replace(work, params=small)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulesStep(Step):
    """What rules of your own say: `Quantize`, `OneShot` or `Svd`, one kind a list."""

    given: Rules[Any]

    def apply(self, work: Work) -> Work:
        """By the transform that the specs are for."""
        kinds = {type(spec) for _, spec in self.given if spec is not None}
        if kinds == {Quantize}:
            return quantized(work, self.given)
        if kinds == {OneShot}:
            learns = any(spec.method.learns for _, spec in self.given if spec)
            moments = work.moments(self.given) if learns else None
            small = prune_weights(
                work.params, self.given, sites=work.sites, moments=moments
            )
            gone = resolve(self.given, work.sites, transform="compress").leaves
            return dataclasses.replace(work, params=small, pruned=work.pruned | {*gone})
        if kinds == {Svd}:
            moments = work.moments(self.given) if work.data else None
            small = factorize(
                work.params, self.given, sites=work.sites, moments=moments
            )
            return dataclasses.replace(work, params=small)
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise TypeError(
            "compress: the rules of one step carry Quantize, OneShot or Svd, one of "
            f"these for all; they carry {names}"
        )

    def rules(self, work: Work) -> Rules[Quantize]:
        """Its own, if they quantize."""
        quantizes = all(isinstance(spec, Quantize | None) for _, spec in self.given)
        return self.given if quantizes else []


def _inputs(site: Site) -> int:
    return math.prod(site.shape[axis] for axis in site.input_axes)
