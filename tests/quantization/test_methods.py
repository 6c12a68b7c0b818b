"""Ranges that make the least error, and GPTQ, against plain NumPy."""

import doctest
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Float8, Int
from jcompress.quantization import (
    Activation,
    LeastError,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    by_layers,
    convert,
    fake_quant,
    quantize,
    quantize_by_layers,
    simulate,
)
from jcompress.rounding import Gptq, Nearest
from jcompress.rounding.gptq import gptq_numbers
from jcompress.sites import find_sites
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors.weight_matrix import (
    dequantize_matrix,
    quantize_matrix,
    weight_scales,
)

Host = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Host:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(rows: int = 400, size: int = 24, seed: int = 1) -> Host:
    """Correlated inputs of different sizes."""
    mixed = normal(rows, size, seed=seed) @ normal(size, size, seed=seed + 1)
    return (mixed * np.geomspace(0.1, 3, size)).astype(np.float32)


X = inputs()
MOMENTS = X.T @ X
W = normal(10, 24, seed=3)


def output_error(first: Any, second: Any, moments: Host = MOMENTS) -> float:
    change = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return float(np.trace(change @ moments.astype(np.float64) @ change.T))


def gptq_by_hand(
    w: Host, scales: Host, zeros: Host | None, moments: Host, spec: Weights, how: Gptq
) -> Host:
    """Algorithm 1 with the inverse itself, an input at a time, in float64."""
    w, h = w.astype(np.float64).copy(), moments.astype(np.float64)
    size = np.diagonal(h)
    usual = size.mean() if size.mean() > 0 else 1.0
    h = h + np.diag(how.damping * usual + np.where(size > 0, 0, usual))
    order = np.arange(len(h))
    if how.by_importance:
        order = np.argsort(-size.astype(np.float32), kind="stable")
    w, h = w[:, order], h[np.ix_(order, order)]
    group = order // (len(h) // scales.shape[1])
    numbers = np.zeros(w.shape)
    for i in range(len(h)):
        inverse = np.linalg.inv(h[i:, i:])
        scale = np.broadcast_to(scales, (len(w), scales.shape[1]))[:, group[i]]
        zero: Any = 0.0
        if zeros is not None:
            zero = np.broadcast_to(zeros, (len(w), scales.shape[1]))[:, group[i]]
        steps = np.rint((w[:, i] / scale).astype(np.float32)) + zero
        numbers[:, i] = np.clip(steps, spec.format.low, spec.format.high)
        error = (w[:, i] - (numbers[:, i] - zero) * scale) / inverse[0, 0]
        w[:, i:] -= error[:, None] * inverse[0]
    back = np.empty_like(numbers)
    back[:, order] = numbers
    return back


SPECS = {
    "channel": Weights(format=Int(4)),
    "groups": Weights(format=Int(3, symmetric=False), granularity=PerGroup(6)),
    "tensor": Weights(format=Int(4), granularity=PerTensor()),
    "least error": Weights(format=Int(2, symmetric=False), range=LeastError()),
}


@pytest.mark.parametrize("how", [Gptq(), Gptq(by_importance=False, damping=0.1)])
@pytest.mark.parametrize("kind", SPECS)
def test_gptq_is_the_algorithm(kind: str, how: Gptq) -> None:
    spec = SPECS[kind]
    scales, zeros = weight_scales(jnp.asarray(W), spec)
    found = gptq_numbers(
        jnp.asarray(W), scales, zeros, jnp.asarray(MOMENTS), spec.format, how
    )
    offsets = None if zeros is None else np.asarray(zeros)
    expected = gptq_by_hand(W, np.asarray(scales), offsets, MOMENTS, spec, how)
    # A number that lies in the middle may go either way, and change those after it.
    assert (np.asarray(found) == expected).mean() > 0.97
    wanted = dequantize_matrix(jnp.asarray(expected), scales, zeros, jnp.float32)
    got = dequantize_matrix(found, scales, zeros, jnp.float32)
    assert output_error(got, W) == pytest.approx(output_error(wanted, W), rel=0.03)


