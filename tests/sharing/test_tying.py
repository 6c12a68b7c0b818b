"""Tied trees: what they hold, that they run and train, and their errors."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.quantization import Quantize, quantize
from jcompress.sharing import Initial, TieBlocks, TieLayers, tie, tied, untie
from jcompress.sites import find_sites

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) * 0.5, jnp.float32)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number in range(3):
            x = x + nn.tanh(nn.Dense(6, name=f"Block_{number}")(x))
        return nn.Dense(3, name="head")(x)


X = normal(4, 6)
VARIABLES = jax.tree.map(lambda leaf: normal(*leaf.shape), jax.eval_shape(
    Net().init, jax.random.key(0), X
))  # fmt: skip
TIES = [TieBlocks(("params/Block_0", "params/Block_2"))]


def test_mean_and_first() -> None:
    blocks = VARIABLES["params"]
    small = tie(VARIABLES, TIES)
    mean = (blocks["Block_0"]["kernel"] + blocks["Block_2"]["kernel"]) / 2
    np.testing.assert_allclose(small["params"]["Block_0"]["kernel"], mean, rtol=1e-6)
    assert small["params"]["Block_2"] == {"kernel": None, "bias": None}
    assert small["params"]["Block_1"]["kernel"] is blocks["Block_1"]["kernel"]
    first = tie(VARIABLES, TIES, initial=Initial.FIRST)["params"]["Block_0"]
    np.testing.assert_array_equal(first["kernel"], blocks["Block_0"]["kernel"])


def test_runs_and_its_gradient_is_the_sum() -> None:
    small = tie(VARIABLES, TIES)
    full = untie(small, TIES)
    assert jax.tree.structure(full) == jax.tree.structure(VARIABLES)
    run = tied(Net().apply, TIES)
    np.testing.assert_array_equal(run(small, X), Net().apply(full, X))

    def loss(fn: Any, tree: Any) -> jax.Array:
        return jnp.sum(fn(tree, X) ** 2)

    gradient = jax.grad(lambda t: loss(run, t))(small)["params"]
    plain = jax.grad(lambda t: loss(Net().apply, t))(full)["params"]
    for leaf in ("kernel", "bias"):
        total = plain["Block_0"][leaf] + plain["Block_2"][leaf]
        np.testing.assert_allclose(gradient["Block_0"][leaf], total, rtol=1e-5)
        np.testing.assert_allclose(
            gradient["Block_1"][leaf], plain["Block_1"][leaf], rtol=1e-5
        )
    assert gradient["Block_2"] == {"kernel": None, "bias": None}


def test_trains_checkpoints_and_quantizes(tmp_path: Any) -> None:
    small = tie(VARIABLES, TIES)
    run = tied(Net().apply, TIES)
    optimizer = optax.sgd(1e-2)

    @jax.jit
    def step(tree: Any, state: Any) -> Any:
        grads = jax.grad(lambda t: jnp.mean(run(t, X) ** 2))(tree)
        updates, state = optimizer.update(grads, state, tree)
        return optax.apply_updates(tree, updates), state

    before = jnp.mean(run(small, X) ** 2)
    state = optimizer.init(small)
    for _ in range(5):
        small, state = step(small, state)
    assert jnp.mean(run(small, X) ** 2) < before
    checkpoint.save(tmp_path / "model", small)
    again = checkpoint.load(tmp_path / "model", small)
    np.testing.assert_array_equal(run(again, X), run(small, X))
    sites = find_sites(run, small, X)
    assert len(sites.of("params/Block_0/kernel")) == 2
    packed = quantize(small, [("params/Block_0/kernel", Quantize())], sites=sites)
    out = compressed(run)(packed, X)
    np.testing.assert_allclose(out, run(small, X), atol=0.1)
    apart = compressed(Net().apply)(untie(packed, TIES), X)
    np.testing.assert_allclose(out, apart, rtol=1e-5, atol=1e-5)


def deep(params: Any, x: jax.Array) -> Any:
    def layer(x: Any, block: Any) -> Any:
        return jnp.tanh(x @ block["w"] + block["b"][None]), None

    return jax.lax.scan(layer, x, params["layers"])[0]


STACK = {"layers": {"w": normal(4, 6, 6), "b": normal(4, 6)}}


@pytest.mark.parametrize("groups", [(0, 0, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0)])
def test_layers_of_a_stack(groups: tuple[int, ...]) -> None:
    ties = [TieLayers(below="layers", groups=groups)]
    small = tie(STACK, ties)
    w = np.asarray(STACK["layers"]["w"])
    for n in range(max(groups) + 1):
        members = [i for i, group in enumerate(groups) if group == n]
        expected = np.mean(w[members], axis=0)
        np.testing.assert_allclose(small["layers"]["w"][n], expected, rtol=1e-5)
    full = untie(small, ties)
    np.testing.assert_array_equal(full["layers"]["b"], small["layers"]["b"][groups, :])
    run = tied(deep, ties)
    np.testing.assert_array_equal(run(small, X), deep(full, X))
    gradient = jax.grad(lambda t: jnp.sum(run(t, X)))(small)["layers"]["w"]
    plain = np.asarray(jax.grad(lambda t: jnp.sum(deep(t, X)))(full)["layers"]["w"])
    for n in range(max(groups) + 1):
        members = [i for i, group in enumerate(groups) if group == n]
        np.testing.assert_allclose(gradient[n], plain[members].sum(0), atol=1e-5)


def test_another_axis_and_a_single_leaf() -> None:
    params = {"w": normal(6, 3, 6)}
    ties = [TieLayers(below="w", groups=(0, 1, 0), axis=1)]
    small = tie(params, ties, initial=Initial.FIRST)
    np.testing.assert_array_equal(small["w"], params["w"][:, :2])
    np.testing.assert_array_equal(untie(small, ties)["w"][:, 2], params["w"][:, 0])
    pair = {"a": normal(3), "b": normal(3), "n": None}
    small = tie(pair, [TieBlocks(("a", "b"))])
    assert small["b"] is None
    assert untie(small, [TieBlocks(("a", "b"))])["n"] is None


def test_nnx() -> None:
    class Pair(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.one = nnx.Linear(6, 6, rngs=rngs)
            self.two = nnx.Linear(6, 6, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.two(self.one(x))

    graph, state = nnx.split(Pair(nnx.Rngs(0)))
    ties = [TieBlocks(("one", "two"))]
    small = tie(state, ties)
    run = tied(lambda state, x: nnx.merge(graph, state)(x), ties)
    kernel = (state["one"]["kernel"][...] + state["two"]["kernel"][...]) / 2
    np.testing.assert_allclose(run(small, X), X @ kernel @ kernel, rtol=1e-4, atol=1e-5)
    assert len(jax.tree.leaves(small)) == 2


@pytest.mark.parametrize(
    ("ties", "message"),
    [
        ([], "there is no tie"),
        ([TieBlocks(("params/Block_0", "params/Block_9"))],
         "no leaf is named params/Block_9 or lies below it; the tree has params/"),
        ([TieBlocks(("params/Block_0", "params/head"))],
         r"Block_0/(kernel|bias) is float32 \[.*head/(kernel|bias) is float32"),
        ([TieBlocks(("params/Block_0", "params/Block_0/kernel"))], "lie in one anoth"),
        ([TieBlocks(("params/Block_0/kernel", "params/Block_1"))],
         "have different leaves"),
        ([*TIES, TieBlocks(("params/Block_1", "params/Block_0"))],
         r"Block_0/\w+ is in tie 0 and in tie 1"),
        ([TieLayers(below="params/head", groups=(0, 0))],
         r"params/head/\w+ is \[.*, and its axis 0 should number 2 layers"),
    ],
)  # fmt: skip
def test_ties_that_cannot_be(ties: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        tie(VARIABLES, ties)


def test_specs_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="not two or more different blocks"):
        TieBlocks(("a", "a"))
    with pytest.raises(TypeError, match="give names of subtrees"):
        TieBlocks("a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a gap"):
        TieLayers(below="a", groups=(0, 2))
    with pytest.raises(ValueError, match="no two layers"):
        TieLayers(below="a", groups=(1, 0))
    with pytest.raises(TypeError, match="list of TieBlocks"):
        tie(VARIABLES, TIES[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tie 0 is 'a'"):
        tie(VARIABLES, ["a"])  # type: ignore[list-item]


def test_a_tree_that_was_not_tied() -> None:
    with pytest.raises(
        MismatchError, match=r"tied: params/Block_2/\w+ is present, though"
    ):
        tied(Net().apply, TIES)(VARIABLES, X)
    ties = [TieLayers(below="layers", groups=(0, 0, 1, 1))]
    with pytest.raises(MismatchError, match="should number 2 layers"):
        untie(STACK, ties)
    packed = quantize(VARIABLES, [(..., Quantize())], sites=find_sites(
        Net().apply, VARIABLES, X))  # fmt: skip
    with pytest.raises(MismatchError, match="kernel' is already a QTensor; tie the"):
        tie(packed, TIES)
