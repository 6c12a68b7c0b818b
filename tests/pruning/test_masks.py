"""Masks against loops, with ties; exact counts; tracing; sharding; bad input."""

import functools
import tracemalloc
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mask_oracle import (
    LEAVES,
    assert_same_mask,
    fits,
    oracle,
    oracle_global,
    sites_of,
    weights_of,
)

from jcompress.allocation import Ranking
from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Heads,
    Layers,
    Pattern,
    Prune,
    Rows,
    TransposableNM,
    Unstructured,
    apply_masks,
    make_masks,
    prune,
    summarize,
)
from jcompress.pruning.ranking import keep_highest
from jcompress.pruning.schedules import cubic_schedule
from jcompress.pruning.scores import score_by_magnitude
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes

pytestmark = pytest.mark.once

PATTERNS = [
    Unstructured(),
    NM(2, 4),
    NM(3, 4),
    Block((2, 4)),
    Block((1, 2)),
    Channels(),
]
UNITS = [
    Rows(),
    Rows(axis=2),
    Heads(2),
    Heads(2, inputs=True),
    Layers(),
    TransposableNM(2, 4),
    TransposableNM(1, 2),
]
KINDS = ["distinct", "ties", "equal", "zeros"]
# Those with a window, with stacks, with two axes of inputs, and with all of it turned.
VARIED = ("conv", "layers", "attention_out", "square_experts")
FITTING = [
    (n, p)
    for n, leaf in LEAVES.items()
    for p in (PATTERNS + UNITS if n in VARIED else PATTERNS)
    if fits(p, leaf)
]


def masks_of(weights, spec, leaves, **options):
    params = {path: jnp.asarray(w, jnp.float32) for path, w in weights.items()}
    scores = score_by_magnitude(params)
    return make_masks(scores, [(..., spec)], sites=sites_of(**leaves), **options)


@pytest.mark.parametrize(("name", "pattern"), FITTING)
def test_masks_equal_the_oracle(name, pattern):
    leaf = LEAVES[name]

    @jax.jit
    def traced(weights, sparsity):
        spec = Prune(pattern=pattern)
        return masks_of({"w": weights}, spec, {"w": leaf}, sparsity=sparsity)["w"]

    for kind in KINDS:
        weights = weights_of(leaf[0], kind)
        for sparsity in (0.0, 0.2, 0.5, 0.9, 1.0):
            mask = traced(weights.astype(np.float32), jnp.array(sparsity, jnp.float32))
            wanted = oracle(weights, pattern, leaf, sparsity)
            assert_same_mask(mask, wanted, weights, pattern, leaf, kind)
            assert mask.dtype == jnp.bool_
    assert traced._cache_size() == 1


@pytest.mark.parametrize(
    ("name", "pattern"), [case for case in FITTING if case[0] in ("conv", "layers")]
)
def test_eager_masks_of_a_number_equal_the_oracle(name, pattern):
    leaf = LEAVES[name]
    weights = weights_of(leaf[0], "ties")
    fixed = pattern.sparsity if isinstance(pattern, NM) else 0.4
    eager = masks_of(
        {"w": weights}, Prune(pattern=pattern, sparsity=fixed), {"w": leaf}
    )
    wanted = oracle(weights, pattern, leaf, fixed)
    assert_same_mask(eager["w"], wanted, weights, pattern, leaf)


