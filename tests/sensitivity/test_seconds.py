"""Seconds as costs: what is timed, how often it counts, and the choice they make."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerGroup,
    Quantize,
    Weights,
)
from jcompress.report import Latency
from jcompress.rounding import Gptq
from jcompress.sensitivity import OutputError, choose_formats, measure_seconds, seconds
from jcompress.sites import find_sites

EIGHT = Quantize(weights=Weights(format=Int(8)))
FOUR = Quantize(
    weights=Weights(format=Int(4), granularity=PerGroup(8)),
    activation=Activation(range=MovingAverage()),
    rounding=Gptq(),
)


def model(p: Any, ids: Any) -> Any:
    """A lookup, a scan over layers, a transposed product, experts, a convolution."""
    x = p["table"][ids]
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stack"])
    y = jnp.einsum("tk,ekn->etn", x, p["experts"]).sum(0)
    y = jax.lax.conv_general_dilated(
        y[None], p["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return y[0] @ p["table"].T + x @ (2 * p["scaled"])


PARAMS = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in {
        "table": (40, 16),
        "stack": (3, 16, 16),
        "experts": (2, 16, 16),
        "conv": (3, 16, 16),
        "scaled": (16, 40),
    }.items()
}
IDS = jax.ShapeDtypeStruct((6,), jnp.int32)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A clock that knows what runs: 1 + bytes of the weight, in place of seconds."""
    calls: list[Any] = []

    def fake(variants: Any, inputs: Any, **_: Any) -> Latency:
        found = {}
        for name, (fn, tree) in variants.items():
            out = jax.block_until_ready(jax.jit(fn)(tree, *inputs[0]))
            leaf = tree["w"]
            size = leaf.stored_bytes if hasattr(leaf, "stored_bytes") else leaf.nbytes
            spent = 1.0 if name == "nothing" else 1.0 + size
            found[name] = (spent,) * 5
            calls.append((name, leaf.shape, [x.shape for x in jax.tree.leaves(out)]))
        return Latency(seconds=found, baseline="nothing")

    monkeypatch.setattr(seconds, "latency", fake)
    return calls


def test_each_product_counts_as_often_as_it_runs(timed: list[Any]) -> None:
    found = measure_seconds(model, PARAMS, [EIGHT, None, FOUR], IDS)
    dense = {path: 4 * leaf.size for path, leaf in PARAMS.items()}
    # A lookup and a product; the layers of the scan one after the other.
    dense["table"] *= 2
    assert {path: each[1] for path, each in found.items()} == dense
    # 16 inputs of 8 and 4 bits, scales of 4 bytes, and the range of the data.
    assert found["stack"][0] == 3 * (16 * 16 + 4 * 16)
    assert found["stack"][2] == 3 * (16 * 16 / 2 + 4 * 16 * 2 + 8)
    # Arithmetic makes it dense, whatever it is stored in.
    assert len(set(found["scaled"])) == 1
    assert found["experts"][2] < found["experts"][0] < found["experts"][1]
    assert found["conv"][0] < found["conv"][1]


def test_equal_products_are_timed_once(timed: list[Any]) -> None:
    def both(p: Any, x: Any) -> Any:
        return x @ p["a"] @ p["b"]

    params = {name: jax.ShapeDtypeStruct((16, 16), jnp.float32) for name in "ab"}
    x = jax.ShapeDtypeStruct((4, 16), jnp.float32)
    found = measure_seconds(both, params, [EIGHT], x)
    assert found["a"] == found["b"]
    assert [name for name, *_ in timed] == ["nothing", "dense", "0"]
    assert timed[1][1:] == ((16, 16), [(4, 16)])


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["a"]) @ p["b"]


def test_a_budget_of_measured_seconds() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        n: jax.random.normal(k, (64, 64)) for n, k in zip("ab", keys[:2], strict=True)
    }
    x = jax.random.normal(keys[2], (8, 64))
    formats, sites = [EIGHT, None], find_sites(net, params, x)
    costs = measure_seconds(net, params, formats, x, rounds=5, sample_seconds=1e-4)
    assert all(0 < each < 0.1 for pair in costs.values() for each in pair)
    ran = []

    def counted(p: Any, x: Any) -> Any:
        ran.append(1)
        return net(p, x)

    measure = OutputError(counted, [(x,)])
    given: Any = {"sites": sites, "costs": costs}
    most = sum(max(pair) for pair in costs.values())
    choice = choose_formats(params, formats, measure, most, **given)
    assert set(choice.chosen.values()) == {1}  # there is time for floats
    least = sum(min(pair) for pair in costs.values())
    tight = choose_formats(params, formats, measure, least, **given)
    assert tight.cost <= least
    ran.clear()
    with pytest.raises(MismatchError, match="more than the budget of"):
        choose_formats(params, formats, measure, 0.9 * least, **given)
    assert not ran


def test_what_does_not_fit_raises() -> None:
    odd = Quantize(weights=Weights(granularity=PerGroup(3)))
    with pytest.raises(MismatchError, match=r"groups of 3 do not divide the 16 inputs"):
        measure_seconds(model, PARAMS, [odd], IDS, leaves="stack")
    with pytest.raises(ValueError, match="candidates is empty"):
        measure_seconds(model, PARAMS, [], IDS)


def test_examples_of_the_docstrings() -> None:
    failed, attempted = doctest.testmod(seconds)
    assert attempted
    assert not failed
