"""`compressed` equals the fake-quantized function, on every model of the zoo."""

import dataclasses
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.execution.together import WHY
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerGroup,
    PerRow,
    PerTensor,
    Quantize,
    Weights,
    calibrate,
    fake_quant,
    init_ranges,
    quantize,
)
from jcompress.sites import PRODUCTS, Site, find_sites
from jcompress.tensors import is_compressed

TOLERANCE = 2e-5
"""Of the largest output: float32 sums of up to some hundred products, reordered."""
BFLOAT16 = 1e-2
"""Of the largest output: a few units in the last place."""


def floats(site: Site) -> bool:
    return jnp.issubdtype(site.dtype, jnp.floating)


def quantizable(site: Site) -> bool:
    return floats(site) and site.operation in PRODUCTS and not site.in_custom_gradient


SPECS = {
    "int8": Quantize(weights=Weights(format=Int(8))),
    "int4": Quantize(weights=Weights(format=Int(4, symmetric=False))),
    "int8_per_tensor": Quantize(weights=Weights(granularity=PerTensor())),
    "dynamic": Quantize(
        weights=Weights(format=Int(8, symmetric=False)), activation=Activation()
    ),
}


def check_close(got: Any, wanted: Any, tolerance: float) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if not isinstance(a, jax.Array) or jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            continue
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        size = np.abs(b).max() if b.size else 0.0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(size, 1.0))


def jitted(fn: Any, case: zoo.Case) -> Any:
    """`fn` of the tree, compiled for the arrays; everything else stays Python."""

    def run(variables: Any) -> Any:
        leaves, tree = jax.tree.flatten((variables, case.args, case.kwargs))
        arrays = [x if isinstance(x, jax.Array) else None for x in leaves]

        @jax.jit
        def compiled(arrays: Any) -> Any:
            full = [x if a is None else a for x, a in zip(leaves, arrays, strict=True)]
            variables, args, kwargs = jax.tree.unflatten(tree, full)
            return fn(variables, *args, **kwargs)

        return compiled(arrays)

    return run


NOTHING_TO_DO = re.compile(
    "matches no weight|no leaf of the tree is a weight|are one matrix"
    "|multiplied with another parameter"
)


def converted(case: zoo.Case, rules: Any) -> tuple[Any, Any] | str:
    """The tree converted and the simulated results; or why the rules do not apply."""
    sites = find_sites(case.fn, case.variables, *case.args, **case.kwargs)
    try:
        tree = quantize(case.variables, rules, sites=sites)
        return tree, jitted(fake_quant(case.fn, rules), case)(case.variables)
    except MismatchError as error:
        return str(error)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_compressed_equals_fake_quantized(name: str) -> None:
    # Which format meets which model is fixed by the names; all formats meet several.
    case = zoo.build(name)
    spec = list(SPECS.values())[zlib.crc32(name.encode()) % len(SPECS)]
    rules = [(quantizable if spec.activation else floats, spec)]
    made = converted(case, rules)
    if isinstance(made, str):
        assert NOTHING_TO_DO.search(made), made
        return
    tree, expected = made
    assert any(is_compressed(x) for x in jax.tree.leaves(tree, is_leaf=is_compressed))
    got = jitted(compressed(case.fn), case)(tree)
    check_close(got, expected, BFLOAT16 if "bfloat16" in name else TOLERANCE)


