"""Groups of rows: weights, activations, formats, mixed bits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from _bench import Bench, Made
from _methods import (
    NEAREST,
    TOLERANCE,
    WEIGHTS,
    integers,
    quantized_by,
    rules_of,
)

from jcompress.formats import (
    Float4,
    Int,
    NormalFloat4,
    PowerOfTwoScales,
    QuantizedScales,
)
from jcompress.leaves import named_leaves
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerRow,
    Quantize,
    Weights,
    fake_quant,
)
from jcompress.report import stored_bytes
from jcompress.rescaling import rotate, smooth
from jcompress.rounding import Gptq, Nearest, Rounding
from jcompress.sensitivity import OutputError, choose_formats
from jcompress.sites import Site
from jcompress.statistics import AbsoluteMax, Sums

BITS = (4, 3, 2)


def weights_only(bench: Bench, *, slow: bool = True) -> None:
    """All methods for weights at 4, 3 and 2 bits, and 8 bits to the nearest."""
    float_model(bench)
    plain = WEIGHTS[NEAREST]
    bench.judge("weights", "8", NEAREST, 0, lambda: quantized_by(bench, plain, 8, 0))
    for bits in BITS:
        for name, method in WEIGHTS.items():
            if method.propagate is not None or (method.slow and not slow):
                continue
            if method.only not in (None, bits):
                continue
            for draw in range(bench.draws if method.data or method.biases else 1):

                def make() -> Made:
                    return quantized_by(bench, method, bits, draw)  # noqa: B023

                bench.judge("weights", str(bits), name, draw, make)


def layers(bench: Bench) -> None:
    """Layer by layer at 3 bits: one draw, since it costs a compilation a layer."""
    for name, method in WEIGHTS.items():
        if method.propagate is not None:

            def make() -> Made:
                return quantized_by(bench, method, 3, 0)  # noqa: B023

            bench.judge("weights", "3", name, 0, make)


def float_model(bench: Bench) -> None:
    """The model as it is."""
    params = bench.subject.params
    bench.judge("float", "32", "float", 0, lambda: Made(params, params, None))


@dataclasses.dataclass(frozen=True)
class Peaks(Sums):
    """How far the largest number of a row stands out, and the fourth moment.

    A value is the sums over rows of max|x| / rms(x), of 1, of x^2 and of x^4 / n.
    """

    def of(self, rows: jax.Array, valid: jax.Array | None) -> Any:
        """Sums [4] of rows [M, K]."""
        counts = jnp.ones(rows.shape[0]) if valid is None else valid.astype(jnp.float32)
        square = jnp.mean(jnp.square(rows), axis=1)
        most = jnp.max(jnp.abs(rows), axis=1)
        ratio = most * jax.lax.rsqrt(jnp.maximum(square, 1e-30))
        fourth = jnp.mean(jnp.square(jnp.square(rows)), axis=1)
        every = jnp.stack([ratio, jnp.ones_like(ratio), square, fourth])
        return every @ counts


def peaks(bench: Bench, params: Any) -> dict[str, tuple[float, float]]:
    """By weight the mean of max|x| / rms(x) of its inputs, and their kurtosis."""
    found = bench.collected(Peaks(), params, 0)
    made = {}
    for path, (ratio, count, square, fourth) in found.items():
        mean = square / count
        made[path] = float(ratio / count), float(fourth / count / mean**2)
    return made


def eight_bit_rows(bench: Bench, bits: int) -> Callable[..., Any]:
    """The model with the inputs of its products rounded, each row by itself."""
    names = set(bench.subject.weights)

    def product(site: Site) -> bool:
        return site.path in names

    data = Activation(format=Int(bits), granularity=PerRow())
    spec = Quantize(weights=None, activation=data)
    return jax.jit(fake_quant(bench.subject.apply, [(product, spec)]))


def activations(bench: Bench) -> None:
    """Weights and activations: plain, smoothed, rotated."""
    float_model(bench)
    subject = bench.subject
    apply, params = subject.apply, subject.params

    def moved(how: str, draw: int) -> Any:
        batch = subject.calibration(draw)[0]
        if how == "smooth":
            maxima = bench.collected(AbsoluteMax(), params, draw)
            return smooth(apply, params, maxima, *batch, tolerance=TOLERANCE).params
        if how == "rotate":
            key = jax.random.key(draw)
            return rotate(apply, params, *batch, key=key, tolerance=TOLERANCE).params
        return params

    for label, bits, rows in (("W8A8", 8, 8), ("W4A8", 4, 8), ("W4A4", 4, 4)):
        weights = Weights(format=Int(8)) if bits == 8 else integers(bits).weights
        run = eight_bit_rows(bench, rows)
        for how in ("plain", "smooth", "rotate"):
            for draw in range(1 if how == "plain" else bench.draws):

                def make() -> Made:
                    base = moved(how, draw)  # noqa: B023
                    rules = rules_of(Quantize(weights=weights))  # noqa: B023
                    return Made(bench.quantized(base, rules, None), base, None)

                bench.judge("activations", label, how, draw, make, run)


FORMATS: Mapping[str, Weights] = {
    "int4, /64, float32 scales": Weights(format=Int(4), granularity=PerGroup(64)),
    "nf4, /64, float32 scales": Weights(
        format=NormalFloat4(), granularity=PerGroup(64)
    ),
    "int4, /32, powers of 2": Weights(
        format=Int(4), granularity=PerGroup(32), scales=PowerOfTwoScales()
    ),
    "mxfp4": Weights(
        format=Float4(), granularity=PerGroup(32), scales=PowerOfTwoScales()
    ),
    "int4, /16, float8 scales": Weights(
        format=Int(4), granularity=PerGroup(16), scales=QuantizedScales()
    ),
    "nvfp4": Weights(
        format=Float4(), granularity=PerGroup(16), scales=QuantizedScales()
    ),
}


def formats(bench: Bench) -> None:
    """Numbers of 4 bits, to the nearest."""
    float_model(bench)
    params = bench.subject.params
    for name, weights in FORMATS.items():

        def make() -> Made:
            rules = rules_of(Quantize(weights=weights))  # noqa: B023
            return Made(bench.quantized(params, rules, None), params, bench.judges)

        bench.judge("formats", "4", name, 0, make)


def mixed(bench: Bench) -> None:
    """Bits of each leaf by choice, in the bytes of uniform 4 and 3 bits."""
    for bits in (4, 3):
        for name, rounding in (("nearest", Nearest()), ("gptq", Gptq())):
            for draw in range(bench.draws):

                def make() -> Made:
                    return _mixed(bench, bits, rounding, draw)  # noqa: B023

                bench.judge("mixed", str(bits), f"mixed, {name}", draw, make)


def _mixed(bench: Bench, bits: int, rounding: Rounding, draw: int) -> Made:
    subject = bench.subject
    params, names = subject.params, set(subject.weights)
    uniform = bench.quantized(params, rules_of(integers(bits)), None)
    leaves = dict(named_leaves(uniform))
    budget = sum(stored_bytes({0: leaves[name]}) for name in names)
    # A quarter of the data tells formats apart, at a quarter of the time.
    first = subject.calibration(draw)[0]
    few = [tuple(array[: -(-len(array) // 4)] for array in first)]
    judged = subject.apply
    if subject.judged is not None:
        judged, batch_of = subject.judged
        few = [batch_of(batch) for batch in few]
    choice = choose_formats(
        params,
        [integers(each, rounding) for each in (2, 3, 4, 6, 8)],
        OutputError(judged, few, subject.divergence),
        budget,
        sites=subject.sites,
        leaves=lambda site: site.path in names,
        moments=bench.moments(draw) if rounding.learns else None,
    )
    rules = [rules_of(integers(bits))[0], *choice.rules]
    moments = bench.moments(draw) if rounding.learns else None
    return Made(bench.quantized(params, rules, moments), params, bench.judges)
