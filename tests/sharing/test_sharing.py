"""K-means tables against NumPy, training through them, and what is stored."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.quantization import Quantize, quantize
from jcompress.sharing.clustering import Cluster, Start, cluster, make_tables
from jcompress.sharing.clusters import fit_table, nearest
from jcompress.sharing.codebooks import fake_cluster, to_codebooks
from jcompress.sites import Operation, Site, Sites, find_sites
from jcompress.tensors import Codebook
from jcompress.tensors.axes import Axes, to_matrix

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)


def fit(values: Any, importance: Any = None, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "entries": 4,
        "start": Start.LINEAR,
        "zero": False,
        "iterations": 100,
        "draws": RNG.random(changes.get("entries", 4)),
    }
    return fit_table(np.asarray(values, np.float64), importance, **{**given, **changes})


def error(values: Any, table: Any, importance: Any = None) -> float:
    gaps = np.min((values[:, None] - table[None]) ** 2, axis=1)
    return float(np.sum(gaps if importance is None else gaps * importance))


def lloyd(values: Any, weights: Any, centres: Any) -> Any:
    """The textbook's loops; no entry may become empty."""
    while True:
        near = np.argmin(np.abs(values[:, None] - centres[None]), axis=1)
        moved = np.array(
            [
                np.average(values[near == c], weights=weights[near == c])
                for c in range(len(centres))
            ]
        )
        if np.array_equal(moved, centres):
            return centres
        centres = moved


@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_is_the_textbook(weighted: bool) -> None:
    values = RNG.normal(size=400)
    weights = RNG.random(400) if weighted else np.ones(400)
    expected = lloyd(values, weights, np.linspace(values.min(), values.max(), 5))
    found = fit(values, weights if weighted else None, entries=5)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("start", Start)
def test_every_start_is_near_the_best_partition(start: Start) -> None:
    values = np.sort(RNG.normal(size=24))
    weights = RNG.random(24) + 0.1
    costs = []
    for cuts in itertools.combinations(range(1, 24), 2):
        parts = np.split(np.arange(24), cuts)
        means = [np.average(values[p], weights=weights[p]) for p in parts]
        costs.append(
            sum(
                np.sum(weights[p] * (values[p] - m) ** 2)
                for p, m in zip(parts, means, strict=True)
            )
        )
    found = fit(values, weights, entries=3, start=start)
    assert min(costs) * (1 - 1e-9) <= error(values, found, weights) <= 1.5 * min(costs)


def test_an_empty_entry_goes_where_the_error_is() -> None:
    values = np.concatenate([RNG.normal(size=50) * 0.01, [10.0, 10.3, 10.6]])
    found = fit(values, entries=4)
    # A linear start leaves the second and the third of four with nothing.
    assert len(np.unique(found)) == 4
    assert error(values, found) < 0.06


def test_few_values_are_kept_as_they_are() -> None:
    np.testing.assert_array_equal(fit([2.0, -1.0, 2.0]), [-1, 2, 2, 2])
    np.testing.assert_array_equal(fit([2.0, -1.0], zero=True), [-1, 0, 2, 2])


def test_zero_stays() -> None:
    values = np.where(RNG.random(200) < 0.7, 0.0, RNG.normal(size=200) + 0.3)
    found = fit(values, zero=True)
    assert np.sum(found == 0) == 1
    others = values[np.argmin(np.abs(values[:, None] - found), axis=1) != 0]
    assert error(values, found) < np.sum((others - others.mean()) ** 2)
    assert not np.any(fit(values) == 0)


