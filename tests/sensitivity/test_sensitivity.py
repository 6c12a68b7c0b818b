"""What each leaf loses in each format, by three measures, and what a budget buys."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import PerGroup, Quantize, Weights, quantize
from jcompress.sensitivity import (
    HessianError,
    LayerError,
    OutputError,
    choose_formats,
    choosing,
    kl_divergence,
    measure_sensitivity,
    squared_error,
    trying,
)
from jcompress.sites import find_sites
from jcompress.statistics import SecondMoments, observe

RNG = np.random.default_rng(0)
SIZE, LAYERS = 16, 4


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def model(p: Any, x: Any) -> Any:
    """The outputs hang on `l2`: its branch is large."""
    for n in range(LAYERS):
        branch = jnp.tanh(x @ p[f"l{n}"])
        x = x + (4 if n == 2 else 0.1) * branch
    return x @ p["head"]


PARAMS = {f"l{n}": normal(SIZE, SIZE) / 4 for n in range(LAYERS)}
PARAMS["head"] = normal(SIZE, 3) / 4
X, UNSEEN = normal(64, SIZE), normal(64, SIZE)
SITES = find_sites(model, PARAMS, X)
CANDIDATES = [
    Quantize(weights=Weights(format=Int(bits), granularity=PerGroup(8)))
    for bits in (2, 4, 8)
]
LAYER = "l*"


def changed(path: str, spec: Quantize) -> Any:
    return quantize(PARAMS, [(path, spec)], sites=SITES)


@pytest.fixture(scope="module")
def measured() -> Any:
    return measure_sensitivity(
        PARAMS, [*CANDIDATES, None], OutputError(model, [(X,)]), sites=SITES
    )


def test_outputs_are_those_of_one_changed_leaf(measured: Any) -> None:
    assert sorted(measured.errors) == sorted(PARAMS)
    wanted = np.asarray(model(PARAMS, X))
    for path in ("l0", "l2", "head"):
        for n, spec in enumerate(CANDIDATES):
            small = changed(path, spec)
            got = np.asarray(compressed(model)(small, X))
            found = measured.errors[path][n]
            assert found == pytest.approx(np.square(got - wanted).mean(), rel=1e-3)
            assert measured.stored[path][n] == small[path].stored_bytes
        assert measured.errors[path][-1] == 0
        assert measured.stored[path][-1] == PARAMS[path].nbytes
    assert "int2 /8" in str(measured)
    assert f"{sum(b[1] for b in measured.stored.values()):,}" in str(measured)


def test_one_compilation_for_all_leaves_and_formats() -> None:
    traces = []

    def counted(p: Any, x: Any) -> Any:
        traces.append(0)
        return model(p, x)

    measure = OutputError(counted, [(X,), (UNSEEN,)], kl_divergence)
    found = measure_sensitivity(PARAMS, CANDIDATES, measure, sites=SITES)
    assert len(found.errors) * len(CANDIDATES) == 15
    assert len(traces) == 2  # the outputs of the float model, and all comparisons
    assert found.errors["l2"][0] > 5 * found.errors["l0"][0]


def test_divergences() -> None:
    a, b = np.asarray(normal(5, 4)), np.asarray(normal(5, 4))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    wanted = (p * np.log(p / q)).sum(1).mean()
    assert float(kl_divergence(a, b)) == pytest.approx(wanted, rel=1e-4)
    both = squared_error({"y": a, "n": np.arange(3)}, {"y": b, "n": np.arange(3)})
    assert float(both) == pytest.approx(np.square(a - b).mean(), rel=1e-5)


def test_layers_by_their_moments() -> None:
    rules = [(LAYER, True)]
    moments = dict(observe(model, rules, SecondMoments())(PARAMS, X)[1])
    found = measure_sensitivity(
        PARAMS, CANDIDATES, LayerError(moments), sites=SITES, leaves=LAYER
    )
    assert list(found.errors) == ["l0", "l1", "l2", "l3"]
    w = np.asarray(PARAMS["l0"], np.float64)
    x = np.asarray(X, np.float64)
    for n, spec in enumerate(CANDIDATES):
        small = np.asarray(changed("l0", spec)["l0"].dense(), np.float64)
        wanted = np.square(x @ (w - small)).sum() / np.square(x @ w).sum()
        assert found.errors["l0"][n] == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(MismatchError, match="LayerError: moments has none of 'head'"):
        measure_sensitivity(PARAMS, CANDIDATES, LayerError(moments), sites=SITES)


def test_the_trace_of_the_hessian() -> None:
    """Against all second derivatives of a small loss, which are not diagonal."""
    params = {"w": normal(4, 3), "b": normal(3)}
    x = normal(20, 4)

    def loss(p: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(jnp.tanh(x @ p["w"] + p["b"][None])))

    whole = jax.hessian(lambda w: loss({**params, "w": w}, x))(params["w"])
    wanted = float(np.trace(np.asarray(whole).reshape(12, 12)))
    measure = HessianError(loss, [(x,)], jax.random.key(0), draws=200)
    traces = measure.traces(params)
    assert set(traces) == {"w", "b"}
    assert traces["w"] == pytest.approx(wanted, rel=0.15)
    sites = find_sites(lambda p, x: x @ p["w"], params, x)
    found = measure_sensitivity(
        params, [Quantize(weights=Weights(format=Int(3)))], measure, sites=sites
    )
    small = quantize(params, [("w", Quantize(weights=Weights(format=Int(3))))],
                     sites=sites)  # fmt: skip
    change = np.square(np.asarray(small["w"].dense() - params["w"])).sum()
    assert found.errors["w"][0] == pytest.approx(traces["w"] / 12 * change, rel=1e-4)


def test_the_mix_beats_one_format_of_the_same_bytes() -> None:
    """On data that nothing was chosen by."""
    four = Quantize(weights=Weights(format=Int(4), granularity=PerGroup(8)))
    uniform = quantize(PARAMS, [(..., four)], sites=SITES)
    budget = sum(uniform[path].stored_bytes for path in PARAMS)
    specs = [
        Quantize(weights=Weights(format=Int(bits), granularity=PerGroup(8)))
        for bits in (2, 3, 4, 8)
    ]
    choice = choose_formats(
        PARAMS, specs, OutputError(model, [(X,)]), budget, sites=SITES
    )
    mixed = quantize(PARAMS, choice.rules, sites=SITES)
    stored = sum(mixed[path].stored_bytes for path in PARAMS)
    assert stored == choice.cost <= budget
    assert choice.chosen["l2"] > choice.chosen["l0"]
    wanted = model(PARAMS, UNSEEN)
    one, other = (
        float(squared_error(wanted, compressed(model)(small, UNSEEN)))
        for small in (uniform, mixed)
    )
    assert other < 0.5 * one
    assert "l2" in str(choice)


def decoder(p: Any, x: Any, said: Any = None) -> Any:
    """Each step reads the last word said: its own, or those that are given."""

    def step(state: Any, given: Any) -> Any:
        h, last = state
        h = jnp.tanh(h @ p["h"] + 3 * p["words"][last])
        logits = 4 * h @ p["out"]
        own = jnp.argmax(logits, axis=-1)
        return (h, own if given is None else given), logits

    start = (jnp.tanh(x @ p["in"]), jnp.zeros(len(x), int))
    return jax.lax.scan(step, start, said, length=12)[1]


def test_errors_that_do_not_add_up_are_told() -> None:
    """Of a decoder on its own words; those on the words of the float model do."""
    rng = np.random.default_rng(3)
    params = {
        name: jnp.asarray(rng.normal(size=(SIZE, SIZE)) / 2, jnp.float32)
        for name in ("in", "h", "words", "out")
    }
    own = decoder(params, X)
    said = jnp.argmax(own, axis=-1)
    sites = find_sites(decoder, params, X, said)
    notes, chosen = [], []
    for batch in ((X,), (X, said)):
        choice = choose_formats(
            params, CANDIDATES, OutputError(decoder, [batch], kl_divergence), 1200,
            sites=sites, leaves=lambda site: site.path != "words",
        )  # fmt: skip
        notes.append(choice.notes)
        chosen.append(choice)
    assert "this measure says little of a choice" in notes[0][0]
    assert "note: the errors of single leaves add up to" in str(chosen[0])
    assert not notes[1]
    changed = quantize(params, chosen[1].rules, sites=sites)
    got = compressed(decoder)(changed, X, said)
    assert chosen[1].together == pytest.approx(float(kl_divergence(own, got)), rel=1e-3)


def test_one_format_is_taken_where_the_mix_errs_more() -> None:
    """The errors of two leaves that are equal cancel, and only these."""

    def difference(p: Any, x: Any) -> Any:
        return x @ p["a"] - x @ p["b"]

    w = normal(SIZE, SIZE)
    params = {"a": w, "b": 1.0 * w}
    sites = find_sites(difference, params, X)
    sizes = [params["a"].size * bits // 8 + 4 * 2 * SIZE for bits in (2, 4, 8)]
    choice = choose_formats(
        params, CANDIDATES[:2], OutputError(difference, [(X,)]), sum(sizes[:2]) + 1,
        sites=sites,
    )  # fmt: skip
    assert set(choice.chosen.values()) == {0}
    assert choice.together == pytest.approx(0, abs=1e-6)
    assert choice.cost == 2 * sizes[0]
    assert "int2 /8 for all leaves errs less than a mix" in choice.notes


def test_a_budget_that_buys_nothing_is_refused_before_any_work() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    measure = OutputError(never, [(X,)])
    least = sum(changed(p, CANDIDATES[0])[p].stored_bytes for p in PARAMS)
    with pytest.raises(MismatchError, match=rf"cost {least:,} together, .* of 100;"):
        choose_formats(PARAMS, CANDIDATES, measure, 100, sites=SITES)
    costs = {path: [3.0, 2.0, 1.0] for path in PARAMS}
    with pytest.raises(MismatchError, match="cost 5 together"):
        choose_formats(PARAMS, CANDIDATES, measure, 4, sites=SITES, costs=costs)
    del costs["l1"]
    with pytest.raises(MismatchError, match="costs has 0 numbers for 'l1'"):
        choose_formats(PARAMS, CANDIDATES, measure, 4, sites=SITES, costs=costs)
    with pytest.raises(ValueError, match="candidates is empty"):
        choose_formats(PARAMS, [], measure, 4, sites=SITES)
    with pytest.raises(ValueError, match="batches is empty"):
        OutputError(model, [])


@pytest.mark.parametrize("module", [choosing, trying])
def test_the_examples_run(module: Any) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