rng = np.random.default_rng(1)
W = jnp.asarray(rng.normal(size=(32, 24)).astype(np.float32))
X = jnp.asarray(rng.normal(size=(5, 32)).astype(np.float32))


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def test_corrupted_weights_are_noticed() -> None:
    rules = [("w", Quantize(weights=Weights(format=Int(4))))]
    tree = quantize({"w": W}, rules, sites=find_sites(layer, {"w": W}, X))
    expected = fake_quant(layer, rules)({"w": W}, X)
    check_close(compressed(layer)(tree, X), expected, TOLERANCE)
    wrong = tree["w"].values.at[3, 2].add(1)
    broken = {"w": dataclasses.replace(tree["w"], values=wrong)}
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_close(compressed(layer)(broken, X), expected, TOLERANCE)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("granularity", [PerTensor(), PerGroup(8)])
@pytest.mark.parametrize(
    "activation",
    [
        None,
        Activation(format=Int(6, symmetric=False)),
        Activation(granularity=PerRow()),
    ],
)
def test_formats(bits: int, granularity: Any, activation: Activation | None) -> None:
    weights = Weights(
        format=Int(bits, symmetric=bits % 2 == 0), granularity=granularity
    )
    rules = [("w", Quantize(weights=weights, activation=activation))]
    tree = quantize({"w": W}, rules, sites=find_sites(layer, {"w": W}, X))
    got = jax.jit(compressed(layer))(tree, X)
    expected = jax.jit(fake_quant(layer, rules))({"w": W}, X)
    check_close(got, expected, TOLERANCE)
    assert not np.array_equal(expected, layer({"w": W}, X))


def test_lookups_are_bit_equal_and_never_make_the_table_dense() -> None:
    table = jnp.asarray(rng.normal(size=(50, 16)).astype(np.float32))

    def embed(params: Any, ids: jax.Array) -> jax.Array:
        return jnp.take(params["t"].astype(jnp.bfloat16), ids, axis=0)

    ids = jnp.array([[3, 49, 7], [0, 50, 1]])
    for bits in (4, 8):
        rules = [("t", Quantize(weights=Weights(format=Int(bits, symmetric=False))))]
        sites = find_sites(embed, {"t": table}, ids)
        tree = quantize({"t": table}, rules, sites=sites)
        got = jax.jit(compressed(embed))(tree, ids)
        expected = jax.jit(fake_quant(embed, rules))({"t": table}, ids)
        got, expected = got.astype(jnp.float32), expected.astype(jnp.float32)
        np.testing.assert_array_equal(got, expected)
        assert bool(jnp.isnan(got[1, 1]).all())
        (entry,) = inspect(embed, tree, ids)
        assert entry.how is How.ROWS
        text = jax.jit(compressed(embed)).lower(tree, ids).as_text()
        assert "50x16xf32" not in text
        assert "50x16xbf16" not in text


def test_a_calibrated_tree_runs_with_its_stored_ranges() -> None:
    weights = jnp.asarray(rng.normal(size=(3, 8, 8)).astype(np.float32))

    def deep(params: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w), None

        return jax.lax.scan(step, x, params["w"])[0]

    params, x = {"w": weights}, X[:, :8]
    activation = Activation(
        format=Int(8, symmetric=False), range=MovingAverage(decay=0.5)
    )
    rules = [("w", Quantize(activation=activation))]
    ranges = init_ranges(deep, rules, params, x)
    for batch in (x, 2 * x):
        _, ranges = jax.jit(calibrate(deep, rules))(params, ranges, batch)
    sites = find_sites(deep, params, x)
    tree = quantize(params, rules, sites=sites, ranges=ranges)
    got = jax.jit(compressed(deep))(tree, x)
    expected = jax.jit(fake_quant(deep, rules, ranges=ranges))(params, x)
    check_close(got, expected, TOLERANCE)
    narrow = jax.tree.map(lambda span: span * 0.3, ranges)
    other = quantize(params, rules, sites=sites, ranges=narrow)
    assert np.abs(compressed(deep)(other, x) - got).max() > 0.01


def test_gradients_reach_the_activations() -> None:
    for activation in (None, Activation(granularity=PerRow())):
        rules = [("w", Quantize(activation=activation))]
        tree = quantize({"w": W}, rules, sites=find_sites(layer, {"w": W}, X))
        fake = fake_quant(layer, rules)
        got = jax.grad(lambda x, t=tree: jnp.sum(compressed(layer)(t, x) ** 2))(X)
        wanted = jax.grad(lambda x, f=fake: jnp.sum(f({"w": W}, x) ** 2))(X)
        check_close(got, wanted, TOLERANCE)