@pytest.mark.parametrize(
    "pattern", [Unstructured(), Block((2, 4)), Channels(), Rows(), Heads(2)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_global_masks_equal_the_oracle(pattern, kind):
    leaves = {name: LEAVES[name] for name in ("conv", "dense", "layers")}
    weights = {name: weights_of(leaf[0], kind) for name, leaf in leaves.items()}
    spec = Prune(pattern=pattern, ranking=Ranking.GLOBAL)

    @jax.jit
    def traced(sparsity):
        return masks_of(weights, spec, leaves, sparsity=sparsity)

    for sparsity in (0.1, 0.5, 0.9):
        masks = traced(jnp.array(sparsity, jnp.float32))
        wanted = oracle_global(weights, pattern, leaves, sparsity)
        for path in leaves:
            np.testing.assert_array_equal(masks[path], wanted[path])


@pytest.mark.parametrize("pattern", [Unstructured(), Block((2, 4)), Channels()])
@pytest.mark.parametrize("ranking", list(Ranking))
@pytest.mark.parametrize("kind", [*KINDS, "normal"])
def test_concrete_and_traced_scores_give_the_same_masks(pattern, ranking, kind):
    names = ("conv", "dense", "layers")
    leaves = {name: LEAVES[name] for name in names} | {"again": LEAVES["dense"]}
    rng = np.random.default_rng(0)
    scores = {
        name: rng.normal(size=leaf[0])
        if kind == "normal"
        else weights_of(leaf[0], kind)
        for name, leaf in leaves.items()
    }
    scores = {name: jnp.asarray(value, jnp.float32) for name, value in scores.items()}
    scores["dense"] = scores["dense"].astype(jnp.bfloat16).astype(jnp.float32)
    sites = sites_of(**leaves)
    for sparsity in (0.1, 0.5, 0.9):
        rules = [(..., Prune(pattern=pattern, sparsity=sparsity, ranking=ranking))]
        make = functools.partial(make_masks, rules=rules, sites=sites)
        chosen, traced = make(scores), jax.jit(make)(scores)
        for name in leaves:
            np.testing.assert_array_equal(chosen[name], traced[name])


@pytest.mark.parametrize("size", [2, 3, 16, 17, 101, 1000])
@pytest.mark.parametrize("sparsity", [0.1, 0.33, 0.5, 0.75, 0.99])
def test_counts_are_exact_when_all_are_equal(size, sparsity):
    wanted = min(round(sparsity * size), size - 1)
    if wanted == 0:
        return
    leaf = ((size, 1), (), (1,), (0,))
    mask = masks_of({"w": np.ones((size, 1))}, Prune(sparsity=sparsity), {"w": leaf})[
        "w"
    ]
    np.testing.assert_array_equal(mask[:, 0], np.arange(size) >= wanted)


def test_short_and_long_rows_rank_alike():
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 3, (16, 40)).astype(np.float32)
    weights[3, 5] = np.inf
    short = Prune(pattern=Channels(), sparsity=0.5)
    leaf = ((16, 40), (0,), (1,), ())
    long = masks_of({"w": weights}, short, {"w": leaf})["w"]
    for start in range(0, 40, 10):
        part = weights[:, start : start + 10]
        mask = masks_of({"w": part}, short, {"w": ((16, 10), (0,), (1,), ())})["w"]
        for row, values in zip(mask, part, strict=True):
            order = np.argsort(values, kind="stable")
            np.testing.assert_array_equal(row[order], np.arange(10) >= 5)
    for row, values in zip(long, weights, strict=True):
        order = np.argsort(values, kind="stable")
        np.testing.assert_array_equal(row[order], np.arange(40) >= 20)


def test_nm_is_approached_from_dense():
    leaf = LEAVES["dense"]
    weights = weights_of(leaf[0], "distinct")
    spec = Prune(
        pattern=NM(1, 4), sparsity=cubic_schedule(final_sparsity=0.9, steps=10)
    )
    kept = []
    for step in range(12):
        mask = masks_of({"w": weights}, spec, {"w": leaf}, step=step)["w"]
        groups = np.asarray(mask).T.reshape(-1, 4).sum(axis=1)
        assert len(set(groups)) == 1
        kept.append(int(groups[0]))
    assert kept[0] == 4
    assert kept[-1] == 1
    assert kept == sorted(kept, reverse=True)
    assert set(kept) == {4, 3, 2, 1}


def test_nm_needs_no_sparsity():
    leaf = LEAVES["dense"]
    weights = weights_of(leaf[0], "ties")
    mask = masks_of({"w": weights}, Prune(pattern=NM(2, 4)), {"w": leaf})["w"]
    np.testing.assert_array_equal(mask, oracle(weights, NM(2, 4), leaf, 0.5))


def test_global_ranking_compares_leaves_by_the_mean_of_a_group():
    # The wide leaf's channels have the larger sums and the smaller means.
    leaves = {"wide": ((100, 4), (), (1,), (0,)), "slim": ((2, 4), (), (1,), (0,))}
    weights = {"wide": np.full((100, 4), 0.1), "slim": np.full((2, 4), 1.0)}
    spec = Prune(pattern=Channels(), sparsity=0.5, ranking=Ranking.GLOBAL)
    masks = masks_of(weights, spec, leaves)
    assert not masks["wide"].any()
    assert masks["slim"].all()


def test_masks_stand_only_at_pruned_leaves():
    params = {"a": {"w": jnp.ones((8, 6)), "b": jnp.ones(6)}, "n": jnp.arange(3)}
    sites = sites_of(**{"a/w": LEAVES["dense"]})
    rules = [("a/w", Prune(sparsity=0.5))]
    masks = make_masks(score_by_magnitude(params), rules, sites=sites)
    assert masks["a"]["b"] is None
    assert masks["n"] is None
    pruned = apply_masks(params, masks)
    assert int(jnp.sum(pruned["a"]["w"])) == 24
    assert pruned["a"]["b"] is params["a"]["b"]
    assert pruned["n"] is params["n"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_apply_keeps_the_dtype_and_wipes_nan(dtype):
    params = {"w": jnp.array([jnp.nan, -2.0, 3.0], dtype)}
    pruned = apply_masks(params, {"w": jnp.array([False, True, False])})
    assert pruned["w"].dtype == dtype
    np.testing.assert_array_equal(pruned["w"], jnp.array([0.0, -2.0, 0.0], dtype))


@pytest.mark.parametrize("axis_type", list(jax.sharding.AxisType)[:2])
@pytest.mark.parametrize(
    "pattern", [Unstructured(), NM(2, 4), Block((2, 4)), Channels()]
)
@pytest.mark.parametrize("ranking", [Ranking.UNIFORM, Ranking.GLOBAL])
def test_masks_are_sharded_like_the_scores(axis_type, pattern, ranking):
    if ranking is Ranking.GLOBAL and pattern not in (Unstructured(), Channels()):
        return
    mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,))
    spec = jax.sharding.PartitionSpec("x", None)
    sharding = jax.sharding.NamedSharding(mesh, spec)
    weights = weights_of((8, 6), "ties")
    params = {"w": jax.device_put(jnp.asarray(weights, jnp.float32), sharding)}
    rule = Prune(pattern=pattern, sparsity=0.5, ranking=ranking)
    masks = make_masks(
        score_by_magnitude(params), [(..., rule)], sites=sites_of(w=LEAVES["dense"])
    )
    assert masks["w"].sharding.is_equivalent_to(sharding, 2)
    wanted = oracle(weights, pattern, LEAVES["dense"], 0.5)
    np.testing.assert_array_equal(masks["w"], wanted)


