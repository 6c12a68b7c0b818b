"""`quantize`: what it stores, that it equals fake quantization, and its errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quant_oracle import LEAVES, Format, Leaf, fake_quantize, normal

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    quantize,
)
from jcompress.quantization.convert import check
from jcompress.sites import Operation, Site, Sites, find_sites
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes
from jcompress.tensors.ranges import Range
from jcompress.tensors.weight_matrix import fake_quantize_weight

pytestmark = pytest.mark.bits

GRANULARITIES = {
    "tensor": (PerTensor(), None),
    "channel": (PerChannel(), None),
    "group": (PerGroup(4), 4),
}


def site(path: str, leaf: Leaf, **changes: Any) -> Site:
    given = {
        "operation": Operation.DOT,
        "primitive": "dot_general",
        "shape": leaf.shape,
        "dtype": np.dtype("float32"),
        "input_axes": leaf.input,
        "output_axes": leaf.output,
        "stack_axes": leaf.stack,
    }
    return Site(path=path, **{**given, **changes})


def sites_of(*table: Site) -> Sites:
    leaves = {site.path: jax.ShapeDtypeStruct(site.shape, site.dtype) for site in table}
    return Sites(table=table, leaves=tuple(leaves.items()))


def one(leaf: Leaf = LEAVES["dense"], **changes: Any) -> Sites:
    return sites_of(site("w", leaf, **changes))


def rule(**spec: Any) -> list[Any]:
    return [("w", Quantize(weights=Weights(**spec)))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", LEAVES)
def test_stores_what_fake_quantization_computes(
    kind: str, granularity: str, dtype: str
) -> None:
    leaf = LEAVES[kind]
    per, group = GRANULARITIES[granularity]
    w = normal(leaf.shape, dtype)
    sites = one(leaf, dtype=jnp.dtype(dtype))
    axes = Axes(leaf.stack, leaf.output, leaf.input)
    for bits, symmetric in ((2, False), (4, True), (4, False), (5, True), (8, False)):
        spec = Weights(format=Int(bits, symmetric=symmetric), granularity=per)
        rules = [("w", Quantize(weights=spec))]
        tensor = quantize({"w": w}, rules, sites=sites)["w"]
        expected = fake_quantize(w, leaf, Format(bits, symmetric, granularity, group))
        assert isinstance(tensor, QTensor)
        np.testing.assert_array_equal(tensor.dense(), expected.dense)
        faked = fake_quantize_weight(jnp.asarray(w), axes, spec)
        np.testing.assert_array_equal(tensor.dense(), faked)
        stored = tensor.scales.size * (4 if symmetric else 5)
        *rows, inputs = tensor.matrix_shape
        size = math.prod(rows) * -(-inputs * bits // 8)
        assert tensor.values.nbytes == size
        assert tensor.stored_bytes == size + stored
        assert tensor.shape == leaf.shape
        assert tensor.dtype == jnp.dtype(dtype)


def test_under_jit_and_made_dense_under_jit() -> None:
    leaf = LEAVES["scan"]
    w = jnp.asarray(normal(leaf.shape, "float32"))
    sites = one(leaf)
    rules = rule(format=Int(4, symmetric=False))

    def convert(w: jax.Array) -> Any:
        return quantize({"w": w}, rules, sites=sites)

    eager, jitted = convert(w)["w"], jax.jit(convert)(w)["w"]
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
    dense = eager.dense()
    np.testing.assert_array_equal(dense, jax.jit(lambda t: t.dense())(eager))
    np.testing.assert_array_equal(dense, jax.jit(lambda: eager.dense())())
    np.testing.assert_array_equal(dense, jax.jit(lambda w: convert(w)["w"].dense())(w))


def test_abstract() -> None:
    leaf = LEAVES["dense"]
    tree = {"w": jax.ShapeDtypeStruct(leaf.shape, jnp.float32)}
    out = jax.eval_shape(
        lambda t: quantize(t, rule(format=Int(4)), sites=one(leaf)), tree
    )
    assert out["w"].values.shape == (5, 6)
    assert out["w"].values.dtype == jnp.uint8
    assert out["w"].stored_bytes == 5 * 6 + 5 * 4


def test_the_rest_of_the_tree_is_handed_on() -> None:
    leaf = LEAVES["dense"]
    w, b = jnp.ones(leaf.shape), jnp.ones(5)
    tree = {"w": w, "v": w, "b": b, "step": 3, "none": None}
    sites = sites_of(site("w", leaf), site("v", leaf))
    out = quantize(tree, rule(), sites=sites)
    assert isinstance(out["w"], QTensor)
    assert out["v"] is w
    assert out["b"] is b
    assert out["step"] == 3
    assert out["none"] is None
    again = quantize(out, [("v", Quantize())], sites=sites)
    assert again["w"] is out["w"]
    assert isinstance(again["v"], QTensor)


def test_a_tied_leaf_is_laid_out_for_its_product() -> None:
    table = sites_of(
        site("w", Leaf((7, 12), (), (0,), (1,)), operation=Operation.LOOKUP),
        site("w", Leaf((7, 12), (), (0,), (1,))),
    )
    tensor = quantize({"w": jnp.ones((7, 12))}, rule(), sites=table)["w"]
    assert (tensor.output_axes, tensor.input_axes) == ((0,), (1,))
    assert tensor.scales.shape == (7, 1)


def test_a_lookup_has_no_input_to_quantize() -> None:
    table = one(LEAVES["tied_embedding"], operation=Operation.LOOKUP)
    spec = Quantize(activation=Activation(range=MovingAverage()))
    tensor = quantize({"w": jnp.ones((7, 12))}, [("w", spec)], sites=table)["w"]
    assert tensor.activation is None
    assert tensor.input_scales == ()


def test_ranges_are_stored_in_order() -> None:
    leaf = LEAVES["dense"]
    table = sites_of(site("w", leaf), site("w", leaf))
    spec = Quantize(activation=Activation(range=MovingAverage()))
    ranges = {"w": (Range(jnp.float32(-1), jnp.float32(2)), (-3, 4))}
    tensor = quantize({"w": jnp.ones(leaf.shape)}, [("w", spec)], sites=table,
                      ranges=ranges)["w"]  # fmt: skip
    assert tensor.activation == spec.activation
    format = spec.activation.format
    stored = [scale.range(format) for scale in tensor.input_scales]
    np.testing.assert_allclose(stored[0], (-1, 2), atol=0.01)
    np.testing.assert_allclose(stored[1], (-3, 4), atol=0.02)
    assert tensor.stored_bytes == 60 + 5 * 4 + 4 * 4


def test_dynamic_ranges_are_not_stored() -> None:
    spec = Quantize(activation=Activation())
    tensor = quantize({"w": jnp.ones((12, 5))}, [("w", spec)], sites=one())["w"]
    assert tensor.activation == Activation()
    assert tensor.input_scales == ()


def test_check_computes_nothing_and_says_what_matched() -> None:
    resolved = check(one(), rule(format=Int(4)))
    assert resolved.leaves == {"w": Quantize(weights=Weights(format=Int(4)))}


AVERAGED = [("w", Quantize(activation=Activation(range=MovingAverage())))]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (rule(granularity=PerGroup(5)),
         r"groups of 5 do not divide the 12 inputs of w \[12, 5\]; sizes that do: "
         "1, 2, 3, 4, 6, 12"),
        ([("v", Quantize())], r"quantize: rule 0 \('v'\) matches no weight"),
        ([("w", None)], "nothing to do"),
        ([("w", Quantize(weights=None, activation=Activation()))],
         "gives w no weights format.*nothing to store.*exclude it"),
        (AVERAGED, r"of w has MovingAverage.*it has: none.*Dynamic\(\)"),
    ],
)  # fmt: skip
def test_rules_that_cannot_apply(rules: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        quantize({"w": jnp.ones((12, 5))}, rules, sites=one())


def test_ranges_of_another_function() -> None:
    ranges = {"w": [(-1, 1), (-1, 1)]}
    with pytest.raises(MismatchError, match="w is in 1 products and `ranges` has 2"):
        quantize({"w": jnp.ones((12, 5))}, AVERAGED, sites=one(), ranges=ranges)
    with pytest.raises(MismatchError, match="it has: v"):
        quantize({"w": jnp.ones((12, 5))}, AVERAGED, sites=one(), ranges={"v": ()})


def test_a_spec_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"rule 0 is Weights.*carries Quantize\("):
        quantize({"w": jnp.ones((12, 5))}, [("w", Weights())], sites=one())


def test_a_leaf_of_integers() -> None:
    table = one(dtype=np.dtype("int32"))
    with pytest.raises(MismatchError, match=r"'w' is int32 \[12, 5\], and only floats"):
        quantize({"w": jnp.ones((12, 5), jnp.int32)}, rule(), sites=table)


def test_a_leaf_that_is_compressed_already() -> None:
    tree = quantize({"w": jnp.ones((12, 5))}, rule(), sites=one())
    with pytest.raises(MismatchError, match="'w' is already a QTensor"):
        quantize(tree, rule(), sites=one())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"v": jnp.ones((12, 5))}, r"sites have 'w', which is not in the tree: v;"),
        ({"params": {"w": jnp.ones((12, 5))}},
         r"params/w; pass the subtree 'params'"),
        ({"w": jnp.ones((5, 12))},
         r"'w' is \[5, 12\] in the tree and \[12, 5\] at its sites"),
        ({"w": jnp.ones((12, 5)).at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf)},
         "'w' holds 2 of 60 numbers that are not finite"),
    ],
)  # fmt: skip
def test_trees_that_do_not_fit(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(tree, rule(), sites=one())


def test_a_subtree_needs_the_sites_below() -> None:
    sites = sites_of(site("params/w", LEAVES["dense"]))
    rules = [(..., Quantize())]
    tree = {"w": jnp.ones((12, 5))}
    with pytest.raises(ValueError, match=r"pass sites=sites.below\('params'\)"):
        quantize(tree, rules, sites=sites)
    out = quantize(tree, rules, sites=sites.below("params"))
    assert isinstance(out["w"], QTensor)


def test_complex_weights_are_left_as_they_are() -> None:
    """A rule for all weights passes over them; one for them alone says why."""
    params = {"w": jnp.ones((4, 4)), "c": jnp.ones((4, 4), jnp.complex64)}

    def model(p: Any, x: jax.Array) -> jax.Array:
        return jnp.real((x @ p["w"]).astype(jnp.complex64) @ p["c"])

    sites = find_sites(model, params, jnp.ones((2, 4)))
    small = quantize(params, [(..., Quantize())], sites=sites)
    assert isinstance(small["w"], QTensor)
    assert small["c"] is params["c"]
    with pytest.raises(MismatchError, match="complex64"):
        quantize(params, [("c", Quantize())], sites=sites)
