"""Finding, converting and replacing leaves, and the table of what changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.conversion import convert_leaves, describe_changes, find_leaves
from jcompress.errors import MismatchError
from jcompress.quantization import Int, Quantize, Weights, quantize
from jcompress.sites import find_sites
from jcompress.tensors import QTensor

PARAMS = {
    "net": {
        "first": jnp.linspace(-1, 1, 64 * 16).reshape(64, 16),
        "second": jnp.ones((16, 4)),
    },
    "key": jax.random.key(0),
}


def model(params, x):
    return x @ params["net"]["first"] @ params["net"]["second"]


SITES = find_sites(model, PARAMS, jnp.ones((1, 64)))
RULES = [("net/first", Quantize(weights=Weights(format=Int(4))))]
SMALL = quantize(PARAMS, RULES, sites=SITES)
NAME = "net/first"


def test_only_the_named_leaf_is_converted():
    made = convert_leaves(
        "double", PARAMS, {NAME: 2}, lambda _, leaf, by: leaf * by, sites=SITES
    )
    np.testing.assert_array_equal(made["net"]["first"], PARAMS["net"]["first"] * 2)
    assert made["net"]["second"] is PARAMS["net"]["second"]
    assert made["key"] is PARAMS["key"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"other": 1}, r"t: the sites have 'net/first', which is not in the tree: o"),
        (PARAMS["net"], r"for this subtree pass sites=sites\.below\('net'\)"),
        ({"params": PARAMS}, r"pass the subtree 'params'"),
        ({}, "it is empty"),
        (SMALL, r"t: 'net/first' is already a QTensor; .*\('net/first', None\)"),
        ({"net": {"first": jnp.ones(3)}}, r"'net/first' is \[3\] in the tree and \["),
        ({"net": {"first": jnp.ones((64, 16), int)}}, r"'net/first' is int32 \[64, 16"),
    ],
)
def test_a_leaf_that_does_not_fit_raises(tree, message):
    with pytest.raises(MismatchError, match=message):
        find_leaves("t", tree, [NAME], sites=SITES)


def test_some_compressed_leaves_and_dtypes_may_be_let_through():
    found = find_leaves("t", SMALL, [NAME], sites=SITES, accept=(QTensor,))
    assert found == {NAME: SMALL["net"]["first"]}
    ints = {"net": {"first": jnp.ones((64, 16), int)}}
    assert NAME in find_leaves("t", ints, [NAME], sites=SITES, floats=False)


def test_a_traced_leaf_raises_only_where_values_matter():
    def found(params, traced):
        return find_leaves("t", params, [NAME], sites=SITES, traced=traced)[NAME]

    assert jax.eval_shape(lambda p: found(p, None), PARAMS).shape == (64, 16)
    with pytest.raises(ValueError, match=r"traced, and ranks vary; call it outside"):
        jax.eval_shape(lambda p: found(p, "ranks vary"), PARAMS)


def test_the_table_says_what_changed_what_did_not_and_why():
    changes = describe_changes(PARAMS, SMALL, RULES, sites=SITES)
    first, second = changes
    assert (first.name, first.after, first.rule, first.reason) == (NAME, "int4", 0, "")
    assert (first.bytes_before, first.bytes_after) == (4096, 512 + 64)
    dense = np.asarray(PARAMS["net"]["first"], float)
    lost = dense - np.asarray(SMALL["net"]["first"].dense(), float)
    assert first.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(dense))
    assert second.reason == "no rule matches it"
    assert second.error is None
    assert changes["net/second"] is second
    assert changes.skipped == (second,)
    assert (changes.bytes_before, changes.bytes_after) == (4352, 832)


def test_the_table_needs_no_rules_and_fits_80_columns():
    before = {"x" * 90: jnp.ones((3, 5)), "gone": jnp.ones(2), "same": jnp.ones(4)}
    after = {"x" * 90: jnp.ones((3, 4)), "same": jnp.ones(4), "new": jnp.ones(7)}
    changes = describe_changes(before, after)
    assert [row.name for row in changes] == ["gone", "x" * 90, "new"]
    assert changes["gone"].after == "removed"
    assert changes["new"].before == "-"
    assert changes["x" * 90].error is None
    lines = str(changes).splitlines()
    assert max(map(len, lines)) <= 80
    assert len({line.rindex(" ") for line in lines[:-1]}) == 1
    assert str(describe_changes(before, before)) == "nothing changed"
    with pytest.raises(MismatchError, match="rules need sites"):
        describe_changes(before, after, RULES)