def test_leaves_that_are_used_alike_compete():
    """Of two dense leaves of one rule the weaker loses all; the other axes differ."""
    leaves = {"a": LEAVES["dense"], "b": LEAVES["dense"], "t": LEAVES["transposed"]}
    weights = {name: weights_of(leaf[0], "distinct") for name, leaf in leaves.items()}
    weights["a"] = weights["a"] / 1024
    spec = Prune(pattern=Channels(), sparsity=0.5, ranking=Ranking.ISOMORPHIC)
    masks = masks_of(weights, spec, leaves)
    assert not masks["a"].any()
    assert masks["b"].all()
    assert int(masks["t"].sum()) == 24


AWKWARD = [0.0, -0.0, 1e-40, -3e-40, 1.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2e-38]


@pytest.mark.parametrize("size", [2, 5, 16, 17, 300])
@pytest.mark.parametrize("count", [1, 7])
def test_ranking_on_the_host_is_that_of_the_compiled_program(size, count):
    """With many ties, of zeros of both signs, subnormal numbers, infinities and NaN."""
    rng = np.random.default_rng(size)
    rows = rng.choice(np.float32(AWKWARD), (count, size))
    for removed in {0, 1, size // 2, size - 1}:
        host = keep_highest(rows, removed)
        assert isinstance(host, np.ndarray)
        np.testing.assert_array_equal(host, keep_highest(jnp.asarray(rows), removed))
        assert (host.sum(1) == size - removed).all()


@pytest.mark.parametrize(("name", "pattern"), FITTING)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_scores_on_the_host_are_those_of_the_compiled_program(
    name, pattern, dtype
):
    """To the last bit, so that ties are the same."""
    shape, stack, outputs, inputs = LEAVES[name]
    axes = Axes(stack, outputs, inputs)
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype)
    scores = scores.at[(0,) * len(shape)].set(1e-39)
    host = pattern.rows(np.asarray(scores), axes)
    compiled = jax.jit(lambda scores: pattern.rows(scores, axes))(scores)
    assert isinstance(host, np.ndarray)
    np.testing.assert_array_equal(host, compiled)
    assert host.shape == pattern.row_shape(shape, axes)
    assert host.shape == Pattern.row_shape(pattern, shape, axes)


