"""Ways to quantize weights."""

import dataclasses
from collections.abc import Mapping

import jax
from _bench import Bench, Made
from _method_codebooks import codebooks

from jcompress.correction import correct_biases
from jcompress.formats import Int
from jcompress.quantization import (
    FullRange,
    LeastError,
    PerGroup,
    Quantize,
    Weights,
    quantize_by_layers,
)
from jcompress.rescaling import awq, rotate
from jcompress.rounding import (
    AdaRound,
    CoordinateDescent,
    Gptq,
    Nearest,
    Rounding,
    SignRound,
)
from jcompress.rules import Rules
from jcompress.sites import Operation
from jcompress.statistics import SecondMoments

GROUP = 64
NEAREST = "nearest"
TOLERANCE = 1e-3
"""Of outputs after scales are moved; sums of float32 in another order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to quantize weights.

    Attributes:
        scaling: what is done to the float weights before: nothing, "awq", "rotate".
        searched: whether scales make the least error.
        data: whether moments of the inputs are known.
        rounding: how numbers are chosen.
        propagate: None, or layer by layer with this share of the errors passed on.
        biases: whether they take up the mean error afterwards.
        slow: whether it is left out on models of many weights.
        vectors: whether weights become codes of vectors, in the bytes of integers.
        only: the bits that it is for; None for all.
    """

    scaling: str = ""
    searched: bool = False
    data: bool = True
    rounding: Rounding = Nearest()
    propagate: float | None = None
    biases: bool = False
    slow: bool = False
    vectors: bool = False
    only: int | None = None


WEIGHTS: Mapping[str, Method] = {
    NEAREST: Method(data=False),
    "least error": Method(searched=True, data=False),
    "least error, by data": Method(searched=True),
    "awq": Method(scaling="awq"),
    "gptq": Method(rounding=Gptq()),
    "gptq, least error": Method(searched=True, rounding=Gptq()),
    "awq, gptq": Method(scaling="awq", rounding=Gptq()),
    "rotation, gptq": Method(scaling="rotate", rounding=Gptq()),
    "signround": Method(rounding=SignRound(), slow=True),
    "adaround": Method(rounding=AdaRound(), slow=True),
    "coordinate descent": Method(rounding=CoordinateDescent()),
    "codebooks": Method(vectors=True, only=2),
    "gptq, by layers": Method(rounding=Gptq(), propagate=0.0),
    "gptq, by layers, passed on": Method(rounding=Gptq(), propagate=0.5),
    "nearest, biases corrected": Method(data=False, biases=True),
}


def integers(
    bits: int, rounding: Rounding | None = None, *, searched: bool = False
) -> Quantize:
    """Integers with zero points, in groups of inputs."""
    weights = Weights(
        format=Int(bits, symmetric=False),
        granularity=PerGroup(GROUP),
        range=LeastError() if searched else FullRange(),
    )
    return Quantize(weights=weights, rounding=rounding or Nearest())


def rules_of(products: Quantize) -> Rules[Quantize]:
    """Products by a spec; tables that are looked up in 8 bits."""
    return [
        (Operation.LOOKUP, Quantize(weights=Weights(format=Int(8)))),
        (..., products),
    ]


def quantized_by(bench: Bench, method: Method, bits: int, draw: int) -> Made:
    """Quantize the weights of a model by a method."""
    subject = bench.subject
    apply, params = subject.apply, subject.params
    batches = subject.calibration(draw)
    rules = rules_of(integers(bits, method.rounding, searched=method.searched))
    if method.vectors:
        return codebooks(bench, rules, draw)
    judges = bench.judges
    moments = bench.moments(draw) if method.data else None
    if method.scaling == "awq":
        known = bench.moments(draw)
        scaled = awq(apply, params, rules, known, *batches[0], tolerance=TOLERANCE)
        params, moments = scaled.params, scaled.moments(known)
        judges = scaled.moments(judges)
    elif method.scaling == "rotate":
        key = jax.random.key(draw)
        params = rotate(apply, params, *batches[0], key=key, tolerance=TOLERANCE).params
        moments = bench.collected(SecondMoments(), params, draw)
        judges = bench.unseen(params)
    if method.propagate is not None:
        small = quantize_by_layers(
            apply, params, rules, batches, propagate=method.propagate
        )
    else:
        small = bench.quantized(params, rules, moments)
    if method.biases:
        small = correct_biases(apply, params, small, batches)
    return Made(small, params, judges)
