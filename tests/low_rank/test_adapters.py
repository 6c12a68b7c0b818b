"""Adapters: unchanged at first, trained beside a frozen base, and merged."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.low_rank import (
    Lora,
    add_adapters,
    merge_adapters,
    put_adapters,
    take_adapters,
)
from jcompress.low_rank.factorizing import Svd, factorize
from jcompress.pruning import NM, Prune, apply_masks, make_masks
from jcompress.pruning.convert import to_sparse
from jcompress.pruning.scores import score_by_magnitude
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.sites import find_sites
from jcompress.tensors import Adapted, QTensor, is_compressed

TOLERANCE = 2e-5
KEY = jax.random.key(0)
rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def check_close(got: Any, wanted: Any) -> None:
    size = max(float(np.abs(np.asarray(wanted)).max()), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * size)


def model(params: Any, x: jax.Array) -> jax.Array:
    """A dense layer, a convolution and a scan over layers, all of one width."""
    x = jnp.tanh(x @ params["a"])
    images = x.reshape(-1, 2, 2, 8)
    images = jax.lax.conv_general_dilated(
        images, params["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(images.reshape(-1, 8))
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["s"])[0]


PARAMS = {"a": normal(8, 8) / 3, "k": normal(3, 3, 8, 8) / 8, "s": normal(2, 8, 8) / 3}
X = normal(8, 8)
SITES = find_sites(model, PARAMS, X)
EVERY = [(..., Lora(rank=2, alpha=3.0))]


def dense(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.dense() if is_compressed(leaf) else leaf,
        tree,
        is_leaf=is_compressed,
    )


def bases() -> dict[str, Any]:
    scores = score_by_magnitude(PARAMS)
    masks = make_masks(scores, [(..., Prune(pattern=NM(2, 4)))], sites=SITES)
    four = Quantize(weights=Weights(format=Int(4, symmetric=False)))
    rules = [("k", Svd(rank=4)), (..., Svd(rank=3))]
    return {
        "dense": PARAMS,
        "integers": quantize(PARAMS, [(..., four)], sites=SITES),
        "sparse": to_sparse(apply_masks(PARAMS, masks), [(..., NM(2, 4))], sites=SITES),
        "low rank": factorize(PARAMS, rules, sites=SITES),
    }


BASES = bases()
WHYS = {
    "dense": ("", "", ""),
    "integers": (
        "base: weight-only product",
        "base: made dense: a CPU computes a convolution of these shapes faster in "
        "floats",
        "base: weight-only product",
    ),
    "sparse": (
        "base: sparse product",
        "base: made dense: there is no kernel for a convolution of more than one "
        "position",
        "base: sparse product",
    ),
    "low rank": ("base: products of its factors",) * 3,
}


def shaken(tree: Any) -> Any:
    """The tree with adapters that do something."""
    grown = jax.tree.map(lambda a: a + normal(*a.shape) / 4, take_adapters(tree))
    return put_adapters(tree, grown)


@pytest.mark.parametrize("base", BASES)
def test_base_and_thin_products(base: str) -> None:
    params = BASES[base]
    tree = add_adapters(params, EVERY, sites=SITES, key=KEY)
    run = jax.jit(compressed(model))
    wanted = model(dense(params), X)
    check_close(run(tree, X), wanted)
    tree = shaken(tree)
    entries = inspect(model, tree, X)
    assert [(e.path, e.how) for e in entries] == [(n, How.ADAPTED) for n in "aks"]
    assert tuple(entry.why for entry in entries) == WHYS[base]
    changed = run(tree, X)
    assert np.abs(changed - wanted).max() > 0.05
    check_close(changed, model(dense(tree), X))


def test_only_the_adapters_are_trained() -> None:
    small = BASES["integers"]
    tree = add_adapters(small, EVERY, sites=SITES, key=KEY)
    target = model(PARAMS, X)

    def loss(adapters: Any) -> jax.Array:
        out = compressed(model)(put_adapters(tree, adapters), X)
        return jnp.mean((out - target) ** 2)

    optimizer = optax.adam(0.02)

    @jax.jit
    def step(adapters: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(adapters)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(adapters, updates), state, value

    adapters = take_adapters(tree)
    state = optimizer.init(adapters)
    losses = []
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for _ in range(60):
            adapters, state, value = step(adapters, state)
            losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]
    trained = put_adapters(tree, adapters)
    for name in PARAMS:
        np.testing.assert_array_equal(trained[name].base.values, small[name].values)
    merged = merge_adapters(trained)
    check_close(model(merged, X), compressed(model)(trained, X))
    again = merge_adapters(trained, requantize=True)
    for name, leaf in again.items():
        assert isinstance(leaf, QTensor)
        assert leaf.format == small[name].format
        assert leaf.stored_bytes == small[name].stored_bytes
        step_size = np.asarray(leaf.scales).max()
        assert np.abs(leaf.dense() - merged[name]).max() <= 0.51 * step_size


def test_the_gradient_is_that_of_the_dense_function() -> None:
    tree = shaken(add_adapters(PARAMS, EVERY, sites=SITES, key=KEY))

    def loss(adapters: Any, whole: bool) -> jax.Array:
        full = put_adapters(tree, adapters)
        out = model(dense(full), X) if whole else compressed(model)(full, X)
        return jnp.sum(out**2)

    adapters = take_adapters(tree)
    got, wanted = (
        jax.jit(jax.grad(loss), static_argnums=1)(adapters, w) for w in (0, 1)
    )
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.abs(theirs).max() > 1e-3
        check_close(mine, theirs)


@pytest.mark.parametrize("alpha", [3.0, -1.0])
def test_starting_from_what_quantization_took(alpha: float) -> None:
    two = [(..., Quantize(weights=Weights(format=Int(2))))]
    small = quantize(PARAMS, two, sites=SITES)
    tree = add_adapters(
        small,
        [(..., Lora(rank=3, alpha=alpha))],
        sites=SITES,
        key=KEY,
        original=PARAMS,
    )
    lost = np.asarray(PARAMS["a"] - small["a"].dense(), np.float64)
    tail = np.sqrt(np.sum(np.linalg.svd(lost, compute_uv=False)[3:] ** 2))
    left = np.linalg.norm(np.asarray(PARAMS["a"] - tree["a"].dense()))
    np.testing.assert_allclose(left, tail, rtol=1e-4)
    for name, leaf in PARAMS.items():
        before = np.linalg.norm(leaf - small[name].dense())
        assert np.linalg.norm(leaf - tree[name].dense()) < before


def test_requantized_granularities() -> None:
    for granularity in (PerGroup(4), PerTensor()):
        spec = Quantize(weights=Weights(format=Int(8), granularity=granularity))
        small = quantize(PARAMS, [("s", spec)], sites=SITES)
        tree = add_adapters(small, [("s", Lora(rank=1))], sites=SITES, key=KEY)
        again = merge_adapters(tree, requantize=True)
        np.testing.assert_array_equal(again["s"].values, small["s"].values)
        np.testing.assert_allclose(again["s"].scales, small["s"].scales, rtol=1e-6)


def test_lookups_and_quantized_data() -> None:
    def looked(params: Any, ids: jax.Array) -> jax.Array:
        return params["t"][ids] @ params["w"]

    params = {"t": normal(9, 4), "w": normal(4, 6)}
    ids = jnp.asarray([[1, 8], [0, 3]], jnp.int32)
    sites = find_sites(looked, params, ids)
    rules = [
        ("t", Quantize()),
        ("w", Quantize(activation=Activation(format=Int(4, symmetric=False)))),
    ]
    small = quantize(params, rules, sites=sites)
    spec = [(..., Lora(rank=2))]
    tree = add_adapters(small, spec, sites=sites, key=KEY)
    check_close(compressed(looked)(tree, ids), fake_quant(looked, rules)(params, ids))
    tree = shaken(tree)
    table, thin = tree["t"], tree["w"].correction.dense()
    rows = table.dense()[ids]
    base = compressed(lambda p, x: x @ p["w"])({"w": small["w"]}, rows)
    check_close(compressed(looked)(tree, ids), base + rows @ thin)
    assert [e.how for e in inspect(looked, tree, ids)] == [How.ADAPTED] * 2


def test_under_jit_and_vmap() -> None:
    make = jax.jit(lambda params: add_adapters(params, EVERY, sites=SITES, key=KEY))
    tree = make(PARAMS)
    check_close(
        tree["a"].down, add_adapters(PARAMS, EVERY, sites=SITES, key=KEY)["a"].down
    )
    several = jax.tree.map(lambda a: jnp.stack([a, a + 1]), take_adapters(tree))
    outs = jax.vmap(lambda a: compressed(model)(put_adapters(tree, a), X))(several)
    for number, out in enumerate(outs):
        one = jax.tree.map(lambda a, n=number: a[n], several)
        check_close(out, model(dense(put_adapters(tree, one)), X))


def grouped(params: Any, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        params["k"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )


def test_a_grouped_convolution_is_made_dense_and_says_so() -> None:
    params, x = {"k": normal(3, 3, 2, 8)}, normal(1, 4, 4, 8)
    sites = find_sites(grouped, params, x)
    rules = [("k", Quantize(activation=Activation()))]
    small = quantize(params, rules, sites=sites)
    tree = add_adapters(small, [("k", Lora(rank=1))], sites=sites, key=KEY)
    (entry,) = inspect(grouped, tree, x)
    assert entry.how is How.DENSE
    assert "grouped convolution" in entry.why
    check_close(compressed(grouped)(tree, x), fake_quant(grouped, rules)(params, x))


ADAPTED = add_adapters(PARAMS, [("a", Lora(rank=1))], sites=SITES, key=KEY)


def add(params: Any = PARAMS, spec: Any = None, **changes: Any) -> Any:
    given = {"sites": SITES, "key": KEY, **changes}
    return add_adapters(params, [("a", spec or Lora(rank=1))], **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: add(spec=Svd(rank=1)), "the spec of rule 0 is Svd"),
        (lambda: add(spec=Lora(rank=9)), "rank 9 exceeds the matrix of 'a', 8 outputs"),
        (lambda: add(ADAPTED), "'a' has an adapter already"),
        (lambda: add({"k": PARAMS["k"]}), "'a', which is not in the tree: k"),
        (lambda: add({"a": normal(8, 7)}), r"'a' is \[8, 7\] in the tree and \[8, 8\]"),
        (lambda: add({"a": jnp.ones((8, 8), jnp.int8)}), "'a' is int8"),
        (lambda: add(original={}), "'a' is absent in original"),
        (lambda: add(original={"a": normal(3, 8)}), r"'a' is \[3, 8\] in original"),
        (lambda: add(original=ADAPTED), "'a' is a Adapted in original"),
        (lambda: Lora(rank=0), "rank is a number of at least 1, not 0"),
        (lambda: Lora(alpha=0.0), "alpha is finite and not 0"),
        (lambda: Lora(dtype=jnp.int8), "dtype is one of floats"),
        (lambda: take_adapters(PARAMS), "no leaf of the tree is adapted"),
        (lambda: merge_adapters(PARAMS), "no leaf of the tree is adapted"),
        (lambda: put_adapters(ADAPTED, {}), "'a' has no adapter; adapted are: a"),
        (
            lambda: put_adapters(ADAPTED, {"a": {"down": normal(1, 8)}}),
            "the adapter of 'a' has no 'up'",
        ),
        (
            lambda: put_adapters(
                ADAPTED, {"a": {"down": normal(1, 8), "up": normal(7, 1)}}
            ),
            r"'a': Adapted: up is float32 \[7, 1\], not .* \[8, 1\]",
        ),
        (
            lambda: merge_adapters(
                add_adapters(BASES["sparse"], EVERY, sites=SITES, key=KEY),
                requantize=True,
            ),
            "the base of 'a' is a NMSparse",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    if re.match("rule|the spec", message) is None and "'a' is" in message:
        assert isinstance(caught.value, MismatchError)


def test_an_adapted_leaf_is_one_leaf() -> None:
    assert isinstance(ADAPTED["a"], Adapted)
    sites = find_sites(model, ADAPTED, X)
    assert sites.table == SITES.table