def test_concrete_leaves_compile_nothing(caplog):
    leaves = {
        f"w{n}": ((8 * n, 4), (), (1,), (0,)) if n % 2 else ((4, 8 * n), (), (0,), (1,))
        for n in range(1, 9)
    }
    sites = sites_of(**leaves)
    params = {n: jnp.asarray(weights_of(l[0], "ties")) for n, l in leaves.items()}
    params = {n: p.astype(jnp.float32) for n, p in params.items()}
    jnp.zeros((), jnp.int32)  # the step, of one shape for all
    with jax.log_compiles():
        for pattern in (Unstructured(), NM(2, 4), Block((2, 4)), Channels()):
            sparsity = None if isinstance(pattern, NM) else 0.5
            rules = [(..., Prune(pattern=pattern, sparsity=sparsity))]
            masks = make_masks(score_by_magnitude(params), rules, sites=sites)
            prune(optax.identity(), rules, sites=sites).init(params)
            summarize(apply_masks(params, masks), masks, rules, sites=sites)
    assert not [r for r in caplog.records if "ompiling" in r.message]


@pytest.mark.parametrize(
    ("ranking", "copies"), [(Ranking.UNIFORM, 1.0), (Ranking.GLOBAL, 2.0)]
)
def test_ranking_needs_little_memory(ranking, copies):
    """Of eight leaves one at a time is copied; ranked together, all of them once."""
    leaves = {f"w{n}": ((256, 512), (), (1,), (0,)) for n in range(8)}
    rng = np.random.default_rng(0)
    params = {n: jnp.asarray(rng.normal(size=(256, 512)), jnp.float32) for n in leaves}
    spec = Prune(pattern=Unstructured(), sparsity=0.5, ranking=ranking)
    optimizer = prune(optax.identity(), [(..., spec)], sites=sites_of(**leaves))
    optimizer.init(params)
    tracemalloc.start()
    optimizer.init(params)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < copies * 8 * 256 * 512 * 4


