"""Ways of rounding: what each promises, for every granularity, format and stacks."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Float4, Float8, Int, PowerOfTwoScales
from jcompress.quantization import LeastError, PerGroup, PerTensor, Weights
from jcompress.rounding import AdaRound, CoordinateDescent, Gptq, Nearest, SignRound
from jcompress.rounding import descent as descent_module
from jcompress.rounding.base import Rounded
from jcompress.rounding.copies import dense, fitted_scales, output_errors
from jcompress.rounding.gptq import gptq_numbers
from jcompress.rounding.neighbours import neighbours
from jcompress.tensors.weight_matrix import dequantize_matrix, weight_scales

Host = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
N, K = 6, 24


def moments(seed: int, size: int = K) -> Host:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(100, size)) @ rng.normal(size=(size, size))
    x = mixed * np.geomspace(0.1, 3, size)
    return (x.T @ x).astype(np.float32)


W = RNG.normal(size=(2, N, K)).astype(np.float32)
H = np.stack([moments(1), moments(2)])

SPECS = {
    "channel": Weights(format=Int(3)),
    "groups": Weights(format=Int(3, symmetric=False), granularity=PerGroup(8)),
    "tensor": Weights(format=Int(4), granularity=PerTensor(), range=LeastError()),
    "float8": Weights(format=Float8(), granularity=PerGroup(12)),
    "float4": Weights(
        format=Float4(), granularity=PerGroup(8), scales=PowerOfTwoScales()
    ),
}


def errors(made: Any, w: Host = W, h: Host = H) -> Host:
    """The error of each output in float64: [S, N]."""
    values = dequantize_matrix(*made, jnp.float32)
    change = np.asarray(values, np.float64) - w
    return np.einsum("snk,skl,snl->sn", change, h.astype(np.float64), change)


def rounded(how: Any, spec: Weights) -> Any:
    return jax.jit(lambda w, h: how.round(w, spec, h))(jnp.asarray(W), jnp.asarray(H))


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return {kind: rounded(Nearest(), spec) for kind, spec in SPECS.items()}


LEARNED = {
    "adaround": AdaRound(steps=200),
    "signround": SignRound(steps=100, learning_rate=0.01),
    "descent": CoordinateDescent(start=Nearest()),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("adaround", kind) for kind in ("groups", "float8")),
        *(("signround", kind) for kind in ("channel", "tensor")),
        *(("descent", kind) for kind in SPECS),
    ],
)
def test_errs_less_than_the_nearest(name: str, kind: str, plain: Any) -> None:
    spec = SPECS[kind]
    made = rounded(LEARNED[name], spec)
    assert made.values.dtype == spec.format.dtype
    assert made.scales.shape == plain[kind].scales.shape
    assert (made.zeros is None) == spec.format.symmetric
    unit = spec.format.unit
    numbers = np.asarray(made.values, np.float32) * unit
    assert numbers.min() >= spec.format.low
    assert numbers.max() <= spec.format.high
    ours, nearest = (
        errors(each._replace(scales=each.scales * unit)) for each in (made, plain[kind])
    )
    if kind != "tensor":  # where outputs share the scale, they are one
        assert (ours <= nearest * (1 + 1e-4)).all()
    assert (ours.sum(1) < 0.99 * nearest.sum(1)).all()
    assert ours.sum() < 0.9 * nearest.sum()


def test_adaround_takes_one_of_both_neighbours(plain: Any) -> None:
    made = rounded(AdaRound(steps=100), SPECS["groups"])
    np.testing.assert_array_equal(made.scales, plain["groups"].scales)
    off = np.asarray(made.values, int) - np.asarray(plain["groups"].values, int)
    assert set(np.unique(off)) == {-1, 0, 1}
    step = np.repeat(np.asarray(made.scales), 8, axis=-1)
    change = np.asarray(dequantize_matrix(*made, jnp.float32)) - W
    inside = np.abs(np.asarray(made.values)) < 3
    assert (np.abs(change) <= step * (1 + 1e-5))[inside].all()


@pytest.mark.parametrize(
    ("start", "scales"), [(Gptq(), False), (SignRound(steps=20), True)]
)
def test_descent_is_never_worse_than_its_start(start: Any, scales: bool) -> None:
    before = errors(rounded(start, SPECS["groups"]))
    how = CoordinateDescent(start=start, sweeps=3, scales=scales)
    assert (errors(rounded(how, SPECS["groups"])) <= before * (1 + 1e-4)).all()


def test_after_descent_no_single_number_can_be_better() -> None:
    """Every other integer in place of one errs more: against all of them."""
    spec = Weights(format=Int(3))
    made = rounded(CoordinateDescent(sweeps=30, scales=False), spec)
    best = errors(made)
    values = np.asarray(made.values)
    for k in range(K):
        for other in range(-3, 4):
            trial = values.copy()
            trial[:, :, k] = other
            tried = made._replace(values=jnp.asarray(trial))
            assert (errors(tried) >= best * (1 - 1e-5)).all()


def test_fitted_scales_solve_the_least_squares() -> None:
    """One output with three groups, and two outputs that share a scale."""
    numbers = RNG.integers(-7, 8, (2, K)).astype(np.float32)
    factor = np.linalg.cholesky(H[0].astype(np.float64)).T
    args = (jnp.asarray(W[0, :2]), jnp.asarray(numbers))
    for rows, groups in ((2, 3), (1, 1)):
        columns = np.zeros((2, K, rows, groups))
        for n, k in np.ndindex(2, K):
            columns[n, k, n * rows // 2, k * groups // K] = numbers[n, k]
        left = np.concatenate([factor @ c.reshape(K, -1) for c in columns])
        right = np.concatenate([factor @ w for w in W[0, :2].astype(np.float64)])
        wanted = np.linalg.lstsq(left, right, rcond=None)[0].reshape(rows, groups)
        start = jnp.full((rows, groups), 0.2)
        found = fitted_scales(*args, start, None, jnp.asarray(H[0]))
        if (wanted > 0).all():
            np.testing.assert_allclose(found, wanted, rtol=1e-3)
        else:
            np.testing.assert_array_equal(found, start)
        lost = output_errors(dense(args[1], found, None) - args[0], jnp.asarray(H[0]))
        first = output_errors(dense(args[1], start, None) - args[0], jnp.asarray(H[0]))
        assert lost.sum() <= first.sum() * (1 + 1e-5)


def test_neighbours_are_the_numbers_on_both_sides() -> None:
    every = np.arange(256, dtype=np.uint8).view(Float8().dtype).astype(np.float32)
    tables = {
        Float8(): np.unique(every[np.isfinite(every)]),
        Int(3): np.arange(-3, 4, dtype=np.float32),
    }
    for format, table in tables.items():
        x = (RNG.normal(size=300) * format.high / 2).astype(np.float32)
        x = np.clip(x, format.low, format.high)
        low, high = neighbours(jnp.asarray(x), None, format)
        place = np.searchsorted(table, x, side="right")
        np.testing.assert_array_equal(low, table[place - 1])
        inside = place < len(table)
        np.testing.assert_array_equal(
            np.asarray(high)[inside], table[np.minimum(place, len(table) - 1)][inside]
        )
    low, high = neighbours(jnp.float32([9.0, -9.0]), None, Int(3))
    assert (low.tolist(), high.tolist()) == ([3, -3], [3, -3])


def test_specs_that_make_no_sense() -> None:
    for make, message in (
        (lambda: AdaRound(steps=0), "AdaRound: steps is a positive int, not 0"),
        (lambda: SignRound(learning_rate=-1.0), "learning_rate is above 0, not -1"),
        (lambda: CoordinateDescent(sweeps=True), "sweeps is a positive int, not True"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match=r"start is a rounding, such as Gptq\(\)"):
        CoordinateDescent(start="gptq")


def test_nothing_to_round() -> None:
    for how in (*LEARNED.values(), Gptq()):
        made = how.round(jnp.zeros((0, 4)), Weights(), jnp.eye(4))
        assert made.values.shape == (0, 4)


def test_the_examples_run() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(descent_module)
    assert attempted
    assert not failed


def test_ranges_for_gptq_weigh_what_later_inputs_leave_of_an_error() -> None:
    """On inputs that are alike, the size of an input says little about its error."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8)) @ rng.normal(size=(8, K))
    x = (x + 0.1 * rng.normal(size=x.shape)) * np.geomspace(0.1, 3, K)
    h = (x.T @ x).astype(np.float32)[None]
    w = rng.normal(size=(1, 64, K)).astype(np.float32)
    spec = Weights(format=Int(3), range=LeastError())
    made = Gptq().round(jnp.asarray(w), spec, jnp.asarray(h))
    got = errors(made, w, h).sum()

    def by(importance: Any) -> float:
        scales, zeros = weight_scales(jnp.asarray(w), spec, jnp.asarray(importance))
        numbers = gptq_numbers(w, scales, zeros, jnp.asarray(h), spec.format, Gptq())
        return float(errors(Rounded(numbers, scales, zeros), w, h).sum())

    assert got < 0.95 * by(np.diagonal(h, axis1=1, axis2=2))
    # One input after the other, the largest first: what the inputs after it leave.
    damped = h[0] + 0.01 * np.mean(np.diagonal(h[0])) * np.eye(K)
    order = np.argsort(-np.diagonal(h[0]), kind="stable")
    left = np.zeros(K, np.float32)
    for place, i in enumerate(order):
        later = order[place + 1 :]
        own = damped[i, i]
        if len(later):
            across = damped[i, later]
            own -= across @ np.linalg.solve(damped[np.ix_(later, later)], across)
        left[i] = own
    assert got == pytest.approx(by(left[None]), rel=1e-3)
