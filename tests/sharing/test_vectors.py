"""Codes of vectors: each step against brute force, errors beside GPTQ's, and use."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.conversion import describe_changes
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.quantization import LeastError, PerGroup, Quantize, Weights, quantize
from jcompress.rounding import Gptq
from jcompress.sharing import ClusterVectors, cluster_vectors, vector_codes
from jcompress.sharing import fitting_vectors as fitting
from jcompress.sites import find_sites
from jcompress.tensors import VectorCodebook

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
SMALL = ClusterVectors(length=2, bits=4, rounds=2)


def moments_of(inputs: int, seed: int = 0) -> Any:
    """Those of inputs that depend on each other and differ in size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(inputs, inputs)) * np.exp(-np.arange(inputs) / 20)
    x = rng.normal(size=(4 * inputs, inputs)) @ mix.T
    x += 0.5 * rng.normal(size=x.shape)
    return jnp.asarray(x.T @ x / len(x), jnp.float32)


def error(change: Any, moments: Any) -> float:
    change, h = np.asarray(change, np.float64), np.asarray(moments, np.float64)
    return float(np.sum(change @ h * change))


def layer(params: Any, x: Any) -> Any:
    return x @ params["w"]


def setting(count: int, length: int = 2) -> tuple[Any, ...]:
    """Weights [3, 8], moments, tables of four entries and scales."""
    w = RNG.normal(size=(3, 8)).astype(np.float32)
    h = np.asarray(moments_of(8))
    tables = RNG.normal(size=(count, 4, length)).astype(np.float32)
    return w, h, tables, RNG.uniform(0.5, 2, size=(3, 1)).astype(np.float32)


def entries(tables: Any) -> tuple[Any, Any]:
    """All choices of codes [E, M], and the sums that they stand for."""
    grid = np.indices([tables.shape[1]] * len(tables)).reshape(len(tables), -1).T
    return grid, sum(table[grid[:, m]] for m, table in enumerate(tables))


@pytest.mark.parametrize("count", [1, 2])
def test_codes_in_turn_are_those_of_brute_force(count: int) -> None:
    w, h, tables, scales = setting(count)
    # H = T^T T with T lower triangular: a row of T meets inputs up to its own.
    t = np.linalg.cholesky(h[::-1, ::-1].astype(np.float64)).T[::-1, ::-1]
    grid, sums = entries(tables)
    expected = np.zeros((3, 4, count), np.int32)
    for n in range(3):
        errors = np.zeros(8)
        for j in range(4):
            own = slice(2 * j, 2 * j + 2)
            tried = np.tile(errors, (len(grid), 1))
            tried[:, own] = w[n, own] - scales[n] * sums
            best = np.argmin(np.sum((tried @ t[own].T) ** 2, axis=1))
            errors, expected[n, j] = tried[best], grid[best]
    nothing = jnp.zeros((3, 4, count), jnp.int32)
    found = vector_codes.sweep(
        jnp.asarray(w),
        vector_codes.in_turn(jnp.asarray(h), 2),
        nothing,
        jnp.asarray(tables),
        jnp.asarray(scales),
        4,
        fresh=True,
    )
    np.testing.assert_array_equal(found, expected)


def test_codes_chosen_again_are_those_of_brute_force() -> None:
    w, h, tables, scales = setting(2)
    grid, sums = entries(tables)
    codes = RNG.integers(4, size=(3, 4, 2))
    found = vector_codes.sweep(
        jnp.asarray(w),
        vector_codes.all_else(jnp.asarray(h), 2),
        jnp.asarray(codes, jnp.int32),
        jnp.asarray(tables),
        jnp.asarray(scales),
        4,
        fresh=False,
    )
    for n in range(3):
        values = sum(table[codes[n, :, m]] for m, table in enumerate(tables))
        errors = w[n] - scales[n] * values.reshape(-1)
        for j in range(4):
            own = slice(2 * j, 2 * j + 2)
            tried = np.tile(errors, (len(grid), 1))
            tried[:, own] = w[n, own] - scales[n] * sums
            best = np.argmin(np.sum(tried @ h * tried, axis=1))
            errors = tried[best]
            np.testing.assert_array_equal(found[n, j], grid[best])