@pytest.mark.parametrize("size", [1, 3, 16, 40])
def test_nearest(size: int) -> None:
    tables = RNG.normal(size=(2, 3, size)).astype(np.float32)
    matrix = RNG.normal(size=(2, 6, 5)).astype(np.float32)
    found = np.asarray(nearest(jnp.asarray(matrix), jnp.asarray(tables)))
    for s, n, k in np.ndindex(2, 6, 5):
        gaps = np.abs(tables[s, n // 2] - matrix[s, n, k])
        assert gaps[found[s, n, k]] <= gaps.min() + 1e-6
    middle = nearest(jnp.asarray([[0.5]]), jnp.asarray([[1.0, 0.0]]))
    assert int(middle[0, 0]) == 1


KINDS = {
    "dense": ((24, 6), Axes((), (1,), (0,))),
    "conv": ((3, 3, 4, 6), Axes((), (3,), (0, 1, 2))),
    "heads": ((24, 3, 4), Axes((), (1, 2), (0,))),
    "scan": ((2, 24, 6), Axes((0,), (2,), (1,))),
}


def site_of(kind: str, dtype: Any) -> Sites:
    shape, axes = KINDS[kind]
    site = Site(
        path="w",
        operation=Operation.DOT,
        primitive="dot_general",
        shape=shape,
        dtype=np.dtype(dtype),
        input_axes=axes.input,
        output_axes=axes.output,
        stack_axes=axes.stack,
    )
    return Sites((site,), (("w", jax.ShapeDtypeStruct(shape, dtype)),))


@pytest.mark.parametrize(
    ("kind", "rows", "dtype"),
    [
        ("dense", None, jnp.bfloat16),
        ("dense", 2, jnp.float32),
        ("conv", 2, jnp.float32),
        ("heads", None, jnp.float32),
        ("scan", 2, jnp.bfloat16),
    ],
)
def test_what_is_stored(kind: str, rows: int | None, dtype: Any) -> None:
    shape, axes = KINDS[kind]
    leaf = jnp.asarray(RNG.normal(size=shape), dtype)
    spec = Cluster(entries=3, rows=rows)
    sites = site_of(kind, dtype)
    tensor = cluster({"w": leaf}, [("w", spec)], sites=sites)["w"]
    assert isinstance(tensor, Codebook)
    assert (tensor.axes, tensor.shape, tensor.dtype) == (axes, shape, dtype)
    matrix = np.asarray(to_matrix(leaf, axes), np.float64)
    dense = np.asarray(to_matrix(tensor.dense(), axes), np.float64)
    *stacks, outputs, inputs = matrix.shape
    groups = 1 if rows is None else outputs // rows
    assert tensor.codebook.shape == (*stacks, groups, 3)
    rest = matrix.reshape(-1, outputs // groups * inputs)
    got = dense.reshape(rest.shape)
    for values, stored in zip(rest, got, strict=True):
        table = fit(values, entries=3)
        expected = table[np.argmin(np.abs(values[:, None] - table), axis=1)]
        np.testing.assert_allclose(stored, expected, rtol=1e-2, atol=1e-6)
    packed = int(np.prod(stacks)) * (outputs * -(-inputs // 2) + 4 * 3 * groups)
    assert tensor.stored_bytes == packed


def test_importance_counts() -> None:
    w = RNG.normal(size=(40, 8)).astype(np.float32)
    matter = np.where(np.abs(w) > 1, 100.0, 0.01).astype(np.float32)
    sites = find_sites(model, PARAMS, X).below("layer")
    rules = [("w", Cluster(entries=4))]
    params = {"w": jnp.asarray(w)}
    plain = cluster(params, rules, sites=sites)
    weighed = cluster(params, rules, sites=sites, importance={"w": jnp.asarray(matter)})

    def loss(tree: Any) -> float:
        return float(np.sum(matter * (np.asarray(tree["w"].dense()) - w) ** 2))

    assert loss(weighed) < 0.7 * loss(plain)
    none = cluster(params, rules, sites=sites, importance={"w": jnp.zeros((40, 8))})
    np.testing.assert_array_equal(none["w"].codebook, plain["w"].codebook)


def test_a_key_draws_each_leaf_by_its_name() -> None:
    sites = find_sites(model, PARAMS, X)
    spec = Cluster(entries=8, start=Start.PLUS_PLUS, iterations=1)

    def tables(key: int, *names: str) -> Any:
        rules = [(name, spec) for name in names]
        return make_tables(PARAMS, rules, sites=sites, key=jax.random.key(key))

    both = tables(0, "layer/w", "head")
    np.testing.assert_array_equal(tables(0, "head")["head"], both["head"])
    assert not np.array_equal(tables(1, "head")["head"], both["head"])


def model(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["layer"]["w"] + params["bias"][None]) @ params["head"]


PARAMS = {
    "layer": {"w": jnp.asarray(RNG.normal(size=(40, 8)), jnp.float32)},
    "head": jnp.asarray(RNG.normal(size=(8, 16)), jnp.float32),
    "bias": jnp.zeros(8, jnp.float32),
}
X = jnp.asarray(RNG.normal(size=(32, 40)), jnp.float32)
RULES = [(..., Cluster(entries=5))]
SITES = find_sites(model, PARAMS, X)


def test_what_was_trained_is_what_runs() -> None:
    """Weights and tables train together under optax; storing changes nothing."""
    target = model(PARAMS, X) + 0.5
    tables = make_tables(PARAMS, RULES, sites=SITES)
    simulated = fake_cluster(model)

    def loss(both: Any) -> jax.Array:
        return jnp.mean((simulated(*both, X) - target) ** 2)

    optimizer = optax.sgd(3e-3, momentum=0.9)

    @jax.jit
    def step(both: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(both), state, both)
        return optax.apply_updates(both, updates), state

    both, state = (PARAMS, tables), optimizer.init((PARAMS, tables))
    before = loss(both)
    for _ in range(60):
        both, state = step(both, state)
    assert loss(both) < 0.8 * before
    small = to_codebooks(*both, sites=SITES)
    dense = jax.tree.map(
        lambda leaf: leaf.dense() if isinstance(leaf, Codebook) else leaf,
        small,
        is_leaf=lambda leaf: isinstance(leaf, Codebook),
    )
    np.testing.assert_array_equal(model(dense, X), simulated(*both, X))
    run = compressed(model)(small, X)
    np.testing.assert_allclose(run, simulated(*both, X), rtol=2e-5, atol=2e-5)
    assert {use.how for use in inspect(model, small, X)} == {How.CODEBOOK}


def test_gradients_against_sums_over_the_members() -> None:
    tables = make_tables(PARAMS, RULES, sites=SITES)
    small = to_codebooks(PARAMS, tables, sites=SITES)
    dense = {
        "layer": {"w": small["layer"]["w"].dense()},
        "head": small["head"].dense(),
        "bias": PARAMS["bias"],
    }

    def loss(params: Any, tables: Any) -> jax.Array:
        return jnp.sum(fake_cluster(model)(params, tables, X) ** 2)

    plain = jax.grad(lambda p: jnp.sum(model(p, X) ** 2))(dense)
    straight, by_table = jax.grad(loss, argnums=(0, 1))(PARAMS, tables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        straight,
        plain,
    )
    for c, value in enumerate(np.asarray(tables["head"][0])):
        members = np.asarray(dense["head"]) == value
        expected = np.sum(np.asarray(plain["head"])[members])
        np.testing.assert_allclose(by_table["head"][0, c], expected, rtol=1e-3)
    fixed = jax.grad(loss, argnums=1)(small, tables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        fixed,
        by_table,
    )


def test_a_zero_gets_no_gradient() -> None:
    holes = jnp.where(jnp.abs(PARAMS["head"]) < 0.8, 0.0, PARAMS["head"])
    params = {**PARAMS, "head": holes}
    rules = [("head", Cluster(entries=4, zero=True))]
    tables = make_tables(params, rules, sites=SITES)
    grad = jax.grad(lambda t: jnp.sum(fake_cluster(model)(params, t, X)))(tables)
    zero = np.asarray(tables["head"]) == 0
    assert zero.sum() == 1
    np.testing.assert_array_equal(np.asarray(grad["head"])[zero], 0)
    assert np.all(np.asarray(grad["head"])[~zero] != 0)
    small = to_codebooks(params, tables, sites=SITES)
    assert np.all(np.asarray(small["head"].dense())[np.asarray(holes) == 0] == 0)


def test_a_scan_over_layers() -> None:
    def deep(params: Any, x: jax.Array) -> Any:
        def layer(x: Any, w: Any) -> Any:
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, params["w"])[0]

    params = {"w": jnp.asarray(RNG.normal(size=(3, 8, 8)), jnp.float32)}
    x = X[:, :8]
    sites = find_sites(deep, params, x)
    tables = make_tables(params, [("w", Cluster(entries=4, rows=4))], sites=sites)
    assert tables["w"].shape == (3, 2, 4)
    small = to_codebooks(params, tables, sites=sites)
    faked = fake_cluster(deep)(params, tables, x)
    np.testing.assert_allclose(compressed(deep)(small, x), faked, atol=1e-5)
    again = jax.jit(lambda p, t: to_codebooks(p, t, sites=sites))(params, tables)
    np.testing.assert_array_equal(again["w"].indices, small["w"].indices)


def test_a_checkpoint(tmp_path: Any) -> None:
    small = cluster(PARAMS, RULES, sites=SITES)
    checkpoint.save(tmp_path / "model", small)
    again = checkpoint.load(tmp_path / "model", small)
    jax.tree.map(np.testing.assert_array_equal, again, small)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("layer/w", Quantize())], r"rule 0 is Quantize.*carries Cluster\("),
        ([("nothing", Cluster())], "matches no weight"),
        (
            [("layer/w", Cluster(rows=3))],
            r"groups of 3 do not divide the 8 outputs of layer/w \[40, 8\]; sizes that "
            "do: 1, 2, 4, 8",
        ),
        (
            [("head", Cluster(entries=256))],
            r"head \[8, 16\] would not become smaller: indices and tables take 1152 "
            r"bytes, and it has 512",
        ),
        (
            [("head", Cluster(start=Start.PLUS_PLUS))],
            r"head starts with Start.PLUS_PLUS.*pass key=",
        ),
    ],
)
def test_rules_that_cannot_apply(rules: Any, message: str) -> None:
    with pytest.raises((MismatchError, TypeError), match=message):
        cluster(PARAMS, rules, sites=SITES)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"entries": 1}, ValueError, "entries is 1, not 2 to 256"),
        ({"entries": 257}, ValueError, "entries is 257"),
        ({"entries": 2.0}, TypeError, "entries is 2.0, not an int"),
        ({"rows": 0}, ValueError, "rows is 0"),
        ({"iterations": 0}, ValueError, "iterations is 0"),
        ({"start": "linear"}, TypeError, r"'linear'; use Start.LINEAR"),
    ],
)
def test_specs_that_make_no_sense(fields: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        Cluster(**fields)


def test_trees_that_do_not_fit() -> None:
    rules = [("head", Cluster(entries=4))]
    with pytest.raises(ValueError, match=r"'w', which is not in the tree: .*layer/w"):
        make_tables(PARAMS, [("w", Cluster())], sites=SITES.below("layer"))
    with pytest.raises(ValueError, match=r"'head' is \[16, 8\] in the tree and"):
        make_tables({**PARAMS, "head": PARAMS["head"].T}, rules, sites=SITES)
    bad = {**PARAMS, "head": PARAMS["head"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="head holds 1 of 128 numbers that are not fi"):
        make_tables(bad, rules, sites=SITES)
    with pytest.raises(ValueError, match="head is traced"):
        jax.jit(lambda p: make_tables(p, rules, sites=SITES))(PARAMS)
    with pytest.raises(ValueError, match="importance has no leaf head; it has bias"):
        make_tables(PARAMS, rules, sites=SITES, importance={"bias": X})
    matter = {"head": -jnp.ones((8, 16), jnp.float32)}
    with pytest.raises(ValueError, match="importance of head is negative"):
        make_tables(PARAMS, rules, sites=SITES, importance=matter)
    packed = quantize(PARAMS, [("head", Quantize())], sites=SITES)
    with pytest.raises(MismatchError, match="'head' is already a QTensor"):
        make_tables(packed, rules, sites=SITES)


def test_tables_that_do_not_fit() -> None:
    table = jnp.zeros((1, 4), jnp.float32)
    for use in (
        lambda t: to_codebooks(PARAMS, t, sites=SITES),
        lambda t: fake_cluster(model)(PARAMS, t, X),
    ):
        with pytest.raises(MismatchError, match="there is no table, so"):
            use({})
        with pytest.raises(MismatchError, match="table for bias, which is no weight"):
            use({"bias": table})
        with pytest.raises(ValueError, match=r"\[5, 4\], not float32 \[R, C\] with R"):
            use({"head": jnp.zeros((5, 4), jnp.float32)})
        with pytest.raises(ValueError, match=r"\[4\], not float32"):
            use({"head": jnp.zeros(4, jnp.float32)})