class TestBadInput:
    sites = sites_of(w=LEAVES["dense"])
    rules = ((..., Prune(sparsity=0.5)),)

    @property
    def scores(self):
        return {"w": jnp.ones((8, 6))}

    def test_missing_leaf_hints_at_the_subtree(self):
        sites = sites_of(**{"params/w": LEAVES["dense"]})
        with pytest.raises(
            MismatchError, match=r"have 'params/w', which.*below\('params'\)"
        ):
            make_masks(self.scores, self.rules, sites=sites)

    def test_missing_leaf_hints_at_the_whole(self):
        with pytest.raises(
            MismatchError, match=r"'w', which is not.*pass the subtree 'params'"
        ):
            make_masks({"params": self.scores}, self.rules, sites=self.sites)

    def test_other_shape(self):
        with pytest.raises(MismatchError, match=r"'w' is \[6, 8\] in .* \[8, 6\] at"):
            make_masks({"w": jnp.ones((6, 8))}, self.rules, sites=self.sites)

    def test_nan_score(self):
        scores = {"w": jnp.full((8, 6), jnp.nan)}
        with pytest.raises(MismatchError, match="'w' hold a NaN"):
            make_masks(scores, self.rules, sites=self.sites)

    def test_integer_scores(self):
        with pytest.raises(MismatchError, match=r"'w' is int32 .* only floats"):
            make_masks({"w": jnp.ones((8, 6), jnp.int32)}, self.rules, sites=self.sites)

    def test_schedule_without_step(self):
        rules = [(..., Prune(sparsity=cubic_schedule(final_sparsity=0.5, steps=3)))]
        with pytest.raises(MismatchError, match="say at which step="):
            make_masks(self.scores, rules, sites=self.sites)

    def test_no_sparsity(self):
        with pytest.raises(MismatchError, match="rule 0 has no sparsity"):
            make_masks(self.scores, [(..., Prune())], sites=self.sites)

    def test_sparsity_that_rounds_to_nothing(self):
        rules = [(..., Prune(pattern=Channels(), sparsity=0.05))]
        with pytest.raises(
            MismatchError, match=r"removes nothing.*6 groups.*above 0.0833"
        ):
            make_masks(self.scores, rules, sites=self.sites)

    def test_sparsity_of_zero_is_taken_at_its_word(self):
        rules = [(..., Prune(sparsity=0.0))]
        masks = make_masks(self.scores, rules, sites=self.sites)
        assert masks["w"].all()

    def test_rule_without_prune(self):
        with pytest.raises(TypeError, match=r"the spec of rule 0 is 0\.5"):
            make_masks(self.scores, [(..., 0.5)], sites=self.sites)

    def test_given_sparsity_at_odds_with_nm(self):
        rules = [(..., Prune(pattern=NM(2, 4)))]
        with pytest.raises(MismatchError, match=r"rule 0: NM\(2, 4\) removes 0.5"):
            make_masks(self.scores, rules, sites=self.sites, sparsity=0.8)

    @pytest.mark.parametrize(
        "array", [jnp.array([0.5]), jnp.array(1)], ids=["shape", "dtype"]
    )
    def test_array_that_is_no_float_scalar(self, array):
        with pytest.raises(ValueError, match=r"rule 0: .* must be a float scalar"):
            make_masks(self.scores, [(..., Prune())], sites=self.sites, sparsity=array)

    def test_mask_without_leaf(self):
        with pytest.raises(
            MismatchError, match="masks have 'v', which is not in the tree: w"
        ):
            apply_masks(self.scores, {"w": None, "v": jnp.ones(3, bool)})

    def test_no_mask_at_all(self):
        with pytest.raises(MismatchError, match="holds no mask"):
            apply_masks(self.scores, {"w": None})

    def test_mask_of_another_shape(self):
        with pytest.raises(MismatchError, match=r"'w' is \[8, 6\] in .* \[6, 8\] in"):
            apply_masks(self.scores, {"w": jnp.ones((6, 8), bool)})


class TestCompressedLeaves:
    params = MappingProxyType(
        {
            "w": QTensor(
                values=np.ones((6, 8), np.int8),
                scales=np.ones((6, 1), np.float32),
                format=Int(8),
                shape=(8, 6),
                dtype=np.dtype("float32"),
                output_axes=(1,),
                input_axes=(0,),
            ),
            "v": np.ones((8, 6), np.float32),
        }
    )
    sites = sites_of(w=LEAVES["dense"], v=LEAVES["dense"])

    def test_left_alone(self):
        params = dict(self.params)
        rules = [("v", Prune(sparsity=0.5))]
        masks = make_masks(score_by_magnitude(params), rules, sites=self.sites)
        assert masks["w"] is None
        pruned = apply_masks(params, masks)
        assert pruned["w"] is params["w"]
        assert np.count_nonzero(pruned["v"]) == 24

    def test_refused(self):
        params = dict(self.params)
        rules = [("w", Prune(sparsity=0.5))]
        with pytest.raises(
            MismatchError, match=r"'w' is already a QTensor; prune before converting"
        ):
            make_masks(params, rules, sites=self.sites)
        with pytest.raises(MismatchError, match="prune: 'w' is already a QTensor"):
            prune(optax.sgd(0.1), rules, sites=self.sites).init(params)
        with pytest.raises(MismatchError, match="mask before converting"):
            apply_masks(params, {"w": np.ones((8, 6), bool)})
