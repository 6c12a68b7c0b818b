"""Finding, converting and replacing leaves, and the table of what changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.conversion import (
    convert_leaves,
    describe_changes,
    find_leaves,
    replace_leaves,
    resolve_specs,
)
from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.report import Label
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
    assert NAME in find_leaves("t", ints, [NAME], sites=SITES, dtypes=None)


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
    assert len({len(line) for line in lines[:-1]}) == 1
    assert str(describe_changes(before, before)) == "nothing changed"
    with pytest.raises(MismatchError, match="rules need sites"):
        describe_changes(before, after, RULES)


def test_the_table_counts_zeros_and_labels_what_it_shows():
    """Of 8 rows 1 is zero before, 4 are afterwards: the same bytes, a simulation."""
    before = {"w": jnp.ones((8, 4)).at[0].set(0), "b": jnp.ones(8)}
    after = {"w": before["w"].at[:4].set(0), "b": before["b"]}
    changes = describe_changes(before, after)
    (row,) = changes
    assert (row.zeros_before, row.zeros_after, row.size) == (1 / 8, 1 / 2, 32)
    assert row.error == pytest.approx((3 / 7) ** 0.5)
    assert changes.sparsity == 0.5
    assert changes.label is Label.SIMULATED
    text = str(changes)
    assert "12.5-50%" in text
    assert text.endswith("(simulated); 50.0% zeros")
    assert describe_changes(PARAMS, SMALL).label is Label.SMALLER
    grown = describe_changes(before, {**before, "more": jnp.ones(3)})
    assert grown.label is None
    assert "zeros" not in str(describe_changes({"a": 1}, {"a": 2}))


def test_names_that_come_from_elsewhere_are_checked_alike():
    tree = {"net": {"w": jnp.ones((2, 3))}}

    def find(name, shape=(2, 3), tree=tree):
        shapes = {name: shape}
        return find_leaves("t", tree, [name], source="the masks", shapes=shapes)

    assert find("net/w")["net/w"] is tree["net"]["w"]
    for wrong, message in {
        "v": "t: the masks have 'v', which is not in the tree: net/w$",
        "w": "not in the tree: net/w; pass the subtree 'net'",
        "a/net/w": "give the whole tree, or the masks below 'a'",
    }.items():
        with pytest.raises(MismatchError, match=message):
            find(wrong)
    with pytest.raises(
        MismatchError, match=r"'net/w' is \[2, 3\] .* \[3\] in the masks$"
    ):
        find("net/w", (3,))


def test_none_is_a_leaf_to_replace_and_to_put():
    tree = {"a": None, "b": jnp.ones(2)}
    assert replace_leaves(tree, {"a": 1, "b": None}) == {"a": 1, "b": None}
    assert replace_leaves(tree, {}) == tree


def test_a_rule_passes_over_other_dtypes_but_may_not_take_them_alone():
    params = {"a": jnp.ones((4, 4)), "n": jnp.ones((4, 4), jnp.int32)}
    sites = find_sites(
        lambda p, x: (x @ p["a"], x.astype(jnp.int32) @ p["n"]),
        params,
        jnp.ones((1, 4)),
    )

    def resolved(rules):
        return resolve_specs(rules, sites, int, transform="t", usage="an int")

    found = resolved([(..., 3)])
    assert found.leaves == {"a": 3}
    assert found.rule_of == {"a": 0}
    assert found.skipped == {"n": "it is int32, and only floats can be converted"}
    with pytest.raises(MismatchError, match=r"t: 'n' is int32 \[4, 4\].*before rule 0"):
        resolved([("n", 3), (..., 3)])
    with pytest.raises(TypeError, match=r"spec of rule 1 is 0\.5; a rule carr"):
        resolved([("a", 3), ("n", 0.5)])
