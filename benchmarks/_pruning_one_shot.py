"""Pruning without training: which weights go, and what the others become."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from _bench import Bench, Made, dense

from jcompress.allocation import Ranking
from jcompress.formats import Int
from jcompress.pruning import (
    NM,
    Pattern,
    Prune,
    Unstructured,
    apply_masks,
    make_masks,
)
from jcompress.pruning.one_shot import (
    LeastSquares,
    Magnitude,
    Method,
    OneShot,
    OptimalBrainSurgeon,
    OptimalNM,
    SparseGpt,
    Wanda,
    prune_by_layers,
    prune_weights,
)
from jcompress.pruning.scores import score_by_magnitude
from jcompress.quantization import LeastError, PerGroup, Quantize, Weights, quantize
from jcompress.rounding import Gptq
from jcompress.rules import Rules
from jcompress.sites import Operation

GLOBAL = "magnitude, global"
LEVELS: Mapping[str, tuple[Pattern, float | None]] = {
    **{f"{share} %": (Unstructured(), share / 100) for share in (50, 70, 80, 90, 95)},
    "2:4": (NM(2, 4), None),
}


class Way(NamedTuple):
    """A method, and whether layers are pruned in turn, each on pruned inputs."""

    method: Method
    by_layers: bool = False
    slow: bool = False


METHODS: Mapping[str, Way] = {
    "magnitude": Way(Magnitude()),
    "wanda": Way(Wanda()),
    "wanda, least squares": Way(LeastSquares(start=Wanda())),
    "sparsegpt": Way(SparseGpt()),
    "sparsegpt, least squares": Way(LeastSquares(start=SparseGpt())),
    "obs": Way(OptimalBrainSurgeon(), slow=True),
    "optimal n:m": Way(OptimalNM()),
    "sparsegpt, by layers": Way(SparseGpt(), by_layers=True),
}


def one_shot(bench: Bench, levels: list[str], *, slow: bool) -> None:
    """Every method at every level on each draw of calibration data so far."""
    for draw in range(bench.draws):
        for level in levels:
            pattern, sparsity = LEVELS[level]
            if sparsity is not None:
                bench.judge("one shot", level, GLOBAL, draw, globally(bench, sparsity))
            for name, way in METHODS.items():
                if not way.method.takes(pattern) or (way.slow and not slow):
                    continue
                spec = OneShot(method=way.method, pattern=pattern, sparsity=sparsity)
                make = by_method(bench, spec, draw, way.by_layers)
                bench.judge("one shot", level, name, draw, make)


def products(spec: OneShot) -> Rules[OneShot]:
    """Products by a spec; tables that are looked up stay."""
    return [(Operation.LOOKUP, None), (..., spec)]


def by_method(
    bench: Bench, spec: OneShot, draw: int, by_layers: bool
) -> Callable[[], Made]:
    """What makes the pruned tree of a method."""
    subject = bench.subject

    def make() -> Made:
        if by_layers:
            batches = subject.calibration(draw)
            small = prune_by_layers(
                subject.apply, subject.params, products(spec), batches
            )
        else:
            moments = bench.moments(draw) if spec.method.learns else None
            small = prune_weights(
                subject.params, products(spec), sites=subject.sites, moments=moments
            )
        return Made(small, subject.params, bench.judges)

    return make


def globally(bench: Bench, sparsity: float) -> Callable[[], Made]:
    """Magnitudes of all layers in one row."""
    subject = bench.subject

    def make() -> Made:
        spec = Prune(pattern=Unstructured(), sparsity=sparsity, ranking=Ranking.GLOBAL)
        masks = make_masks(
            score_by_magnitude(subject.params),
            [(Operation.LOOKUP, None), (..., spec)],
            sites=subject.sites,
        )
        return Made(apply_masks(subject.params, masks), subject.params, bench.judges)

    return make


def joint(bench: Bench, group: int = 64) -> None:
    """Sparse and in 4 bits: both in one pass, or one after the other."""
    weights = Weights(format=Int(4), granularity=PerGroup(group), range=LeastError())
    subject = bench.subject
    for draw in range(bench.draws):
        for level in ("50 %", "2:4"):
            pattern, sparsity = LEVELS[level]
            spec = OneShot(
                method=SparseGpt(), pattern=pattern, sparsity=sparsity, weights=weights
            )

            def together(spec: OneShot = spec, draw: int = draw) -> Made:
                small = prune_weights(
                    subject.params,
                    products(spec),
                    sites=subject.sites,
                    moments=bench.moments(draw),
                )
                return Made(small, subject.params, bench.judges)

            def in_turn(
                pattern: Pattern = pattern,
                sparsity: float | None = sparsity,
                draw: int = draw,
            ) -> Made:
                sparse = OneShot(method=SparseGpt(), pattern=pattern, sparsity=sparsity)
                moments = bench.moments(draw)
                zeros = prune_weights(
                    subject.params,
                    products(sparse),
                    sites=subject.sites,
                    moments=moments,
                )
                # GPTQ would move the zeros; the nearest number of 0 is 0.
                small = quantize(
                    zeros,
                    [(Operation.LOOKUP, None), (..., Quantize(weights=weights))],
                    sites=subject.sites,
                )
                return Made(small, subject.params, bench.judges)

            def gptq_first(
                pattern: Pattern = pattern,
                sparsity: float | None = sparsity,
                draw: int = draw,
            ) -> Made:
                rule = Quantize(weights=weights, rounding=Gptq())
                moments = bench.moments(draw)
                whole = quantize(
                    subject.params,
                    [(Operation.LOOKUP, None), (..., rule)],
                    sites=subject.sites,
                    moments=moments,
                )
                keep = Prune(pattern=pattern, sparsity=sparsity)
                rules: Rules[Prune] = [(Operation.LOOKUP, None), (..., keep)]
                floats = dense(whole)
                masks = make_masks(
                    score_by_magnitude(floats), rules, sites=subject.sites
                )
                zeros = apply_masks(floats, masks)
                again = quantize(
                    zeros,
                    [(Operation.LOOKUP, None), (..., Quantize(weights=weights))],
                    sites=subject.sites,
                )
                return Made(again, subject.params, bench.judges)

            bench.judge("4 bits", level, "together", draw, together)
            bench.judge("4 bits", level, "pruned, then rounded", draw, in_turn)
            bench.judge("4 bits", level, "rounded, then pruned", draw, gptq_first)
