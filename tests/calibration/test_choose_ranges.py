"""Static ranges: each criterion against the numbers themselves, and through a model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.calibration import Entropy, Static, choose_ranges
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    Dynamic,
    FullRange,
    LeastError,
    MovingAverage,
    Percentile,
    Quantize,
    calibrate,
    fake_quant,
    quantize,
)
from jcompress.sites import find_sites

RNG = np.random.default_rng(0)
HEAVY = RNG.standard_t(3, (4000, 4)).astype(np.float32)
BATCHES = [(jnp.asarray(part),) for part in np.split(HEAVY, 2)]
PARAMS = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def rules(by: Any, *, bits: int = 8, symmetric: bool = True) -> list[Any]:
    format = Int(bits, symmetric=symmetric)
    data = Activation(format=format, range=Static(by=by))
    return [("w", Quantize(activation=data))]


def chosen(by: Any, **kinds: Any) -> tuple[float, float]:
    ((range,),) = choose_ranges(layer, rules(by, **kinds), PARAMS, BATCHES).values()
    return float(range.low), float(range.high)


def squared_error(x: np.ndarray, top: float, bits: int) -> float:
    """Of symmetric rounding within [-top, top]."""
    high = 2 ** (bits - 1) - 1
    scale = top / high
    return float(np.mean((np.clip(np.round(x / scale), -high, high) * scale - x) ** 2))


def test_full_range_is_exact() -> None:
    assert chosen(FullRange()) == (HEAVY.min(), HEAVY.max())


@pytest.mark.parametrize("bits", [4, 8])
def test_least_error_is_near_the_best_there_is(bits: int) -> None:
    top = max(np.abs(chosen(LeastError(least=0.01, steps=200), bits=bits)))
    errors = [
        squared_error(HEAVY, part * np.abs(HEAVY).max(), bits)
        for part in np.linspace(0.01, 1, 200)
    ]
    assert squared_error(HEAVY, top, bits) < 1.02 * min(errors)
    full = squared_error(HEAVY, np.abs(HEAVY).max(), bits)
    assert squared_error(HEAVY, top, bits) < 0.95 * full


def test_percentile() -> None:
    low, high = chosen(Percentile(percent=99))
    assert low == -high
    assert high == pytest.approx(np.quantile(np.abs(HEAVY), 0.99), rel=0.02)
    low, high = chosen(Percentile(percent=99), symmetric=False)
    assert low == pytest.approx(np.quantile(HEAVY, 0.005), rel=0.03)
    assert high == pytest.approx(np.quantile(HEAVY, 0.995), rel=0.03)


def test_entropy_clips_tails_and_keeps_what_has_none() -> None:
    assert np.abs(chosen(Entropy())).max() < 0.6 * np.abs(HEAVY).max()
    even = [(jnp.asarray(RNG.uniform(-1, 1, (4000, 4)), jnp.float32),)]
    ((range,),) = choose_ranges(layer, rules(Entropy()), PARAMS, even).values()
    assert float(range.high) > 0.9


def stack(params: Any, x: jax.Array) -> jax.Array:
    def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w) * 3, None

    x, _ = jax.lax.scan(step, x, params["layers"])
    return x @ params["w"]


def test_what_runs_is_what_was_simulated() -> None:
    params = {
        **PARAMS,
        "layers": jnp.asarray(RNG.normal(size=(2, 4, 4)), jnp.float32),
    }
    x = BATCHES[0][0][:9]
    data = Activation(range=Static(by=Percentile(percent=95)))
    mixed = [
        ("layers", Quantize(activation=data)),
        ("w", Quantize(activation=Activation(range=MovingAverage(decay=0.5)))),
    ]
    ranges = choose_ranges(stack, mixed, params, BATCHES)
    assert list(ranges) == ["layers"]
    assert ranges["layers"][0].high.shape == (2,)
    first = np.quantile(HEAVY, [0.025, 0.975])
    np.testing.assert_allclose(
        [float(ranges["layers"][0].low[0]), float(ranges["layers"][0].high[0])],
        first,
        rtol=0.03,
    )
    known = {**ranges, "w": (type(ranges["layers"][0])(jnp.zeros(()), jnp.ones(())),)}
    _, moved = calibrate(stack, mixed)(params, known, x)
    np.testing.assert_array_equal(moved["layers"][0].high, ranges["layers"][0].high)
    assert float(moved["w"][0].high) > 1
    simulated = fake_quant(stack, mixed, ranges=moved)(params, x)
    sites = find_sites(stack, params, x)
    small = quantize(params, mixed, sites=sites, ranges=moved)
    np.testing.assert_allclose(compressed(stack)(small, x), simulated, atol=1e-4)
    dynamic = [(..., Quantize(activation=Activation(range=Dynamic())))]
    other = fake_quant(stack, dynamic)(params, x)
    assert float(jnp.abs(other - simulated).max()) > 1e-2


def test_errors() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        choose_ranges(layer, rules(FullRange()), PARAMS, [])
    plain = [("w", Quantize(activation=Activation()))]
    with pytest.raises(MismatchError, match=r"no rule has an Activation\(range=Static"):
        choose_ranges(layer, plain, PARAMS, BATCHES)
    with pytest.raises(TypeError, match="Static: by is FullRange"):
        Static(by=99.9)
    with pytest.raises(ValueError, match="Entropy: bins is an int from 256"):
        Entropy(bins=10)
    with pytest.raises(MismatchError, match="choose_ranges"):
        fake_quant(layer, rules(FullRange()))(PARAMS, BATCHES[0][0])
    sites = find_sites(layer, PARAMS, BATCHES[0][0])
    with pytest.raises(MismatchError, match="`ranges` has none for it"):
        quantize(PARAMS, rules(FullRange()), sites=sites)
