"""`to_sparse`: exact storage of pruned trees, quantized ones too, and its errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Prune,
    Unstructured,
    apply_masks,
    make_masks,
)
from jcompress.pruning.convert import to_sparse
from jcompress.pruning.scores import score_by_magnitude
from jcompress.quantization import (
    Activation,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    quantize,
)
from jcompress.sites import Sites, find_sites
from jcompress.tensors import BlockSparse, NMSparse, UnstructuredSparse

rng = np.random.default_rng(0)
PARAMS = {
    "a": jnp.asarray(rng.normal(size=(16, 24)), jnp.float32),
    "b": jnp.asarray(rng.normal(size=(24, 4, 8)), jnp.bfloat16),
    "c": jnp.asarray(rng.normal(size=(3, 8, 8)), jnp.float32),
}


def model(params: Any, x: jax.Array) -> jax.Array:
    h = (x @ params["a"]).astype(jnp.bfloat16)
    h = jnp.einsum("bi,ihd->bhd", h, params["b"]).sum(1).astype(jnp.float32)
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["c"])[0]


X = jnp.asarray(rng.normal(size=(2, 16)), jnp.float32)
SITES = find_sites(model, PARAMS, X)
PATTERNS = {"a": NM(2, 4), "b": Block((8, 4)), "c": Block((2, 4))}


def pruned(patterns: Any = PATTERNS, sparsity: float = 0.7) -> Any:
    rules = [
        (name, Prune(pattern=p, sparsity=None if isinstance(p, NM) else sparsity))
        for name, p in patterns.items()
    ]
    masks = make_masks(score_by_magnitude(PARAMS), rules, sites=SITES)
    return apply_masks(PARAMS, masks)


def converted(tree: Any, **patterns: Any) -> Any:
    return to_sparse(tree, list((patterns or PATTERNS).items()), sites=SITES)


def check_same(tree: Any, dense: Any) -> None:
    for name, leaf in dense.items():
        found = tree[name].dense()
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found, leaf)


def test_the_leaves_are_the_pruned_ones(tmp_path: Any) -> None:
    tree = pruned()
    sparse = converted(tree)
    assert isinstance(sparse["a"], NMSparse)
    assert isinstance(sparse["b"], BlockSparse)
    assert isinstance(sparse["c"], BlockSparse)
    check_same(sparse, tree)
    assert sparse["b"].blocks.dtype == jnp.bfloat16
    assert sparse["c"].blocks.shape[0] == 3
    assert sparse["a"].stored_bytes == 16 * 24 * 4 // 2 + 16 * 24 // 8
    checkpoint.save(tmp_path, sparse)
    again = checkpoint.load(tmp_path, like=PARAMS)
    assert jax.tree.structure(again) == jax.tree.structure(sparse)
    check_same(again, tree)


def test_quantized_leaves_become_sparse_integers(tmp_path: Any) -> None:
    tree = pruned()
    spec = Quantize(weights=Weights(format=Int(8)))
    small = quantize(tree, [(..., spec)], sites=SITES)
    sparse = converted(small)
    for name in PARAMS:
        np.testing.assert_array_equal(sparse[name].dense(), small[name].dense())
        assert sparse[name].stored_bytes < small[name].stored_bytes
    assert sparse["a"].values.dtype == sparse["b"].blocks.dtype == jnp.int8
    checkpoint.save(tmp_path, sparse)
    again = checkpoint.load(tmp_path)
    np.testing.assert_array_equal(again["c"].dense(), small["c"].dense())


def test_single_weights_are_stored_and_run(tmp_path: Any) -> None:
    single = dict.fromkeys(PARAMS, Unstructured())
    tree = pruned(single, sparsity=0.8)
    sparse = converted(tree, **single)
    assert all(isinstance(leaf, UnstructuredSparse) for leaf in sparse.values())
    check_same(sparse, tree)
    for name, leaf in sparse.items():
        assert leaf.values.dtype == PARAMS[name].dtype
        assert leaf.stored_bytes < PARAMS[name].nbytes / 2
    assert [entry.how for entry in inspect(model, sparse, X)] == [How.SPARSE] * 3
    found = jax.jit(compressed(model))(sparse, X)
    np.testing.assert_allclose(found, model(tree, X), rtol=0.02, atol=1e-3)
    checkpoint.save(tmp_path, sparse)
    again = checkpoint.load(tmp_path, like=PARAMS)
    assert jax.tree.structure(again) == jax.tree.structure(sparse)
    check_same(again, tree)

    spec = Quantize(weights=Weights(format=Int(8)))
    small = quantize(tree, [(..., spec)], sites=SITES)
    integers = converted(small, **single)
    check_same(integers, {name: leaf.dense() for name, leaf in small.items()})
    assert integers["c"].values.dtype == jnp.int8
    found = jax.jit(compressed(model))(integers, X)
    wanted = jax.jit(compressed(model))(small, X)
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=1e-3)
    for rows in (1, 20):
        x = jnp.asarray(rng.normal(size=(rows, 16)), jnp.float32)
        run = compressed(lambda p, x: x @ p["a"])
        np.testing.assert_allclose(
            run({"a": sparse["a"]}, x), x @ tree["a"], rtol=1e-5, atol=1e-5
        )
    with pytest.raises(MismatchError, match="384 of 384 weights are not 0 and with a"):
        converted(PARAMS, a=Unstructured())


@pytest.mark.parametrize(
    ("bits", "granularity"),
    [
        (4, PerChannel()),
        (4, PerGroup(32)),
        (3, PerTensor()),
        (3, PerGroup(16)),
        (4, PerBlock(outputs=4, inputs=64)),
        (8, PerGroup(32)),
    ],
)
def test_single_weights_of_few_bits_are_stored_and_run(
    tmp_path: Any, bits: int, granularity: Any
) -> None:
    shapes = {"a": (64, 128), "b": (128, 4, 32), "c": (3, 128, 128)}
    params = {
        name: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
        for name, shape in shapes.items()
    }
    x = jnp.asarray(rng.normal(size=(2, 64)), jnp.float32)

    def wide(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.einsum("bi,ihd->bhd", x @ params["a"], params["b"]).reshape(-1, 128)
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["c"])[0]

    sites = find_sites(wide, params, x)
    prune = Prune(pattern=Unstructured(), sparsity=0.8)
    masks = make_masks(score_by_magnitude(params), [(..., prune)], sites=sites)
    spec = Quantize(weights=Weights(format=Int(bits), granularity=granularity))
    small = quantize(apply_masks(params, masks), [(..., spec)], sites=sites)
    dense = {name: leaf.dense() for name, leaf in small.items()}
    sparse = to_sparse(small, [(..., Unstructured())], sites=sites)
    check_same(sparse, dense)
    for name, leaf in sparse.items():
        assert leaf.values.dtype == (jnp.int8 if bits == 8 else jnp.uint8)
        assert leaf.stored_bytes == sum(x.nbytes for x in jax.tree.leaves(leaf))
        assert leaf.stored_values >= int((small[name].numbers != 0).sum())
    assert [entry.how for entry in inspect(wide, sparse, x)] == [How.SPARSE] * 3
    found = jax.jit(compressed(wide))(sparse, x)
    np.testing.assert_allclose(found, wide(dense, x), rtol=1e-4, atol=1e-5)
    checkpoint.save(tmp_path, sparse)
    again = checkpoint.load(tmp_path, like=params)
    assert jax.tree.structure(again) == jax.tree.structure(sparse)
    check_same(again, dense)
    for rows in (1, 20):
        x = jnp.asarray(rng.normal(size=(rows, 64)), jnp.float32)
        run = compressed(lambda p, x: x @ p["a"])
        np.testing.assert_allclose(
            run({"a": sparse["a"]}, x), x @ dense["a"], rtol=1e-5, atol=1e-5
        )


def test_four_bits_and_a_bit_a_place_are_counted() -> None:
    params = {"w": jnp.asarray(rng.normal(size=(128, 64)), jnp.float32)}
    sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 128)))
    rules = [(..., Prune(pattern=Unstructured(), sparsity=0.75))]
    masks = make_masks(score_by_magnitude(params), rules, sites=sites)
    weights = Weights(format=Int(4, full=True), granularity=PerGroup(64))
    rule = [(..., Quantize(weights=weights))]
    small = quantize(apply_masks(params, masks), rule, sites=sites)
    sparse = to_sparse(small, [(..., Unstructured())], sites=sites)["w"]
    kept = int((small["w"].numbers != 0).sum())
    assert kept <= 128 * 64 // 4
    starts, scales = 4 * 65, 4 * 64 * 2
    assert sparse.stored_bytes == -(-kept // 2) + 128 * 64 // 8 + starts + scales
    assert sparse.stored_bytes < small["w"].stored_bytes * 0.65


def test_the_other_order_is_refused() -> None:
    sparse = converted(pruned())
    with pytest.raises(MismatchError, match=r"a'? is already a NMSparse"):
        quantize(sparse, [("a", Quantize())], sites=SITES)


def test_float16_is_stored_as_float32() -> None:
    params = {"w": jnp.zeros((8, 8), jnp.float16).at[0, 0].set(0.1)}
    sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 8), jnp.float16))
    sparse = to_sparse(params, [("w", Block((2, 2)))], sites=sites)
    assert sparse["w"].blocks.dtype == jnp.float32
    np.testing.assert_array_equal(sparse["w"].dense(), params["w"])


def as_sites(change: Any) -> Any:
    return {**pruned(), **change}


@pytest.mark.parametrize(
    ("tree", "patterns", "message"),
    [
        (PARAMS, {"a": NM(2, 4)}, "'a' is not 2:4 sparse: 96 of 96 groups of 4 inputs"),
        (PARAMS, {"a": Block((5, 4))}, "24 outputs .* 5 of .* does not divide"),
        (PARAMS, {"c": Block((2, 4))}, "'c' would not become smaller: 24 of 24 blocks"),
        ({"c": PARAMS["c"]}, {"a": NM(2, 4)}, "'a', which is not in the tree: c"),
        (as_sites({"a": PARAMS["c"]}), {"a": NM(2, 4)}, r"\[3, 8, 8\] in the tree and"),
    ],
)
def test_what_cannot_be_converted(tree: Any, patterns: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        converted(tree, **patterns)


def test_what_is_converted_already() -> None:
    with pytest.raises(MismatchError, match="'a' is already a NMSparse"):
        converted(converted(pruned()), a=NM(2, 4))


@pytest.mark.parametrize(
    "spec",
    [
        Quantize(weights=Weights(format=Int(4))),
        Quantize(weights=Weights(format=Int(8, symmetric=False))),
        Quantize(activation=Activation()),
    ],
)
def test_formats_that_sparse_leaves_do_not_have(spec: Quantize) -> None:
    small = quantize(pruned(), [("a", spec)], sites=SITES)
    with pytest.raises(
        MismatchError,
        match="symmetric integers of 5 to 8 bits with one scale a channel",
    ):
        converted(small, a=NM(2, 4))


def test_rules_and_tracing() -> None:
    with pytest.raises(
        TypeError, match=r"rule 0 is Channels\(\); a rule carries Block"
    ):
        converted(PARAMS, a=Channels())
    with pytest.raises(ValueError, match="'a' is traced"):
        jax.jit(lambda tree: converted(tree, a=NM(2, 4)))(PARAMS)


def test_a_subtree_needs_its_sites() -> None:
    params = {"params": PARAMS}
    sites = find_sites(lambda p, x: model(p["params"], x), params, X)
    with pytest.raises(MismatchError, match=r"pass sites=sites.below\('params'\)"):
        to_sparse(pruned(), [("params/a", NM(2, 4))], sites=sites)
    below: Sites = sites.below("params")
    assert isinstance(
        to_sparse(pruned(), [("a", NM(2, 4))], sites=below)["a"], NMSparse
    )
