"""Specs: what they default to, that they hash, and each of their errors."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from jcompress.formats import FloatScales, Int
from jcompress.quantization import (
    Activation,
    Dynamic,
    MovingAverage,
    PerChannel,
    PerGroup,
    PerRow,
    PerTensor,
    Quantize,
    Weights,
)
from jcompress.rounding import Nearest
from jcompress.tensors.range_specs import FullRange


def test_defaults() -> None:
    assert Weights() == Weights(format=Int(8), granularity=PerChannel())
    assert Activation() == Activation(
        format=Int(8, symmetric=False), granularity=PerRow(), range=Dynamic()
    )
    assert Quantize() == Quantize(weights=Weights(), activation=None)
    assert MovingAverage().decay == 0.99


def test_specs_are_values() -> None:
    def made() -> set[Any]:
        return {
            PerTensor(),
            PerChannel(),
            PerRow(),
            PerGroup(32),
            Dynamic(),
            MovingAverage(decay=0.9),
            Weights(format=Int(4), granularity=PerGroup(8)),
            Activation(granularity=PerRow()),
            Quantize(activation=Activation()),
            FullRange(),
            FloatScales(16),
            Nearest(),
        }

    assert made() == made()
    assert len(made()) == 12
    for spec in made():
        assert eval(repr(spec)) == spec
        names = [field.name for field in dataclasses.fields(spec)]
        for name in names:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(spec, name, 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_all_bit_widths(bits: int) -> None:
    symmetric, shifted = Int(bits), Int(bits, symmetric=False)
    assert (symmetric.low, symmetric.high) == (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    assert (shifted.low, shifted.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Int(1), ValueError, "Int: bits is an int from 2 to 8, or 16, not 1"),
        (lambda: Int(9), ValueError, "not 9"),
        (lambda: Int(4.0), ValueError, "not 4.0"),
        (lambda: Int(True), ValueError, "not True"),
        (lambda: Int(4, symmetric=0), TypeError, "True or False, not 0"),
        (lambda: Weights(format=4), TypeError, "Weights: format is one of"),
        (lambda: Activation(format=8), TypeError, "Activation: format is .* not 8"),
        (lambda: Weights(granularity=PerRow()), TypeError, r"not PerRow\(\)"),
        (lambda: Weights(granularity=32), TypeError, "not 32"),
        (lambda: Activation(granularity=PerChannel()), TypeError, "not PerChannel"),
        (lambda: Activation(range=None), TypeError, "not None"),
        (
            lambda: Activation(granularity=PerRow(), range=MovingAverage()),
            ValueError,
            r"PerRow\(\) needs range=Dynamic\(\)",
        ),
        (lambda: MovingAverage(decay=1.0), ValueError, r"in \[0, 1\), not 1.0"),
        (lambda: MovingAverage(decay=-0.1), ValueError, "not -0.1"),
        (lambda: MovingAverage(decay=float("nan")), ValueError, "not nan"),
        (lambda: PerGroup(0), ValueError, "positive int, not 0"),
        (lambda: PerGroup(1.5), ValueError, "positive int, not 1.5"),
        (lambda: PerGroup(True), ValueError, "positive int, not True"),
        (lambda: Quantize(weights=None), ValueError, "both None"),
        (lambda: Quantize(weights=8), TypeError, "weights is Weights.* not 8"),
        (lambda: Quantize(activation=8), TypeError, "activation is Activation.* not 8"),
        (lambda: Weights(4), TypeError, "without a name"),
    ],
)  # fmt: skip
def test_errors(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
