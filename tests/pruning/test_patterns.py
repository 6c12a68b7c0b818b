"""What patterns and their specs refuse, and what the refusal says."""

import jax.numpy as jnp
import numpy as np
import pytest
from mask_oracle import LEAVES, sites_of

from jcompress.allocation import Ranking
from jcompress.errors import MismatchError
from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Heads,
    Layers,
    Prune,
    Rows,
    TransposableNM,
    Unstructured,
    make_masks,
)
from jcompress.pruning.scores import score_by_magnitude
from jcompress.pruning.spec import _say_once


def build(pattern, leaf, ranking=Ranking.UNIFORM):
    spec = Prune(
        pattern=pattern,
        sparsity=None if isinstance(pattern, NM) else 0.5,
        ranking=ranking,
    )
    scores = {"deep/w": jnp.ones(leaf[0])}
    scores = {"deep": {"w": scores["deep/w"]}}
    return make_masks(scores, [(..., spec)], sites=sites_of(**{"deep/w": leaf}))


def test_nm_that_does_not_divide_names_what_would():
    with pytest.raises(
        MismatchError,
        match=r"make_masks: 'deep/w' of shape \(7, 5\) has 7 inputs \(axes \(0,\)\), "
        r"which the 4 of NM\(2, 4\) does not divide; 1, 7 would",
    ):
        build(NM(2, 4), LEAVES["odd"])


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((4, 2), r"6 outputs \(axes \(1,\)\).*the 4 of.*1, 2, 3, 6 would"),
        ((2, 3), r"8 inputs \(axes \(0,\)\).*the 3 of.*1, 2, 4, 8 would"),
        ((6, 8), "single Block"),
    ],
)
def test_block_that_does_not_tile(shape, text):
    with pytest.raises(MismatchError, match=text):
        build(Block(shape), LEAVES["dense"])


def test_long_lists_of_divisors_are_cut():
    leaf = ((5040, 2), (), (1,), (0,))
    with pytest.raises(MismatchError, match=r"12, \.\.\., 5040 would"):
        build(NM(1, 11), leaf)


def test_single_channel():
    with pytest.raises(MismatchError, match=r"'deep/w' .*has 1 output channel"):
        build(Channels(), LEAVES["vector"])


def test_units_that_a_leaf_does_not_have():
    with pytest.raises(
        MismatchError, match=r"axis 1 of Rows\(axis=1\) is no input axis"
    ):
        build(Rows(axis=1), LEAVES["dense"])
    with pytest.raises(
        MismatchError, match=r"'deep/w' .*has 1 input unit \(input axes"
    ):
        build(Rows(), ((1, 8), (), (1,), (0,)))
    with pytest.raises(
        MismatchError, match=r"6 outputs .*the 4 of Heads\(4\) does not"
    ):
        build(Heads(4), LEAVES["dense"])
    with pytest.raises(MismatchError, match=r"8 inputs .*Heads\(3, inputs=True\) does"):
        build(Heads(3, inputs=True), LEAVES["dense"])
    with pytest.raises(MismatchError, match=r"has 1 stacked layer \(stacked axes \(\)"):
        build(Layers(), LEAVES["dense"])
    with pytest.raises(MismatchError, match=r"6 outputs .*TransposableNM\(2, 4\) does"):
        build(TransposableNM(2, 4), LEAVES["dense"])


def test_numbers_of_units():
    with pytest.raises(ValueError, match="axis is an integer from 0 on, not -1"):
        Rows(axis=-1)
    with pytest.raises(ValueError, match="number is an integer from 2 on, not 1"):
        Heads(1)
    with pytest.raises(ValueError, match="1 <= n < m"):
        TransposableNM(4, 4)
    with pytest.raises(ValueError, match="an m of at most 8, such as"):
        TransposableNM(8, 16)
    assert repr((Heads(2), Heads(2, inputs=True), TransposableNM(1, 4))) == (
        "(Heads(2), Heads(2, inputs=True), TransposableNM(1, 4))"
    )