def test_tables_are_those_of_least_squares() -> None:
    w, h, tables, scales = setting(2)
    codes = RNG.integers(4, size=(3, 4, 2)).astype(np.int32)
    # The weights are linear in the tables: one column of a design for each number.
    design = np.zeros((3 * 8, tables.size))
    for n, j, m, d in np.ndindex(3, 4, 2, 2):
        place = np.ravel_multi_index((m, codes[n, j, m], d), tables.shape)
        design[8 * n + 2 * j + d, place] += scales[n, 0]
    root = np.kron(np.eye(3), np.linalg.cholesky(h.astype(np.float64)).T)
    best = np.linalg.lstsq(root @ design, root @ w.reshape(-1), rcond=None)[0]
    least = error(w - (design @ best).reshape(3, 8), h)
    given = [jnp.asarray(part) for part in (w, h, codes, tables, scales)]
    for _ in range(3):
        given[3] = fitting._best_tables(*given)
    after = error(w - (design @ np.asarray(given[3]).reshape(-1)).reshape(3, 8), h)
    before = error(w - (design @ tables.reshape(-1)).reshape(3, 8), h)
    assert least <= after * (1 + 1e-6)
    assert after < least + 0.01 * (before - least)


def test_less_error_than_gptq_in_fewer_bytes() -> None:
    w = jnp.asarray(RNG.standard_t(6, size=(128, 64)), jnp.float32)
    h = moments_of(128)
    params = {"w": w}
    sites = find_sites(layer, params, jnp.ones((1, 128)))
    small = cluster_vectors(params, [("w", SMALL)], sites=sites, moments={"w": h})["w"]
    own = error((small.dense() - w).T, h)
    # The better of GPTQ's ranges at 2 bits.
    weights = Weights(
        format=Int(2, symmetric=False), granularity=PerGroup(64), range=LeastError()
    )
    rule = Quantize(weights=weights, rounding=Gptq())
    other = quantize(params, [("w", rule)], sites=sites, moments={"w": h})["w"]
    assert small.stored_bytes < other.stored_bytes
    assert own < 0.7 * error((other.dense() - w).T, h)
    # Without moments all weights count alike: worse on this data, better in itself.
    plain = cluster_vectors(params, [("w", SMALL)], sites=sites)["w"]
    assert own < error((plain.dense() - w).T, h)
    assert error(plain.dense() - w, np.eye(64)) < error(small.dense() - w, np.eye(64))


def test_of_several_dampings_the_one_by_which_outputs_err_least() -> None:
    w = jnp.asarray(RNG.normal(size=(64, 48)), jnp.float32)
    sites = find_sites(layer, {"w": w}, jnp.ones((1, 64)))
    h = moments_of(64)

    def lost(*damping: float) -> float:
        spec = ClusterVectors(length=4, bits=5, damping=damping)
        made = cluster_vectors({"w": w}, [("w", spec)], sites=sites, moments={"w": h})
        return error((made["w"].dense() - w).T, h)

    small, large = lost(0.01), lost(1.0)
    assert small < 0.9 * large
    for both in ((0.01, 1.0), (1.0, 0.01)):
        assert lost(*both) == pytest.approx(small, rel=1e-4)


