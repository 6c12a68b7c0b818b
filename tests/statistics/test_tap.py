"""`tap` against the same values written out by hand."""

import doctest
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.quantization import Quantize, fake_quant, quantize
from jcompress.sites import find_sites
from jcompress.statistics import Input, NamedScope, Output, tap, tapping

rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def close(got: Any, wanted: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, wanted)


P = {"a": normal(4, 4), "s": normal(3, 4, 4), "b": normal(4, 2), "c": normal(1, 2)}
X = normal(5, 4)


def model(p: Any, x: jax.Array) -> jax.Array:
    for _ in range(2):
        with jax.named_scope("first"):
            x = jnp.tanh(x @ p["a"])
        x = x + 1

    @jax.checkpoint
    def layer(x: jax.Array, w: jax.Array) -> Any:
        with jax.named_scope("layer"):
            y = x @ w
            return jnp.tanh(y), jnp.sum(y)

    with jax.named_scope("stack"):
        x, sums = jax.lax.scan(layer, x, p["s"])
    return jax.jit(lambda x: x @ p["b"] + p["c"])(x) * jnp.sum(sums)


def by_hand(p: Any, x: jax.Array) -> Any:
    """The values of all places below."""
    firsts, inputs, layers = [], [], []
    for _ in range(2):
        inputs.append(x)
        firsts.append(jnp.tanh(x @ p["a"]))
        x = firsts[-1] + 1
    for w in p["s"]:
        layers.append((jnp.tanh(x @ w), jnp.sum(x @ w)))
        x = layers[-1][0]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    return (
        {"first": firsts[0], "first#2": firsts[1]},
        {"a": inputs[0], "a#2": inputs[1]},
        {"stack/layer": stacked, "stack": (x, stacked[1])},
        {"b": x @ p["b"], "c": x @ p["b"] + p["c"]},
    )


PLACES = [NamedScope("first"), Input("a"), NamedScope("stack**"), Output("?")]


def loss(values: Any) -> jax.Array:
    return sum(jnp.sum(jnp.sin(each)) for each in jax.tree.leaves(values))


def test_values_and_gradients() -> None:
    def wanted(p: Any, x: jax.Array) -> Any:
        values = by_hand(p, x)
        first, second = (x @ p["a"] for x in values[1].values())
        more = {"a": first, "a#2": second}
        more["s"] = jnp.stack(
            [
                x @ w
                for x, w in zip(
                    [values[0]["first#2"] + 1, *values[2]["stack/layer"][0][:-1]],
                    p["s"],
                    strict=True,
                )
            ]
        )
        return (*values[:3], {**values[3], **more})

    tapped = tap(model, PLACES)
    outs, values = jax.jit(tapped)(P, X)
    close(outs, model(P, X))
    close(values, wanted(P, X))
    got = jax.jit(jax.grad(lambda p: loss(tapped(p, X))))(P)
    by = jax.jit(jax.grad(lambda p: loss((model(p, X), wanted(p, X)))))(P)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, by
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(4)(nn.relu(nn.Dense(8)(x)))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for n in range(2):
            x = nn.remat(Block)(name=f"layer_{n}")(x)
        return nn.Dense(2, name="head")(x)


def test_modules_of_flax() -> None:
    """Beside what Flax itself hands out."""
    net = Encoder()
    variables = net.init(jax.random.key(0), X)
    _, kept = net.apply(variables, X, capture_intermediates=True)
    kept = kept["intermediates"]
    tapped = tap(net.apply, [NamedScope("Encoder/layer_*"), NamedScope("**/Dense_1")])
    _, (blocks, dense) = tapped(variables, X)
    names = ["layer_0", "layer_1"]
    close(blocks, {f"Encoder/{n}": kept[n]["__call__"][0] for n in names})
    wanted = {f"Encoder/{n}/Dense_1": kept[n]["Dense_1"]["__call__"][0] for n in names}
    close(dense, wanted)
    with pytest.raises(
        MismatchError,
        match=r"NamedScope\(name='layer_0'\) matches nothing; the scopes are Encoder, "
        r"Encoder/head, Encoder/layer_0, .*; '\*\*/layer_0' finds",
    ):
        tap(net.apply, [NamedScope("layer_0")])(variables, X)


def test_features_of_compressed_models() -> None:
    rules = [("a", Quantize())]
    small = quantize(P, rules, sites=find_sites(model, P, X))
    _, got = compressed(tap(model, PLACES))(small, X)
    _, wanted = tap(fake_quant(model, rules), PLACES[:1])(P, X)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        got[:1],
        wanted,
    )


def branches(p: Any, x: jax.Array) -> Any:
    def yes(x: jax.Array) -> jax.Array:
        with jax.named_scope("yes"):
            return jnp.sin(x @ p["a"])

    return jax.lax.cond(x[0, 0] > 0, yes, lambda x: x, x)


def test_branches_and_batches() -> None:
    tapped = jax.jit(jax.vmap(tap(branches, [NamedScope("yes")]), in_axes=(None, 0)))
    x = jnp.stack([jnp.abs(X), -jnp.abs(X)])
    _, (values,) = tapped(P, x)
    wanted = jnp.sin(jnp.abs(X) @ P["a"])
    close(values["yes"], jnp.stack([wanted, jnp.zeros_like(wanted)]))


def looped(p: Any, x: jax.Array) -> Any:
    def step(x: jax.Array) -> jax.Array:
        with jax.named_scope("step"):
            return x @ p["a"]

    return jax.lax.while_loop(lambda x: x[0, 0] > 0, step, x)


def mapped(p: Any, x: jax.Array) -> Any:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    whole, split = PartitionSpec(), PartitionSpec("d")
    return jax.shard_map(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"],
        mesh=mesh,
        in_specs=(whole, split),
        out_specs=split,
    )(p, x)


def test_devices() -> None:
    """A leading axis for the devices, and the gradient of the whole."""
    x = normal(8, 4)
    tapped = tap(mapped, [Input("b")])

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(p: Any) -> Any:
        outs, values = tapped(p, x)
        return loss(values), (outs, values)

    got, (outs, (inputs,)) = run(P)
    close(outs, jnp.tanh(x @ P["a"]) @ P["b"])
    close(inputs["b"], jnp.tanh(x @ P["a"]).reshape(4, 2, 4))
    wanted = jax.grad(lambda p: loss(jnp.tanh(x @ p["a"])))(P)
    np.testing.assert_allclose(got["a"], wanted["a"], rtol=1e-4, atol=1e-5)


WRONG: dict[str, tuple[Any, Any, str]] = {
    "while": (looped, NamedScope("step"), "'step' is in a while loop"),
    "no scopes": (lambda p, x: x @ p["a"], NamedScope("*"), "the scopes are none"),
    "no leaf": (model, Output("w"), "leaves with such values are a, s, b, c"),
    "a bias": (model, Input("c"), "leaves with such values are a, s, b$"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    fn, place, message = WRONG[name]
    with pytest.raises(MismatchError, match="tap: .*" + message):
        tap(fn, [place])(P, X)


@pytest.mark.once
def test_places() -> None:
    with pytest.raises(TypeError, match=r"write \[NamedScope\(name='a'\)\]"):
        tap(model, NamedScope("a"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not 'a'"):
        tap(model, ["a"])  # type: ignore[list-item]
    with pytest.raises(MismatchError, match="there are no places"):
        tap(model, [])


@pytest.mark.once
def test_the_example_runs() -> None:
    failed, attempted = doctest.testmod(tapping)
    assert attempted
    assert not failed
