"""`compare` measures variants of a model, each with a function and a tree."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.report import Label, Metric, compare
from jcompress.sites import find_sites

rng = np.random.default_rng(0)
W = jnp.asarray(rng.normal(size=(32, 8)).astype(np.float32))
X = rng.normal(size=(2, 32)).astype(np.float32)


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def four_bits(fn: Any, params: Any, x: Any) -> Any:
    rules = [(..., Quantize(weights=Weights(format=Int(4))))]
    return quantize(params, rules, sites=find_sites(fn, params, x))


def test_variants_have_their_own_functions_and_trees() -> None:
    dense = {"w": W}
    narrow = {"w": W[:, :4], "up": jnp.eye(4, 8)}
    seen: dict[int, Any] = {}

    def error(run: Any, params: Any) -> float:
        seen[len(seen)] = run(params, X)
        return float(jnp.abs(run(params, X) - X @ W).mean())

    found = compare(
        {
            "dense": (layer, dense),
            "int4": (compressed(layer), four_bits(layer, dense, X)),
            "narrow": (lambda p, x: x @ p["w"] @ p["up"], narrow),
        },
        X,
        metrics=[
            Metric("error", error, higher_is_better=False),
            Metric(
                "votes", {"dense": 3, "int4": 4, "narrow": 3}, higher_is_better=True
            ),
        ],
        rounds=5,
    )
    facts = found.facts
    assert list(facts) == ["dense", "int4", "narrow"]
    assert facts["dense"].bytes == 32 * 8 * 4
    assert facts["int4"].bytes == 32 * 8 // 2 + 8 * 4
    assert facts["dense"].macs == facts["int4"].macs == 32 * 8
    assert facts["narrow"].macs == 32 * 4 + 4 * 8
    assert facts["int4"].parameters == 32 * 8 > facts["int4"].nonzero
    assert facts["dense"].metrics["error"] < 1e-6 < facts["int4"].metrics["error"]
    assert 0 < np.abs(seen[0] - seen[1]).max() < 2
    assert set(found.latency) == {2}
    assert Label.SMALLER in found.labels("int4")
    by_name = {(line.variant, line.name): line for line in found.lines}
    assert by_name["int4", "error"].evidence == "worse"
    assert by_name["int4", "votes"].evidence == "better"
    assert by_name["narrow", "votes"].evidence == "same"
    assert all(by_name[v, m].label is None for v, m in by_name if m == "error")


def test_a_model_with_dropout_and_random_keys() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(32, 16, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.last = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(self.dropout(nnx.relu(self.first(x))))

    model = Model(nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert any(jnp.issubdtype(dtype, jax.dtypes.prng_key) for dtype in dtypes)

    def apply(state: Any, x: Any) -> Any:
        return nnx.merge(graph, state)(x)

    small = four_bits(apply, state, X)
    found = compare(
        {"dense": (apply, state), "small": (compressed(apply), small)}, X, rounds=5
    )
    weights = 32 * 16 + 16 + 16 * 4 + 4
    assert found.facts["dense"].macs == 32 * 16 + 16 * 4
    counters = found.facts["dense"].parameters - weights
    assert 0 <= counters < 3
    assert found.facts["small"].bytes < found.facts["dense"].bytes / 2
    assert "smaller" in str(found)


def test_functions_and_switches_among_the_leaves_are_constants() -> None:
    def model(tree: Any, x: Any, double: bool) -> Any:
        y = tree["activation"](x @ tree["w"])
        return y * 2 if double else y

    dense = {"w": W, "activation": jax.nn.relu, "name": "layer", "slope": 0.1}
    small = {**dense, "w": W.astype(jnp.bfloat16).astype(jnp.float32)}
    outs = []
    metric = Metric(
        "sum",
        lambda run, p: outs.append(run(p, X, True)) or float(outs[-1].sum()),
        higher_is_better=True,
    )
    found = compare(
        {"dense": (model, dense), "rounded": (model, small)},
        X,
        True,
        metrics=[metric],
        rounds=5,
    )
    np.testing.assert_allclose(outs[0], 2 * np.maximum(X @ np.asarray(W), 0), atol=1e-5)
    assert found.facts["dense"].bytes == 32 * 8 * 4 + 8
    assert found.facts["dense"].macs == 32 * 8
    assert math.isfinite(found.latency[2].ratio("rounded").median)


def test_what_a_metric_ran_is_not_compiled_again_to_be_timed() -> None:
    traced = []

    def model(params: Any, x: Any) -> Any:
        traced.append(x.shape)
        return x @ params

    def total(run: Any, params: Any) -> Any:
        return run(params, x).sum()

    x, w = jnp.ones((4, 8)), jnp.eye(8)
    metric = Metric("sum", total, higher_is_better=True)
    compare({"one": (model, w), "two": (model, w)}, x, metrics=[metric], rounds=5)
    # Of each variant its sites, and its program.
    assert len(traced) == 4


def test_batches_of_several_sizes_are_timed_in_turn() -> None:
    timed: list[int] = []
    inputs = {
        n: [(rng.normal(size=(n, 32)).astype(np.float32),) for _ in range(2)]
        for n in (4, 2)
    }
    variants = {"dense": (layer, {"w": W}), "half": (layer, {"w": W / 2})}
    found = compare(variants, batches=inputs, rounds=5, timed=timed.append)
    assert timed == list(found.latency) == [4, 2]
    assert found.facts["half"].macs == 32 * 8


@pytest.mark.parametrize(
    ("variants", "args", "message"),
    [
        ({"dense": (layer, {"w": W})}, (X,), "a baseline and another variant"),
        ({"dense": layer, "small": layer}, (X,), r"'dense' is a function; give \(fn"),
        ({"a": (layer, {"w": W}), "b": (layer, {"w": W})}, (), "led by the batch"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    variants: Any, args: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(variants, *args, rounds=5)


def test_a_metric_without_a_number_for_a_variant_is_refused() -> None:
    metric = Metric("accuracy", {"a": 0.5}, higher_is_better=True)
    variants = {"a": (layer, {"w": W}), "b": (layer, {"w": W})}
    with pytest.raises(ValueError, match="no value for the variant 'b'"):
        compare(variants, X, metrics=[metric], rounds=5)
    with pytest.raises(ValueError, match="cannot be the name of a metric"):
        Metric("bytes", {}, higher_is_better=True)
