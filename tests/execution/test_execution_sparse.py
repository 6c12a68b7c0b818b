"""`compressed` with sparse, clustered and pointwise leaves equals the dense model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.pruning import NM, Block, Prune, apply_masks, make_masks
from jcompress.pruning.convert import to_sparse
from jcompress.pruning.scores import score_by_magnitude
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerRow,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.sites import Operation, find_sites, leaf_axes
from jcompress.tensors import Codebook, is_compressed

TOLERANCE = 2e-5
rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def check_close(got: Any, wanted: Any) -> None:
    size = max(float(np.abs(np.asarray(wanted)).max()), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * size)


@jax.jit
def dense(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.dense() if is_compressed(leaf) else leaf,
        tree,
        is_leaf=is_compressed,
    )


def sparse(fn: Any, params: Any, x: Any, rules: Any, *, integers: bool = False) -> Any:
    """Pruned, if asked quantized, and stored by the patterns of the rules."""
    sites = find_sites(fn, params, x)
    specs = [
        (which, Prune(pattern=p, sparsity=None if isinstance(p, NM) else 0.6))
        for which, p in rules
    ]

    @jax.jit
    def masked(params: Any) -> Any:
        scores = score_by_magnitude(params)
        return apply_masks(params, make_masks(scores, specs, sites=sites))

    tree = masked(params)
    if integers:
        tree = quantize(tree, [(which, Quantize()) for which, _ in rules], sites=sites)
    return to_sparse(tree, rules, sites=sites)


def gradient(fn: Any, tree: Any, x: jax.Array) -> Any:
    def loss(x: jax.Array, tree: Any) -> jax.Array:
        return jnp.sum(fn(tree, x) ** 2)

    return jax.jit(jax.grad(loss))(x, tree)


def hows(fn: Any, tree: Any, *args: Any) -> dict[str, How]:
    return {entry.path: entry.how for entry in inspect(fn, tree, *args)}


def perceptron(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["a"]) @ params["b"] + params["c"]


PERCEPTRON = {"a": normal(16, 24), "b": normal(24, 8), "c": normal()}
RULES = [("a", NM(2, 4)), ("b", Block((2, 4)))]


@pytest.mark.parametrize("integers", [False, True])
def test_a_perceptron(integers: bool) -> None:
    x = normal(5, 16)
    tree = sparse(perceptron, PERCEPTRON, x, RULES, integers=integers)
    whole = dense(tree)
    run = compressed(perceptron)
    assert hows(perceptron, tree, x) == {"a": How.SPARSE, "b": How.SPARSE}
    check_close(run(tree, x), perceptron(whole, x))
    check_close(jax.jit(run)(tree, x), perceptron(whole, x))
    mapped = jax.vmap(run, (None, 0))(tree, x)
    check_close(mapped, perceptron(whole, x))
    check_close(gradient(run, tree, x), gradient(perceptron, whole, x))


def test_corrupted_storage_is_noticed() -> None:
    x = normal(5, 16)
    tree = sparse(perceptron, PERCEPTRON, x, RULES)
    wanted = compressed(perceptron)(tree, x)
    b = tree["b"]
    leaves, structure = jax.tree.flatten(b)
    turned = jax.tree.unflatten(structure, [leaves[0][::-1], *leaves[1:]])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_close(compressed(perceptron)({**tree, "b": turned}, x), wanted)


def deep(params: Any, x: jax.Array) -> jax.Array:
    def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    return jax.lax.scan(step, x, params["w"])[0]


@pytest.mark.parametrize("pattern", [NM(2, 4), Block((4, 4))])
def test_a_scan_over_a_stack(pattern: Any) -> None:
    params, x = {"w": normal(3, 16, 16)}, normal(4, 16)
    tree = sparse(deep, params, x, [("w", pattern)])
    assert hows(deep, tree, x) == {"w": How.SPARSE}
    check_close(jax.jit(compressed(deep))(tree, x), deep(dense(tree), x))
    check_close(gradient(compressed(deep), tree, x), gradient(deep, dense(tree), x))


def test_attention_with_kernels_of_three_axes() -> None:
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    x = normal(2, 5, 8)
    params = model.init(jax.random.key(0), x)
    rules = [("**/out/kernel", Block((2, 2))), ("**/kernel", NM(2, 4))]
    tree = sparse(model.apply, params, x, rules)
    found = hows(model.apply, tree, x)
    assert sorted(found.values(), key=lambda how: how.value) == [
        How.FUSED,
        *([How.SPARSE] * 4),
    ]
    got = jax.jit(compressed(model.apply))(tree, x)
    check_close(got, model.apply(dense(tree), x))


def test_a_batch_of_matrices_and_a_codebook() -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        heads = jnp.einsum("bi,hio->bho", x, params["w"])
        return heads.reshape(x.shape[0], -1) @ params["t"]

    values = normal(11)
    params = {"w": normal(3, 8, 4), "t": values[rng.integers(11, size=(12, 6))]}
    x = normal(5, 8)
    tree = sparse(model, params, x, [("w", Block((2, 4)))])
    axes = leaf_axes(find_sites(model, params, x).of("t"))
    tree["t"] = Codebook.of(tree["t"], axes)
    assert hows(model, tree, x) == {"w": How.SPARSE, "t": How.CODEBOOK}
    check_close(jax.jit(compressed(model))(tree, x), model(dense(tree), x))


def test_lookups_and_arithmetic_make_it_dense_and_say_so() -> None:
    def model(params: Any, ids: jax.Array) -> jax.Array:
        return (params["t"][ids] @ params["w"]) + params["w"].sum()

    params, ids = {"t": normal(12, 8), "w": normal(8, 8)}, jnp.array([3, 1])
    tree = sparse(model, params, ids, [(..., NM(2, 4))])
    entries = {(e.path, e.operation): e for e in inspect(model, tree, ids)}
    assert entries["t", "gather"].how is How.DENSE
    assert entries["t", "gather"].why == (
        "the rows of a NMSparse are not looked up as stored"
    )
    assert entries["w", "dot_general"].how is How.SPARSE
    assert entries["w", "reduce_sum"].how is How.DENSE
    check_close(compressed(model)(tree, ids), model(dense(tree), ids))


LAYOUTS = {
    "images": (("NHWC", "HWIO", "NHWC"), (2, 4, 6, 8), (1, 1, 8, 12), (1, 1)),
    "strided": (("NCHW", "OIHW", "NHWC"), (2, 8, 5, 4), (12, 8, 1, 1), (2, 3)),
    "sequence": (("CWN", "WIO", "NWC"), (8, 5, 2), (1, 8, 12), (1,)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pointwise_convolutions_run_as_products(layout: str) -> None:
    numbers, data, kernel, strides = LAYOUTS[layout]

    def model(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, params["w"], strides, "VALID", dimension_numbers=numbers
        )

    params, x = {"w": normal(*kernel)}, normal(*data)
    sites = find_sites(model, params, x)
    assert sites[0].operation is Operation.CONV
    tree = sparse(model, params, x, [("w", Block((2, 4)))])
    assert hows(model, tree, x) == {"w": How.SPARSE}
    check_close(jax.jit(compressed(model))(tree, x), model(dense(tree), x))
    if layout == "sequence":
        return
    for activation in (
        Activation(),
        Activation(granularity=PerRow(), format=Int(8)),
    ):
        rules = [("w", Quantize(activation=activation))]
        small = quantize(params, rules, sites=sites)
        # Which of the two is faster depends on the processor; a kernel takes both.
        (entry,) = inspect(model, small, x)
        assert entry.how is How.INTEGER or "in floats" in entry.why
        wanted = jax.jit(fake_quant(model, rules))(params, x)
        check_close(jax.jit(compressed(model))(small, x), wanted)


@pytest.mark.parametrize(
    ("kernel", "options", "why"),
    [
        ((3, 8, 8), {}, "more than one position"),
        ((1, 4, 8), {"feature_group_count": 2}, "grouped"),
        ((1, 8, 8), {"padding": [(1, 0)]}, "padding"),
        ((1, 8, 8), {"lhs_dilation": (2,)}, "dilated"),
    ],
)
def test_other_convolutions_are_made_dense(kernel: Any, options: Any, why: str) -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        given = {"padding": [(0, 0)], **options}
        return jax.lax.conv_general_dilated(
            x, params["w"], (1,), dimension_numbers=("NWC", "WIO", "NWC"), **given
        )

    params, x = {"w": normal(*kernel)}, normal(2, 6, 8)
    tree = sparse(model, params, x, [("w", NM(1, 4))])
    (entry,) = inspect(model, tree, x)
    assert entry.how is How.DENSE
    assert why in entry.why
    np.testing.assert_array_equal(compressed(model)(tree, x), model(dense(tree), x))


def experts(params: Any, x: jax.Array) -> jax.Array:
    sizes = jnp.array([3, 0, 4, 1], jnp.int32)
    return jax.lax.ragged_dot(x, params["w"], sizes)


EXPERTS = {"w": normal(4, 8, 6)}


@pytest.mark.parametrize(
    "activation",
    [None, Activation(), Activation(granularity=PerRow(), format=Int(8))],
)
def test_experts_run_one_by_one(activation: Activation | None) -> None:
    x = normal(10, 8)
    rules = [("w", Quantize(activation=activation))]
    tree = quantize(EXPERTS, rules, sites=find_sites(experts, EXPERTS, x))
    (entry,) = inspect(experts, tree, x)
    assert entry.how is (How.WEIGHT_ONLY if activation is None else How.INTEGER)
    assert entry.why == "one expert after the other"
    got = jax.jit(compressed(experts))(tree, x)
    fake = fake_quant(experts, rules)
    check_close(got, jax.jit(fake)(EXPERTS, x))
    assert not np.asarray(got[8:]).any()
    check_close(gradient(compressed(experts), tree, x), gradient(fake, EXPERTS, x))
    compiled = jax.jit(compressed(experts)).lower(tree, x).compile().as_text()
    assert "f32[4,8,6]" not in compiled
    assert "f32[4,6,8]" not in compiled


def test_sparse_experts() -> None:
    x = normal(10, 8)
    tree = sparse(experts, EXPERTS, x, [("w", NM(2, 4))])
    assert hows(experts, tree, x) == {"w": How.SPARSE}
    check_close(jax.jit(compressed(experts))(tree, x), experts(dense(tree), x))


@pytest.mark.parametrize(
    ("weights", "activation", "how"),
    [
        (Weights(granularity=PerGroup(8)),
         Activation(granularity=PerRow(), format=Int(8)), How.INTEGER),
        (Weights(format=Int(4)), Activation(granularity=PerRow(), format=Int(8)),
         How.INTEGER),
        (Weights(format=Int(3), granularity=PerGroup(4)),
         Activation(format=Int(5), granularity=PerRow()), How.INTEGER),
        (Weights(granularity=PerGroup(8)), Activation(granularity=PerRow()),
         How.WEIGHT_ONLY),
        (Weights(granularity=PerTensor()),
         Activation(granularity=PerRow(), format=Int(8)), How.INTEGER),
    ],
)  # fmt: skip
def test_rows_with_ranges_of_their_own(
    weights: Weights, activation: Activation, how: How
) -> None:
    def layer(params: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("bti,io->bto", x, params["w"])

    params, x = {"w": normal(24, 10)}, normal(3, 2, 24)
    rules = [("w", Quantize(weights=weights, activation=activation))]
    tree = quantize(params, rules, sites=find_sites(layer, params, x))
    assert hows(layer, tree, x) == {"w": how}
    fake = fake_quant(layer, rules)
    run = compressed(layer)
    check_close(jax.jit(run)(tree, x), jax.jit(fake)(params, x))
    check_close(gradient(run, tree, x), gradient(fake, params, x))