@pytest.mark.parametrize("kind", SPECS)
def test_gptq_trades_errors_of_weights_for_those_of_outputs(kind: str) -> None:
    """More than one block of inputs, stacks, and a corrupted control."""
    spec, size = SPECS[kind], 192
    w = jnp.asarray(normal(2, 16, size, seed=5))
    xs = [inputs(1000, size, seed=seed) for seed in (7, 9)]
    moments = jnp.asarray(np.stack([x.T @ x for x in xs]))
    values, scales, zeros = quantize_matrix(w, spec)
    nearest = dequantize_matrix(values, scales, zeros, jnp.float32)
    offsets = None if zeros is None else zeros.astype(jnp.float32)
    run = functools.partial(gptq_numbers, format=spec.format, spec=Gptq())
    found = run(w, scales, offsets, moments)
    got = dequantize_matrix(found, scales, zeros, jnp.float32)
    swapped = run(w, scales, offsets, moments[::-1])
    other = dequantize_matrix(swapped, scales, zeros, jnp.float32)
    for i in range(2):
        h = np.asarray(moments[i])
        ours, plain = output_error(got[i], w[i], h), output_error(nearest[i], w[i], h)
        assert ours < 0.8 * plain
        assert ours < output_error(other[i], w[i], h)
        assert np.square(got[i] - w[i]).sum() > np.square(nearest[i] - w[i]).sum()


def test_inputs_that_are_always_zero_and_no_data_at_all() -> None:
    moments = MOMENTS.copy()
    moments[[3, 8]] = 0
    moments[:, [3, 8]] = 0
    spec = Weights(format=Int(4))
    scales, _ = weight_scales(jnp.asarray(W), spec)
    for given in (moments, np.zeros_like(MOMENTS)):
        found = gptq_numbers(
            jnp.asarray(W), scales, None, jnp.asarray(given), spec.format, Gptq()
        )
        nearest, *_ = quantize_matrix(jnp.asarray(W), spec)
        same = np.asarray(found) == np.asarray(nearest)
        assert same[:, [3, 8]].all()
    assert same.all()


def test_the_least_error_is_the_least_of_those_tried() -> None:
    search = LeastError(least=0.3, steps=15)
    spec = Weights(format=Int(3), granularity=PerGroup(8), range=search)
    importance = np.square(X).sum(0)
    w = W.copy()
    w[2] *= 40
    scales, _ = weight_scales(jnp.asarray(w), spec, jnp.asarray(importance))
    top = spec.format.high
    for n, g in np.ndindex(10, 3):
        own, weight = w[n, 8 * g : 8 * g + 8], importance[8 * g : 8 * g + 8]

        def error(scale: float, own: Host = own, weight: Host = weight) -> float:
            q = np.clip(np.rint(own / scale), -top, top) * scale
            return float((np.square(own - q) * weight).sum())

        tried = np.abs(own).max() * np.linspace(1, 0.3, 15) / top
        best = min(map(error, tried))
        assert error(float(scales[n, g])) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("granularity", [PerGroup(8), PerTensor()])
def test_by_moments_the_least_error_is_that_of_the_outputs(granularity: Any) -> None:
    search = LeastError(least=0.3, steps=15)
    spec = Weights(format=Int(3), granularity=granularity, range=search)
    w = np.stack([W, 2 * W[::-1]])
    seen = [inputs(seed=n) for n in (5, 6)]
    moments = jnp.asarray(np.stack([x.T @ x for x in seen]))
    found = np.asarray(Nearest().round(jnp.asarray(w), spec, moments).scales)
    plain = np.asarray(weight_scales(jnp.asarray(w), spec)[0])
    top, changed = spec.format.high, 0
    high, size = (1, 8) if isinstance(granularity, PerGroup) else (10, 24)
    for s, r, g in np.ndindex(found.shape):
        own = w[s, r * high : (r + 1) * high, g * size : (g + 1) * size]
        x = seen[s][:, g * size : (g + 1) * size].astype(np.float64)

        def error(scale: float, own: Host = own, x: Host = x) -> float:
            q = np.clip(np.rint(own / scale), -top, top) * scale
            return float(np.square(x @ (own - q).T).sum())

        tried = np.abs(own).max() * np.linspace(1, 0.3, 15) / top
        assert error(float(found[s, r, g])) == pytest.approx(
            min(map(error, tried)), rel=1e-3
        )
        changed += error(float(found[s, r, g])) < 0.98 * error(float(plain[s, r, g]))
    assert changed >= found.size / 3


