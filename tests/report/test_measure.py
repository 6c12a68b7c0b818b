import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import report
from jcompress.formats import Int
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.sites import find_sites


def small_and_dense():
    w = jax.random.normal(jax.random.key(0), (64, 32))
    tree = {"w": w.at[:32].set(0.0), "b": jnp.zeros(32)}

    def apply(tree, x):
        return x @ tree["w"] + tree["b"][None, :]

    sites = find_sites(apply, tree, jnp.ones((1, 64)))
    rules = [("w", Quantize(weights=Weights(format=Int(4))))]
    return tree, quantize(tree, rules, sites=sites), sites


def test_bytes_are_those_of_the_stored_arrays():
    tree, small, _ = small_and_dense()
    assert report.stored_bytes(tree) == 4 * (64 * 32 + 32)
    assert report.stored_bytes(small) == 64 * 32 // 2 + 4 * 32 + 4 * 32
    assert report.stored_bytes({"x": jnp.ones(3, jnp.bfloat16), "n": 1.0}) == 6 + 8
    odd = {"key": jax.random.key(0), "act": jax.nn.relu, "name": "layer"}
    assert report.stored_bytes(odd) == 8
    assert report.parameters(odd) == report.nonzero(odd) == 0


def test_bytes_of_each_leaf_before_and_after():
    tree, small, _ = small_and_dense()
    rows = report.bytes_by_leaf({**tree, "gone": jnp.ones(2)}, {**small, "new": 1})
    assert [(row.name, row.form, row.before, row.after) for row in rows] == [
        ("b", "float32", 128, 128),
        ("gone", "removed", 8, 0),
        ("w", "QTensor, int4", 8192, 1024 + 128),
        ("new", "int", 0, 8),
    ]


def test_parameters_and_nonzero_are_those_of_the_dense_equivalents():
    tree, small, sites = small_and_dense()
    assert report.parameters(tree) == report.parameters(small) == 64 * 32 + 32
    assert report.nonzero(tree) == report.nonzero(tree, sites=sites) == 32 * 32
    rounded_away = int((small["w"].dense()[32:] == 0).sum())
    assert rounded_away > 0
    assert report.nonzero(small) == 32 * 32 - rounded_away
    assert report.nonzero({**tree, "b": jnp.ones(32)}, sites=sites) == 32 * 32
    assert report.nonzero({**tree, "b": jnp.ones(32)}) == 32 * 32 + 32


def test_macs_count_products_with_weights_only():
    _, _, sites = small_and_dense()
    assert sites.macs == 64 * 32


def sleeper(seconds):
    def run(x):
        time.sleep(seconds)
        return x

    return run


INPUTS = [(np.ones(3),), (np.full(3, 2.0),)]


def measured(fns, clock, *, rounds):
    return report.latency(
        fns, INPUTS, rounds=rounds, sample_seconds=1.0, clock=clock, jit=False
    )


def test_a_slower_function_is_measured_as_slower():
    fns = {"fast": sleeper(1e-4), "slow": sleeper(2e-3)}
    found = report.latency(fns, INPUTS, rounds=7, sample_seconds=1e-3, jit=False)
    assert found.baseline == "fast"
    ratio = found.ratio("slow")
    assert 1.5 < ratio.low <= ratio.median <= ratio.high
    assert found.time("slow").median > found.time("fast").median
    assert found.ratio("fast") == report.Spread(low=1, median=1, high=1)
    assert len(found.seconds["slow"]) == 7


def test_functions_alternate_and_inputs_rotate():
    now = 0.0
    seen = []

    def fn(name, cost):
        def run(x):
            nonlocal now
            now += cost
            seen.append((name, float(x[0])))
            return x

        return run

    fns = {"a": fn("a", 1.0), "b": fn("b", 3.0)}
    found = measured(fns, lambda: now, rounds=6)
    assert found.seconds["a"] == (1.0,) * 6
    assert found.seconds["b"] == (3.0,) * 6
    timed = seen[-12:]
    assert [name for name, _ in timed] == list("abba" * 3)
    assert [x for name, x in timed if name == "b"] == [1.0, 2.0] * 3


def test_functions_are_compiled_with_their_parameters_as_arguments():
    traced = []

    def fn(params, x):
        traced.append(params["w"])
        return params["act"](x @ params["w"])

    params = {"w": jnp.ones((3, 2)), "act": jax.nn.relu}
    variants = {"a": (fn, params), "b": (fn, params)}
    report.latency(variants, INPUTS, rounds=5, sample_seconds=1e-6)
    assert len(traced) == 2
    assert all(isinstance(w, jax.core.Tracer) for w in traced)


def test_short_calls_are_repeated_within_a_sample():
    now = 0.0
    calls = 0

    def quick(x):
        nonlocal now, calls
        now += 0.01
        calls += 1
        return x

    fns = {"quick": quick, "other": quick}
    found = measured(fns, lambda: now, rounds=5)
    assert calls > 2 * 5 * 90
    assert found.time("quick").median == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fns": {"a": sleeper(0)}}, "beside another"),
        ({"inputs": INPUTS[:1]}, "at least two sets"),
        ({"inputs": [(np.zeros(3),), (np.ones(3),)]}, r"inputs\[0\] is all zeros"),
        ({"inputs": [np.ones(3), np.ones(3)]}, "tuple of arguments"),
        ({"rounds": 3}, "at least 5 rounds"),
        ({"fns": {"a": (sleeper(0),), "b": sleeper(0)}}, r"'a' is a tuple of 1"),
    ],
)
def test_measurements_that_mean_nothing_are_refused(change, message):
    fns = {"a": sleeper(0), "b": sleeper(0)}
    given = {"fns": fns, "inputs": INPUTS, "rounds": 5, **change}
    with pytest.raises(ValueError, match=message):
        report.latency(given["fns"], given["inputs"], rounds=given["rounds"])


def test_random_inputs_are_fresh_and_never_zero():
    like = (
        jax.ShapeDtypeStruct((4, 3), jnp.bfloat16),
        {"ids": jnp.arange(5), "key": jax.random.key(1), "train": False},
    )
    inputs = report.random_inputs(like, count=3)
    assert len(inputs) == 3
    assert inputs[0][1]["key"].dtype == like[1]["key"].dtype
    assert inputs[0][1]["key"] != inputs[1][1]["key"]
    assert inputs[0][1]["train"] is False
    first = [np.asarray(x, np.float32) for x, _ in inputs]
    assert not np.array_equal(first[0], first[1])
    assert all(x.shape == (4, 3) and np.any(x) for x in first)
    assert inputs[0][0].dtype == jnp.bfloat16
    assert sorted(inputs[0][1]["ids"].tolist()) == [0, 1, 2, 3, 4]