def test_stacks_odd_inputs_and_one_trace(monkeypatch: Any) -> None:
    traced = []
    real = fitting.fit_vectors

    def counted(*args: Any, **kwargs: Any) -> Any:
        traced.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr("jcompress.sharing.vectors.fit_vectors", counted)
    spec = ClusterVectors(length=3, bits=5, rounds=1, damping=0.02)
    shape = (2, 40, 32)
    params = {n: jnp.asarray(RNG.normal(size=shape), jnp.bfloat16) for n in "ab"}
    moments = {n: jnp.stack([moments_of(40, seed) for seed in (1, 2)]) for n in "ab"}

    def model(params: Any, x: Any) -> Any:
        def step(x: Any, w: Any) -> tuple[Any, None]:
            return jnp.tanh(0.02 * (x @ w["a"] @ w["b"].T)), None

        return jax.lax.scan(step, x, params)[0]

    x = jnp.ones((3, 40), jnp.bfloat16)
    sites = find_sites(model, params, x)
    rules = [("a", spec)]
    small = cluster_vectors(params, rules, sites=sites, moments=moments)
    again = {**params, "a": params["a"] + 1}
    cluster_vectors(again, rules, sites=sites, moments=moments)
    assert len(traced) == 1
    leaf = small["a"]
    assert isinstance(leaf, VectorCodebook)
    assert leaf.codes.shape == (2, 32, 1, 10)
    assert leaf.dense().dtype == jnp.bfloat16
    for copy in range(2):
        change = (leaf.dense() - params["a"])[copy].T.astype(jnp.float32)
        whole = params["a"][copy].T.astype(jnp.float32)
        h = moments["a"][copy]
        assert error(change, h) < 0.25 * error(whole, h)
    assert not np.array_equal(leaf.tables[0], leaf.tables[1])
    out = compressed(model)(small, x)
    expected = model({**small, "a": leaf.dense()}, x)
    np.testing.assert_allclose(
        np.asarray(out, np.float32), np.asarray(expected, np.float32), atol=0.05
    )


def test_a_tree_runs_and_its_tables_train() -> None:
    params = {"w": jnp.asarray(RNG.normal(size=(48, 40)), jnp.float32)}
    x = jnp.asarray(RNG.normal(size=(5, 48)), jnp.float32)
    sites = find_sites(layer, params, x)
    rules = [("w", SMALL)]
    small = jax.jit(lambda p: cluster_vectors(p, rules, sites=sites))(params)
    assert inspect(layer, small, x)[0].how is How.CODEBOOK
    np.testing.assert_allclose(
        compressed(layer)(small, x), x @ small["w"].dense(), rtol=1e-4, atol=1e-4
    )
    text = str(describe_changes(params, small, rules, sites=sites))
    assert "VectorCodebook 1x4 bits of 2" in text

    def loss(small: Any) -> Any:
        return jnp.mean(jnp.square(compressed(layer)(small, x) - layer(params, x)))

    before, gradient = jax.value_and_grad(loss, allow_int=True)(small)
    leaf, slopes = small["w"], gradient["w"]
    rate = 0.05 * before / jnp.sum(jnp.square(slopes.tables))
    trained = dataclasses.replace(leaf, tables=leaf.tables - rate * slopes.tables)
    assert loss({"w": trained}) < 0.98 * before
    assert slopes.scales.shape == leaf.scales.shape


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"length": 9}, ValueError, "length is 9, not 1 to 8"),
        ({"codes": 0}, ValueError, "codes is 0, not 1 to 4"),
        ({"bits": 8.0}, TypeError, "bits is 8.0, not an int"),
        ({"rounds": -1}, ValueError, "rounds is -1, not 0 or more"),
        ({"damping": 0.0}, ValueError, "damping is above 0, not 0.0"),
    ],
)
def test_specs_that_say_nonsense(
    changes: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ClusterVectors(**changes)


def test_leaves_that_do_not_fit() -> None:
    params = {"w": jnp.ones((16, 16)).at[0, 0].set(jnp.nan)}
    sites = find_sites(layer, params, jnp.ones((1, 16)))

    def convert(spec: Any = SMALL, **given: Any) -> None:
        cluster_vectors(params, [("w", spec)], sites=sites, **given)

    with pytest.raises(MismatchError, match=r"w \[16, 16\] would not become smaller"):
        convert(ClusterVectors())
    with pytest.raises(MismatchError, match="moments has none of 'w'"):
        convert(moments={})
    with pytest.raises(ValueError, match="'w' holds 1 of 256 numbers that are not"):
        convert()
    with pytest.raises(TypeError, match=r"carries ClusterVectors\(length"):
        convert(Quantize())