@pytest.mark.parametrize("format", [Int(2), Int(3, symmetric=False), Float8()])
def test_a_searched_range_errs_less(format: Any) -> None:
    w = jnp.asarray(normal(8, 64))
    plain = Weights(format=format)
    searched = Weights(format=format, range=LeastError())

    def error(spec: Weights) -> Host:
        dense = dequantize_matrix(*quantize_matrix(w, spec), jnp.float32)
        return np.square(np.asarray(dense) - np.asarray(w)).sum(1)

    assert (error(searched) <= error(plain) * (1 + 1e-6)).all()
    if not isinstance(format, Float8):
        assert error(searched).sum() < 0.95 * error(plain).sum()


def layers(params: Any, x: Any) -> Any:
    def step(x: Any, w: Any) -> tuple[Any, None]:
        return x @ w, None

    x, _ = jax.lax.scan(step, x, params["stack"])
    return x @ params["head"]


PARAMS = {"stack": normal(2, 24, 24) / 20, "head": normal(24, 6) / 5}


def test_a_whole_function() -> None:
    """Scan included: observe, quantize, run; the outputs err less than by rounding."""
    params, x = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(X)
    sites = find_sites(layers, params, x)
    weights = Weights(format=Int(3), granularity=PerGroup(8))
    wanted = layers(params, jnp.asarray(inputs(seed=11)))
    _, moments = observe(layers, [(..., True)], SecondMoments())(params, x)
    errors = {}
    for name, spec in {
        "nearest": Quantize(weights=weights),
        "gptq": Quantize(weights=weights, rounding=Gptq()),
    }.items():
        small = quantize(params, [(..., spec)], sites=sites, moments=moments)
        again = jax.jit(
            lambda p, m, spec=spec: quantize(p, [(..., spec)], sites=sites, moments=m)
        )(params, moments)
        for one, two in zip(
            jax.tree.leaves(small), jax.tree.leaves(again), strict=True
        ):
            assert (np.asarray(one) == np.asarray(two)).mean() > 0.97
        got = compressed(layers)(small, jnp.asarray(inputs(seed=11)))
        errors[name] = float(np.square(got - wanted).mean())
    assert errors["gptq"] < 0.9 * errors["nearest"]


def test_fake_quant_simulates_a_searched_range() -> None:
    params, x = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(X)
    rules = [(..., Quantize(weights=Weights(format=Int(3), range=LeastError())))]
    small = quantize(params, rules, sites=find_sites(layers, params, x))
    wanted = fake_quant(layers, rules)(params, x)
    np.testing.assert_allclose(compressed(layers)(small, x), wanted, atol=1e-5)


def wrong(params: Any = PARAMS, moments: Any = None, **spec: Any) -> Any:
    given = {"rounding": Gptq(), **spec}
    sites = find_sites(layers, PARAMS, jnp.asarray(X))
    rules = [("head", Quantize(**given))]
    return quantize(params, rules, sites=sites, moments=moments)