def test_heads_of_a_merged_axis_are_those_of_two_axes():
    weights = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    two = {"w": jnp.asarray(weights)}
    one = {"w": jnp.asarray(weights.reshape(6, 12))}
    rules = [(..., Prune(pattern=Heads(4), sparsity=0.5))]
    apart = make_masks(
        score_by_magnitude(two), rules, sites=sites_of(w=((6, 4, 3), (), (1, 2), (0,)))
    )
    merged = make_masks(
        score_by_magnitude(one), rules, sites=sites_of(w=((6, 12), (), (1,), (0,)))
    )
    np.testing.assert_array_equal(
        np.asarray(apart["w"]).reshape(6, 12), np.asarray(merged["w"])
    )
    heads = np.asarray(apart["w"]).all(axis=(0, 2))
    assert heads.sum() == 2
    assert (np.asarray(apart["w"]).any(axis=(0, 2)) == heads).all()


def test_single_entry():
    with pytest.raises(MismatchError, match="single entry"):
        build(Unstructured(), ((1, 1), (), (1,), (0,)))


@pytest.mark.parametrize(("n", "m"), [(4, 4), (0, 4), (5, 4), (2.0, 4), (True, 4)])
def test_nm_numbers(n, m):
    with pytest.raises(ValueError, match="1 <= n < m") as caught:
        NM(n, m)
    assert not isinstance(caught.value, MismatchError)


@pytest.mark.parametrize("shape", [(4,), (4, 0), [4, 4], 4, (4, 4.0), (2, 2, 2)])
def test_block_numbers(shape):
    with pytest.raises(ValueError, match="positive integers") as caught:
        Block(shape)
    assert not isinstance(caught.value, MismatchError)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), 50])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"in \[0, 1\)") as caught:
        Prune(sparsity=sparsity)
    assert not isinstance(caught.value, MismatchError)


@pytest.mark.parametrize("sparsity", ["half", True, (0.5,)])
def test_sparsity_of_no_known_kind(sparsity):
    with pytest.raises(TypeError, match="use a number"):
        Prune(sparsity=sparsity)


def test_nm_with_another_sparsity():
    with pytest.raises(ValueError, match=r"NM\(2, 4\) removes 0.5, but .* 0.8"):
        Prune(pattern=NM(2, 4), sparsity=0.8)
    assert Prune(pattern=NM(2, 3), sparsity=1 / 3).sparsity == pytest.approx(1 / 3)


def test_nm_with_a_global_ranking():
    with pytest.raises(ValueError, match="leave the ranking out"):
        Prune(pattern=NM(2, 4), ranking=Ranking.GLOBAL)


def test_fields_of_the_wrong_type():
    with pytest.raises(TypeError, match="the pattern is '2:4'"):
        Prune(pattern="2:4")
    with pytest.raises(TypeError, match="the ranking is 'global'"):
        Prune(ranking="global")


def test_specs_are_values():
    assert Prune(pattern=NM(2, 4)) == Prune(pattern=NM(2, 4))
    assert hash(Prune(sparsity=0.5)) == hash(Prune(sparsity=0.5))
    assert Block((4, 4)) != Block((4, 2))
    assert repr((NM(2, 4), Block((4, 2)), Ranking.UNIFORM)) == (
        "(NM(2, 4), Block((4, 2)), Ranking.UNIFORM)"
    )


def test_blocks_may_leave_a_leaf_empty_only_when_global():
    leaf = ((8, 2), (), (1,), (0,))
    scores = {"a": jnp.ones((8, 2)), "b": jnp.full((8, 2), 0.1)}
    spec = Prune(pattern=Channels(), sparsity=0.5, ranking=Ranking.GLOBAL)
    masks = make_masks(scores, [(..., spec)], sites=sites_of(a=leaf, b=leaf))
    assert masks["a"].all()
    assert not masks["b"].any()
    spec = Prune(pattern=Channels(), sparsity=0.99)
    masks = make_masks(scores, [(..., spec)], sites=sites_of(a=leaf, b=leaf))
    assert [int(np.sum(masks[name])) for name in "ab"] == [8, 8]


def test_a_rule_without_a_pattern_says_once_that_nothing_runs_it_faster(caplog):
    _say_once.cache_clear()
    Prune(pattern=Unstructured(), sparsity=0.5)
    assert not caplog.records
    assert Prune(sparsity=0.5) == Prune(sparsity=0.25 * 2)
    (record,) = caplog.records
    assert record.name == "jcompress"
    assert "nothing gets smaller or faster. What would: to_sparse" in record.message
