"""What a new user does: train, quantize, save, load, compare and export a model."""

import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jcompress import checkpoint
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import Quantize, Weights, fake_quant, quantize
from jcompress.report import Label, Metric, compare
from jcompress.sites import find_sites
from jcompress.tensors import is_compressed

RULES = [(..., Quantize(weights=Weights(format=Int(4))))]
X = jax.random.normal(jax.random.key(0), (32, 8))
Y = (X[:, 0] * X[:, 1] > 0).astype(jnp.int32)


def fit(loss: Callable[[Any], jax.Array], params: Any, steps: int) -> Any:
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def cross_entropy(logits: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


def right(run: Any, params: Any) -> float:
    return float((jnp.argmax(run(params, X), axis=-1) == Y).mean())


def to_the_artifact(
    apply: Callable[..., jax.Array], params: Any, folder: pathlib.Path
) -> None:
    """From a trained tree to what is saved, compared and exported."""
    small = quantize(params, RULES, sites=find_sites(apply, params, X))
    checkpoint.save(folder, small)
    loaded = checkpoint.load(folder, like=params)
    before, after = (compressed(apply)(tree, X) for tree in (small, loaded))
    np.testing.assert_array_equal(before, after)

    found = compare(
        {"dense": (apply, params), "int4": (compressed(apply), loaded)},
        X,
        metrics=[Metric("accuracy", right, higher_is_better=True, format=".2%")],
        rounds=5,
    )
    assert Label.SMALLER in found.labels("int4")
    assert found.facts["int4"].metrics["accuracy"] >= 0.75
    assert max(map(len, str(found).splitlines())) <= 80

    # The artifact takes the small arrays, as a list, and runs on any platform.
    arrays, static = eqx.partition(loaded, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)

    def portable(leaves: list[Any], x: jax.Array) -> jax.Array:
        tree = eqx.combine(jax.tree.unflatten(structure, leaves), static)
        return apply(jax.tree.map(made_dense, tree, is_leaf=is_compressed), x)

    exported = jax.export.export(jax.jit(portable))(leaves, X)
    again = jax.export.deserialize(exported.serialize()).call(leaves, X)
    np.testing.assert_allclose(again, after, atol=1e-4)


def made_dense(leaf: Any) -> Any:
    return leaf.dense() if is_compressed(leaf) else leaf


@pytest.fixture(autouse=True)
def optax_needs_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_an_nnx_model_with_dropout(tmp_path: pathlib.Path) -> None:
    class Classifier(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.hidden = nnx.Linear(8, 32, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.head = nnx.Linear(32, 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.dropout(nnx.relu(self.hidden(x))))

    model = Classifier(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def in_training(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, rest, copy=True)(x)

    simulated = fake_quant(in_training, RULES)
    params = fit(lambda p: cross_entropy(simulated(p, X)), params, 60)

    model.eval()
    graph, _, rest = nnx.split(model, nnx.Param, ...)
    to_the_artifact(lambda p, x: nnx.merge(graph, p, rest)(x), params, tmp_path)


def test_an_equinox_model(tmp_path: pathlib.Path) -> None:
    model = eqx.nn.MLP(8, 2, 32, depth=1, key=jax.random.key(1))

    def apply(model: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(model)(x)

    simulated = fake_quant(apply, RULES)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    arrays = fit(
        lambda arrays: cross_entropy(simulated(eqx.combine(arrays, static), X)),
        arrays,
        60,
    )
    to_the_artifact(apply, eqx.combine(arrays, static), tmp_path)
