"""Pruning without training: which weights go, and what the others become."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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

DENSE, GLOBAL = "dense", "magnitude, global"
LEVELS: Mapping[str, tuple[Pattern, float | None]] = {
    **{f"{share} %": (Unstructured(), share / 100) for share in (50, 70, 80, 90, 95)},
    "2:4": (NM(2, 4), None),
}


COMPARED = ("50 %", "2:4")
"""Levels at which methods must beat each other, with and without 4 bits."""


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


def one_shot(bench: Bench, draw: int, *, large: bool) -> None:
    """Every method at every level on one draw of calibration data.

    Of a large model no OBS, and only `COMPARED` layer by layer: each takes minutes.
    """
    params = bench.subject.params
    if draw == 0:
        made = Made(params, params, None)
        bench.judge("one shot", DENSE, DENSE, draw, lambda: made)
    for level, (pattern, sparsity) in LEVELS.items():
        if sparsity is not None and draw == 0:
            bench.judge("one shot", level, GLOBAL, draw, globally(bench, sparsity))
        for name, way in METHODS.items():
            method = way.method
            if not method.takes(pattern) or (draw and not method.learns):
                continue
            slow = way.slow or (way.by_layers and level not in COMPARED)
            if large and slow:
                continue
            spec = OneShot(method=method, pattern=pattern, sparsity=sparsity)
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


PRUNERS: Mapping[str, Method] = {
    "sparsegpt": SparseGpt(),
    "least squares": LeastSquares(start=Wanda()),
}
"""Methods that prune and round in one pass."""


def joint(bench: Bench, draw: int, group: int = 64) -> None:
    """Sparse and in 4 bits: both in one pass, or one after the other."""
    weights = Weights(format=Int(4), granularity=PerGroup(group), range=LeastError())
    nearest: Rules[Quantize] = [
        (Operation.LOOKUP, None),
        (..., Quantize(weights=weights)),
    ]
    subject = bench.subject

    def pruned(spec: OneShot, draw: int) -> Any:
        return prune_weights(
            subject.params,
            products(spec),
            sites=subject.sites,
            moments=bench.moments(draw),
        )

    def together(spec: OneShot, draw: int) -> Made:
        whole = dataclasses.replace(spec, weights=weights)
        return Made(pruned(whole, draw), subject.params, bench.judges)

    def pruned_first(spec: OneShot, draw: int) -> Made:
        # GPTQ would move the zeros; the nearest number of 0 is 0.
        small = quantize(pruned(spec, draw), nearest, sites=subject.sites)
        return Made(small, subject.params, bench.judges)

    def rounded_first(spec: OneShot, draw: int) -> Made:
        rule = Quantize(weights=weights, rounding=Gptq())
        floats = dense(
            quantize(
                subject.params,
                [(Operation.LOOKUP, None), (..., rule)],
                sites=subject.sites,
                moments=bench.moments(draw),
            )
        )
        keep = Prune(pattern=spec.pattern, sparsity=spec.sparsity)
        rules: Rules[Prune] = [(Operation.LOOKUP, None), (..., keep)]
        masks = make_masks(score_by_magnitude(floats), rules, sites=subject.sites)
        small = quantize(apply_masks(floats, masks), nearest, sites=subject.sites)
        return Made(small, subject.params, bench.judges)

    for level in COMPARED:
        pattern, sparsity = LEVELS[level]
        for name, method in PRUNERS.items():
            spec = OneShot(method=method, pattern=pattern, sparsity=sparsity)
            for how, make in (
                (f"{name}, together", together),
                (f"{name}, then rounded", pruned_first),
            ):
                own = functools.partial(make, spec, draw)
                bench.judge("4 bits", level, how, draw, own)
        own = functools.partial(rounded_first, spec, draw)
        bench.judge("4 bits", level, "rounded, then pruned", draw, own)
