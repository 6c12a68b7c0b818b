"""What follows products, and what stands between them, run by fewer operations."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jcompress.execution import Fusion, How, compressed, fused, inspect
from jcompress.formats import Int
from jcompress.kernels import Implementation, export_checks
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerRow,
    Quantize,
    Weights,
    quantize,
)
from jcompress.sites import PRODUCTS, find_sites

WIDTH, HEADS = 96, 4


def normal(*shape: int, seed: int = 0) -> jax.Array:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers.astype(np.float32))


def params() -> dict[str, jax.Array]:
    shapes = {
        "query": (WIDTH, WIDTH),
        "key": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH),
        "out": (WIDTH, WIDTH),
        "gate": (WIDTH, 2 * WIDTH),
        "up": (WIDTH, 2 * WIDTH),
        "down": (2 * WIDTH, WIDTH),
    }
    weights = {
        name: normal(*shape, seed=number) * np.float32(0.3)
        for number, (name, shape) in enumerate(shapes.items())
    }
    biases = {
        f"{name}_bias": normal(shapes[name][1], seed=20 + number)
        for number, name in enumerate(shapes)
    }
    return {**weights, **biases, "norm": normal(WIDTH, seed=9)}


def dense(p: Any, name: str, x: jax.Array) -> Any:
    return x @ p[name] + p[f"{name}_bias"][None, None]


def block(p: Any, x: jax.Array) -> Any:
    """Attention and a gated perceptron, each added and the first one normalised."""
    shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
    q, k, v = (dense(p, n, x).reshape(shape) for n in ("query", "key", "value"))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * np.float32(0.35)
    mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
    x = x + dense(p, "out", mixed.reshape(x.shape))
    root = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    y = x * root * p["norm"][None, None]
    wide = jax.nn.silu(dense(p, "gate", y)) * dense(p, "up", y)
    return x + dense(p, "down", wide)


X = normal(2, 6, WIDTH, seed=40)
EIGHT = Activation(format=Int(8), granularity=PerRow())
SPECS = {
    "W8": Quantize(),
    "W8A8": Quantize(activation=EIGHT),
    "W4": Quantize(weights=Weights(format=Int(4), granularity=PerGroup(16))),
    "W4A8": Quantize(
        weights=Weights(format=Int(4), granularity=PerGroup(16)), activation=EIGHT
    ),
}


def small(spec: Quantize, fn: Any = block, tree: Any = None, x: Any = X) -> Any:
    tree = params() if tree is None else tree
    sites = find_sites(fn, tree, x)
    return quantize(
        tree, [(lambda site: site.operation in PRODUCTS, spec)], sites=sites
    )


def apart(fn: Any) -> Any:
    return compressed(fn, without=set(Fusion))


def check_close(got: Any, expected: Any, tolerance: float = 4e-6) -> None:
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        top = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * top)


@pytest.mark.parametrize("spec", SPECS)
def test_a_block_equals_itself_apart(spec: str) -> None:
    tree = small(SPECS[spec])
    got = jax.jit(compressed(block))(tree, X)
    # A rounding that falls the other way moves an 8-bit input by one step.
    check_close(got, jax.jit(apart(block))(tree, X), 2e-2 if "A8" in spec else 4e-6)


def test_what_inspect_tells() -> None:
    entries = inspect(block, small(SPECS["W8A8"]), X)
    by_path = {entry.path: entry.why for entry in entries if entry.how is How.INTEGER}
    shared = "with bias; together with 2 of the same input"
    assert {by_path[name] for name in ("query", "key", "value")} == {shared}
    assert by_path["gate"] == "with bias, silu; together with 1 of the same input"
    assert by_path["up"] == "with bias; together with 1 of the same input"
    assert by_path["out"] == by_path["down"] == "with bias, residual"
    fusions = [entry.operation for entry in entries if entry.how is How.FUSED]
    assert sorted(fusions) == ["attention", "normalization"]


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def by_hand(x: jax.Array) -> jax.Array:
    return np.float32(0.5) * x * (1 + jax.lax.erf(x / np.float32(np.sqrt(2))))


@pytest.mark.parametrize("name", [*ACTIVATIONS, "gelu by hand"])
def test_activations_are_found(name: str) -> None:
    function = ACTIVATIONS.get(name, by_hand)

    def layer(p: Any, x: jax.Array) -> Any:
        return function(x @ p["w"] + p["b"][None, None])

    tree = small(Quantize(), layer, {"w": normal(WIDTH, 48), "b": normal(48)})
    (entry,) = inspect(layer, tree, X)
    assert entry.why == f"with bias, {name.split(' ')[0]}"
    check_close(jax.jit(compressed(layer))(tree, X), jax.jit(apart(layer))(tree, X))


@pytest.mark.parametrize(
    "function", [jnp.sin, lambda x: jnp.clip(x, -1, 1), jax.nn.elu, jax.nn.softplus]
)
def test_other_functions_stay(function: Any) -> None:
    def layer(p: Any, x: jax.Array) -> Any:
        return function(x @ p["w"] + p["b"][None, None])

    tree = small(Quantize(), layer, {"w": normal(WIDTH, 48), "b": normal(48)})
    (entry,) = inspect(layer, tree, X)
    assert entry.why == "with bias"
    check_close(jax.jit(compressed(layer))(tree, X), jax.jit(apart(layer))(tree, X))


def returned(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = x @ p["w"]
    return y, jax.nn.relu(y + p["b"][None, None])


def row_bias(p: Any, x: jax.Array) -> Any:
    """What is added differs from row to row, and is a residual at best."""
    return x @ p["w"] + x[..., :1]


def itself(p: Any, x: jax.Array) -> Any:
    y = x @ p["w"]
    return y * y + y


def residual_from_itself(p: Any, x: jax.Array) -> Any:
    y = x @ p["w"]
    return jnp.tanh(y + p["b"][None, None]) + jnp.sin(y)


@pytest.mark.parametrize("fn", [returned, row_bias, itself, residual_from_itself])
def test_what_must_stay_as_it_is(fn: Any) -> None:
    tree = small(Quantize(), fn, {"w": normal(WIDTH, WIDTH), "b": normal(WIDTH)})
    check_close(jax.jit(compressed(fn))(tree, X), jax.jit(apart(fn))(tree, X))


def test_biases_of_several_axes() -> None:
    def heads(p: Any, x: jax.Array) -> Any:
        return jnp.einsum("btc,chd->bthd", x, p["w"]) + p["b"][None, None]

    tree = small(Quantize(), heads, {"w": normal(WIDTH, 3, 16), "b": normal(3, 16)})
    assert inspect(heads, tree, X)[0].why == "with bias"
    check_close(jax.jit(compressed(heads))(tree, X), jax.jit(apart(heads))(tree, X))


def test_weights_that_come_first() -> None:
    def turned(p: Any, x: jax.Array) -> Any:
        y = jnp.einsum("oc,btc->obt", p["w"], x) + p["b"][:, None, None]
        return jax.nn.relu(y) + p["w"].sum() * 0

    tree = small(Quantize(), turned, {"w": normal(48, WIDTH), "b": normal(48)})
    check_close(jax.jit(compressed(turned))(tree, X), jax.jit(apart(turned))(tree, X))


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("spec", ["W8", "W8A8"])
def test_gradients_of_what_stays_dense(spec: str, rows: int) -> None:
    tree, x = small(SPECS[spec]), X[:1, :rows]
    # On the bias of the keys nothing depends: it moves all scores of a row alike.
    names = [name for name in tree if name.endswith("bias") and name != "key_bias"]
    dense_names = [*names, "norm"]

    def loss(run: Any, dense: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(run({**tree, **dense}, x)))

    given = {name: tree[name] for name in dense_names}
    gradients = [
        jax.jit(jax.grad(functools.partial(loss, run), (0, 1)))(given, x)
        for run in (compressed(block), apart(block))
    ]
    for name in ("value_bias", "out_bias", "gate_bias", "up_bias", "down_bias", "norm"):
        assert np.abs(np.asarray(gradients[0][0][name])).max() > 0
    check_close(*gradients, 2e-2 if spec == "W8A8" else 2e-5)


def straight_through(x: jax.Array) -> jax.Array:
    return x + jax.lax.stop_gradient(jax.nn.relu(x) - x)


@jax.custom_jvp
def other_rule(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, np.float32(0))


other_rule.defjvp(lambda primals, tangents: (other_rule(*primals), tangents[0]))


@pytest.mark.parametrize("function", [straight_through, other_rule])
def test_functions_with_other_gradients_stay(function: Any) -> None:
    def layer(p: Any, x: jax.Array) -> Any:
        return function(x @ p["w"] + p["b"][None, None])

    tree = small(Quantize(), layer, {"w": normal(WIDTH, 48), "b": normal(48)})
    assert inspect(layer, tree, X)[0].why == "with bias"

    def loss(run: Any) -> Any:
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(run(tree, x)))))(X)

    check_close(loss(compressed(layer)), loss(apart(layer)), 1e-5)


@pytest.mark.parametrize("fn", [compressed, fused])
def test_transforms(fn: Any) -> None:
    tree = small(SPECS["W8"]) if fn is compressed else params()
    one, other = fn(block), apart(block) if fn is compressed else block

    def value(run: Any) -> Any:
        return lambda x: jnp.sum(jnp.square(run(tree, x)))

    check_close(
        jax.jit(jax.grad(value(one)))(X), jax.jit(jax.grad(value(other)))(X), 1e-5
    )
    stack = jnp.stack([X, X[::-1]])
    mapped = jax.jit(jax.vmap(one, (None, 0)))(tree, stack)
    check_close(mapped, jax.jit(jax.vmap(other, (None, 0)))(tree, stack))

    def twice(run: Any, x: jax.Array) -> Any:
        return jax.lax.scan(lambda c, _: (run(tree, c) * 0.5, None), x, length=2)[0]

    check_close(jax.jit(functools.partial(twice, one))(X), twice(other, X), 1e-5)
    again = jax.jit(jax.grad(value(jax.checkpoint(one))))(X)
    check_close(again, jax.jit(jax.grad(value(other)))(X), 1e-5)


def test_layers_in_a_scan() -> None:
    def deep(p: Any, x: jax.Array) -> Any:
        return jax.lax.scan(lambda c, one: (block(one, c), None), x, p)[0]

    tree = jax.tree.map(lambda a: jnp.stack([a, a * np.float32(0.5)]), params())
    packed = small(SPECS["W8"], deep, tree)
    whys = {entry.path: entry.why for entry in inspect(deep, packed, X)}
    assert whys["out"] == "with bias, residual"
    assert whys["query"].endswith("together with 2 of the same input")
    got = jax.jit(compressed(deep))(packed, X)
    check_close(got, jax.jit(apart(deep))(packed, X), 2e-5)


def test_devices_each_have_rows() -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    tree = small(SPECS["W8"])
    placed = jax.device_put(X, NamedSharding(mesh, P("data")))
    got = jax.jit(compressed(block))(tree, placed)
    check_close(got, jax.jit(apart(block))(tree, X))


@pytest.mark.parametrize("portable", [False, True])
def test_exported_with_any_batch(portable: bool) -> None:
    tree = small(SPECS["W8"])
    which = Implementation.XLA if portable else None
    batch = jax.export.symbolic_shape("b, t")
    shape = jax.ShapeDtypeStruct((*batch, WIDTH), jnp.float32)
    written = jax.export.export(
        jax.jit(functools.partial(compressed(block, implementation=which), tree)),
        disabled_checks=[] if portable else export_checks(),
    )(shape)
    x = normal(3, 4, WIDTH)
    got = jax.export.deserialize(written.serialize()).call(x)
    check_close(got, jax.jit(apart(block))(tree, x))


def pooled(p: Any, x: jax.Array) -> Any:
    """Attention whose queries are a parameter, which meets the keys as a weight."""
    scores = jnp.einsum("td,bsd->bts", p["q"], x)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x)


@pytest.mark.parametrize("spec", ["W8", "W4A8"])
def test_queries_that_are_a_compressed_leaf(spec: str) -> None:
    tree = small(SPECS[spec], pooled, {"q": normal(64, WIDTH)})
    assert [entry.how for entry in inspect(pooled, tree, X)] != [How.FUSED]
    got = jax.jit(compressed(pooled))(tree, X)
    check_close(got, jax.jit(apart(pooled))(tree, X), 1e-5)


def test_a_compressed_leaf_that_is_a_residual_as_well() -> None:
    def tied(p: Any, x: jax.Array) -> Any:
        return x @ p["w"] + p["w"]

    w, x = normal(WIDTH, WIDTH), normal(WIDTH, WIDTH, seed=3)
    tree = small(Quantize(), tied, {"w": w}, x)
    check_close(jax.jit(compressed(tied))(tree, x), jax.jit(apart(tied))(tree, x))


@pytest.mark.parametrize("rows", [1, 3])
def test_products_of_one_input_that_are_added(rows: int) -> None:
    def both(p: Any, x: jax.Array) -> Any:
        return jnp.tanh(x @ p["a"]) + (x @ p["b"] + x @ p["c"])

    tree = {n: normal(WIDTH, WIDTH, seed=i) for i, n in enumerate("abc")}
    packed, x = small(Quantize(), both, tree, X[0, :rows]), X[0, :rows]
    check_close(jax.jit(compressed(both))(packed, x), jax.jit(apart(both))(packed, x))


def test_many_threads_get_equal_results() -> None:
    tree, run = small(SPECS["W8A8"]), jax.jit(compressed(block))
    expected = np.asarray(run(tree, X))
    wrong: list[int] = []

    def call() -> None:
        for _ in range(50):
            if not np.array_equal(np.asarray(run(tree, X)), expected):
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tree_with_compressed_leaves_needs_compressed() -> None:
    with pytest.raises(ValueError, match=r"use jcompress\.execution\.compressed"):
        fused(block)(small(SPECS["W8"]), X)