def test_errors() -> None:
    with pytest.raises(MismatchError, match="none of 'head', which Gptq needs; coll"):
        wrong()
    with pytest.raises(MismatchError, match=r"of 'head' are \[6, 6\], not \[24, 24\]"):
        wrong(moments={"head": np.eye(6, dtype=np.float32)})
    with pytest.raises(ValueError, match="moments of 'head' hold numbers that are not"):
        wrong(moments={"head": np.full((24, 24), np.nan, np.float32)})
    with pytest.raises(MismatchError, match="chooses numbers once, from data; simul"):
        fake_quant(layers, [("head", Quantize(rounding=Gptq()))])(
            PARAMS, jnp.asarray(X)
        )
    table = {"t": jnp.ones((4, 8))}
    sites = find_sites(lambda p, i: p["t"][i], table, jnp.arange(2))
    with pytest.raises(MismatchError, match="'t' is only looked up"):
        quantize(table, [("t", Quantize(rounding=Gptq()))], sites=sites)
    for make, message in (
        (lambda: Gptq(damping=0), "damping is above 0, not 0"),
        (lambda: LeastError(least=1), "between 0 and 1, not 1"),
        (lambda: LeastError(steps=1), "2 or more, not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for make, message in (
        (lambda: Quantize(rounding=8), r"Nearest\(\) or Gptq"),
        (lambda: Weights(range=0.5), r"FullRange\(\), LeastError"),
    ):
        with pytest.raises(TypeError, match=message):
            make()


def test_activations_go_with_both() -> None:
    params, x = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(X)
    sites = find_sites(layers, params, x)
    spec = Quantize(
        weights=Weights(format=Int(8), range=LeastError(least=0.9)),
        activation=Activation(format=Int(8)),
        rounding=Gptq(),
    )
    _, moments = observe(layers, [(..., spec)], SecondMoments())(params, x)
    small = quantize(params, [(..., spec)], sites=sites, moments=moments)
    got, wanted = compressed(layers)(small, x), layers(params, x)
    assert float(jnp.abs(got - wanted).max()) < 0.05 * float(jnp.abs(wanted).max())


def deep(params: Any, x: Any) -> Any:
    """Tanh keeps inputs of like size; `table` is only looked up."""
    x = x + params["table"][jnp.argmax(x, -1)]
    for name in ("b", "a", "c"):  # not the order of the names
        x = jnp.tanh(x @ params[name])
    return x


def deep_params() -> Any:
    made = {
        name: jnp.asarray(normal(24, 24, seed=n) / 8) for n, name in enumerate("abc")
    }
    return {**made, "table": jnp.asarray(normal(24, 24, seed=9) / 8)}


def test_layers_in_order_can_go_on_after_an_interruption() -> None:
    params, batches = (
        deep_params(),
        [(jnp.asarray(inputs(seed=s) / 8),) for s in (1, 5)],
    )
    spec = Quantize(weights=Weights(format=Int(3)), rounding=Gptq())
    rules = [("table", Quantize()), (..., spec)]
    done: list[Any] = []
    whole = quantize_by_layers(deep, params, rules, batches, on_leaf=done.append)
    assert [leaf.path for leaf in done] == ["table", "b", "a", "c"]
    assert [(leaf.done, leaf.total) for leaf in done] == [(n, 4) for n in range(1, 5)]
    assert done[-1].seconds_left == 0
    seen: list[Any] = []
    rest = quantize_by_layers(deep, done[1].params, rules, batches, on_leaf=seen.append)
    assert [leaf.path for leaf in seen] == ["a", "c"]
    jax.tree.map(np.testing.assert_array_equal, rest, whole)


def test_a_layer_learns_from_what_the_layers_before_it_give() -> None:
    """The moments of the last layer are those of the quantized layers before it."""
    params, batches = deep_params(), [(jnp.asarray(inputs() / 8),)]
    spec = Quantize(weights=Weights(format=Int(2)), rounding=Gptq())
    rules = [("table", None), (..., spec)]
    whole = quantize_by_layers(deep, params, rules, batches)
    before = {name: whole[name].dense() for name in "ab"}
    _, moments = observe(deep, [("c", True)], SecondMoments())(
        {**params, **before}, *batches[0]
    )
    sites = find_sites(deep, params, *batches[0])
    alone = quantize(params, [("c", spec)], sites=sites, moments=moments)
    same = np.asarray(alone["c"].numbers) == np.asarray(whole["c"].numbers)
    assert same.mean() > 0.97
    with pytest.raises(ValueError, match="batches is empty; give at least one tuple"):
        quantize_by_layers(deep, params, rules, [])


def test_a_leaf_that_cannot_be_observed_is_refused_before_any_work() -> None:
    @jax.custom_jvp
    def last(w: Any, x: Any) -> Any:
        return x @ w

    last.defjvp(lambda primals, tangents: (last(*primals), tangents[1] @ primals[0]))
    params, batches = deep_params(), [(jnp.asarray(inputs()),)]
    rules = [(..., Quantize(rounding=Gptq()))]
    done: list[Any] = []
    with pytest.raises(MismatchError, match=r"observe: 'c' .* custom gradient"):
        quantize_by_layers(
            lambda p, x: last(p["c"], x @ p["b"] @ p["a"]),
            params,
            rules,
            batches,
            on_leaf=done.append,
        )
    assert not done


@pytest.mark.parametrize("module", [by_layers, convert, simulate])
def test_the_examples_run(module: Any) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