def test_inspect_tells_how_each_leaf_runs() -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ params["a"])
        h = h @ (params["b"] * 2.0)
        joined = jnp.concatenate([params["c"], params["d"]], axis=1)
        return h @ joined + params["e"].sum()

    square = jnp.asarray(rng.normal(size=(8, 8)).astype(np.float32))
    params = dict.fromkeys("abcde", square)
    x = X[:, :8]
    sites = find_sites(model, params, x)
    rules = [("a", Quantize(activation=Activation())), (..., Quantize())]
    tree = quantize(params, rules, sites=sites)
    found = {entry.path: entry for entry in inspect(model, tree, x)}
    assert found["a"].how is How.INTEGER
    assert found["b"].how is How.DENSE
    assert found["b"].operation == "mul"
    assert found["c"].how is found["d"].how is How.DENSE
    assert "e" not in found


def test_a_tree_without_compressed_leaves_is_refused() -> None:
    for run in (compressed(layer), lambda p, x: inspect(layer, p, x)):
        with pytest.raises(ValueError, match="no compressed leaf"):
            run({"w": W}, X)


def test_a_stored_scan_is_sliced_and_not_made_dense() -> None:
    weights = jnp.asarray(rng.normal(size=(6, 64, 64)).astype(np.float32))

    def deep(params: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w), None

        return jax.lax.scan(step, x, params["w"])[0]

    x = jnp.asarray(rng.normal(size=(2, 64)).astype(np.float32))
    sites = find_sites(deep, {"w": weights}, x)
    tree = quantize({"w": weights}, [("w", Quantize())], sites=sites)
    assert [entry.how for entry in inspect(deep, tree, x)] == [How.WEIGHT_ONLY]
    assert "6x64x64xf32" not in jax.jit(compressed(deep)).lower(tree, x).as_text()


def small_and_large(params: Any, x: jax.Array) -> jax.Array:
    x = jax.lax.conv_general_dilated(
        x, params["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x).reshape(x.shape[0], -1) @ params["b"]
    y: jax.Array = x @ params["c"].T
    return y


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_small_weights_are_made_dense_in_one_step(bits: int, symmetric: bool) -> None:
    shapes = {"a": (3, 3, 2, 5), "b": (80, 300), "c": (7, 300)}
    params = {
        name: jnp.asarray(rng.normal(size=shape).astype(np.float32))
        for name, shape in shapes.items()
    }
    x = jnp.asarray(rng.normal(size=(3, 4, 4, 2)).astype(np.float32))
    sites = find_sites(small_and_large, params, x)
    weights = Weights(format=Int(bits, symmetric=symmetric))
    tree = quantize(params, [(..., Quantize(weights=weights))], sites=sites)
    said = {e.path: e for e in inspect(small_and_large, tree, x)}
    assert said["a"].why == said["c"].why == WHY
    assert said["b"].how is How.WEIGHT_ONLY
    run = compressed(small_and_large)
    dense = {name: leaf.dense() for name, leaf in tree.items()}
    wanted = small_and_large(dense, x)
    size = np.abs(wanted).max()
    np.testing.assert_allclose(jax.jit(run)(tree, x) / size, wanted / size, atol=2e-5)
    # Several models at once, and a gradient through all of it.
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)
    stacked = jax.vmap(run, in_axes=(0, None))(both, x)
    np.testing.assert_allclose(stacked[1] / size, wanted / size, atol=2e-5)
    got, want = (
        jax.grad(lambda x, f=f, p=p: jnp.sum(f(p, x) ** 2))(x)
        for f, p in ((run, tree), (small_and_large, dense))
    )
    top = np.abs(want).max()
    np.testing.assert_allclose(got / top, want / top, atol=2e-5)
