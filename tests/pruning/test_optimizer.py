"""The optax transformation: one table of promises, and what it composes with."""

import functools
import itertools

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from mask_oracle import LEAVES, oracle, oracle_global, sites_of, weights_of

from jcompress.allocation import Ranking
from jcompress.errors import MismatchError
from jcompress.pruning import (
    NM,
    Block,
    Channels,
    Prune,
    PruneState,
    Unstructured,
    apply_masks,
    prune,
    summarize,
    to_sparse,
)
from jcompress.pruning.schedules import cubic_schedule
from jcompress.sites import find_sites

TREE = {"conv": LEAVES["conv"], "dense": LEAVES["dense"]}
SITES = sites_of(**TREE)
STEPS = 4


@pytest.fixture(autouse=True)
def _optax_promotes_integers():
    # optax.adam raises its decay to an integer power.
    with jax.numpy_dtype_promotion("standard"):
        yield


def params_of(kind="distinct", dtype=jnp.float32):
    tree = {path: weights_of(leaf[0], kind) for path, leaf in TREE.items()}
    tree["bias"] = np.ones(5)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def grads_of(params, seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    return jax.tree.map(
        lambda p: jax.random.normal(next(keys), p.shape, p.dtype), params
    )


def train(optimizer, params, steps, update=None):
    """The parameters and the state after every step."""
    update = update or jax.jit(optimizer.update)
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = update(grads_of(params, step), state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


def inner():
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1)
    )


RANKINGS = [Ranking.UNIFORM, Ranking.GLOBAL]
SPECS = [
    pytest.param(
        pattern, ranking, scheduled, id=f"{pattern}-{ranking.value}-{scheduled}"
    )
    for pattern, ranking, scheduled in itertools.product(
        [Unstructured(), NM(2, 4), Block((2, 4)), Channels()], RANKINGS, [False, True]
    )
    if not (isinstance(pattern, NM) and ranking is Ranking.GLOBAL)
]


@functools.cache
def built(pattern, ranking, scheduled):
    """The optimizer, and its jitted update."""
    sparsity = 0.5
    if scheduled:
        sparsity = cubic_schedule(final_sparsity=0.5, steps=STEPS - 1)
    spec = Prune(pattern=pattern, ranking=ranking, sparsity=sparsity)
    optimizer = prune(inner(), [(..., spec)], sites=SITES)
    return optimizer, jax.jit(optimizer.update)


@functools.cache
def trained(*combination):
    optimizer, update = built(*combination)
    return list(train(optimizer, params_of(), STEPS, update))


@pytest.mark.parametrize(("pattern", "ranking", "scheduled"), SPECS)
class TestEveryCombination:
    def test_abstract_init(self, pattern, ranking, scheduled):
        optimizer, _ = built(pattern, ranking, scheduled)
        params = params_of()
        abstract = jax.eval_shape(optimizer.init, params)
        state = optimizer.init(params)
        assert isinstance(state, PruneState)
        assert jax.tree.structure(abstract) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert bool(jnp.all(state.masks["dense"])) is scheduled

    def test_zeros_are_exact_and_follow_the_oracle(self, pattern, ranking, scheduled):
        steps = trained(pattern, ranking, scheduled)
        # The last choice saw the parameters before the last update.
        seen = steps[-2][0] if scheduled else params_of()
        weights = {path: np.asarray(seen[path]) for path in TREE}
        if ranking is Ranking.GLOBAL:
            wanted = oracle_global(weights, pattern, TREE, 0.5)
        else:
            wanted = {p: oracle(weights[p], pattern, TREE[p], 0.5) for p in TREE}
        final, state = steps[-1]
        for path in TREE:
            np.testing.assert_array_equal(state.masks[path], wanted[path])
            np.testing.assert_array_equal(np.asarray(final[path]) != 0, wanted[path])
        assert state.masks["bias"] is None
        assert np.all(final["bias"] != params_of()["bias"])
        for (_, early), (_, late) in itertools.pairwise(steps):
            for path in TREE:
                assert not np.any(~early.masks[path] & late.masks[path])

    def test_jit_equals_eager_without_retracing(self, pattern, ranking, scheduled):
        optimizer, update = built(pattern, ranking, scheduled)
        fast = trained(pattern, ranking, scheduled)
        assert update._cache_size() == 1
        slow = train(optimizer, params_of(), 2, optimizer.update)
        for (p, s), (q, t) in zip(fast, slow, strict=False):
            for path in TREE:
                np.testing.assert_array_equal(s.masks[path], t.masks[path])
                np.testing.assert_allclose(p[path], q[path], rtol=1e-5, atol=1e-6)

    def test_sharding_is_kept(self, pattern, ranking, scheduled):
        if not scheduled:
            return  # the choice in init is one of make_masks, which has its own test
        spec = Prune(
            pattern=pattern,
            ranking=ranking,
            sparsity=cubic_schedule(final_sparsity=0.5, steps=1),
        )
        optimizer = prune(optax.sgd(0.5), [(..., spec)], sites=SITES)
        axes = {"conv": (None, None, None, "x"), "dense": ("x", None), "bias": ()}
        for axis_type in list(jax.sharding.AxisType)[:2]:
            mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,))
            shardings = {
                path: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*a))
                for path, a in axes.items()
            }
            params = jax.device_put(params_of(), shardings)
            grads = jax.device_put(jax.tree.map(jnp.sign, params_of()), shardings)
            state = optimizer.init(params)
            update = jax.jit(optimizer.update)
            for _ in range(2):
                updates, state = update(grads, state, params)
                params = optax.apply_updates(params, updates)
                for path in TREE:
                    mask = state.masks[path]
                    assert mask.sharding.is_equivalent_to(shardings[path], mask.ndim)
            dense = params_of()
            # The masks were chosen after the first of two equal steps.
            once = {path: dense[path] - 0.5 * jnp.sign(dense[path]) for path in TREE}
            if ranking is Ranking.GLOBAL:
                wanted = oracle_global(once, pattern, TREE, 0.5)
            else:
                wanted = {p: oracle(once[p], pattern, TREE[p], 0.5) for p in TREE}
            for path in TREE:
                end = once[path] - 0.5 * jnp.sign(dense[path])
                np.testing.assert_array_equal(
                    params[path], np.where(wanted[path], end, 0)
                )

    def test_state_survives_serialization(self, pattern, ranking, scheduled):
        optimizer, update = built(pattern, ranking, scheduled)
        whole = trained(pattern, ranking, scheduled)
        params, state = whole[1]
        stored = flax.serialization.to_bytes(state)
        blank = optimizer.init(params_of("ties"))
        state = flax.serialization.from_bytes(blank, stored)
        assert jax.tree.structure(state) == jax.tree.structure(blank)
        for step in range(2, STEPS):
            updates, state = update(grads_of(params, step), state, params)
            params = optax.apply_updates(params, updates)
        for path in TREE:
            np.testing.assert_array_equal(params[path], whole[-1][0][path])


def half(inner_optimizer, **options):
    return prune(
        inner_optimizer, [(..., Prune())], sites=SITES, **{"sparsity": 0.5} | options
    )


def densities(params):
    return [float(jnp.mean(params[path] != 0)) for path in TREE]


def test_masks_change_only_every_so_many_steps():
    schedule = cubic_schedule(final_sparsity=0.8, steps=6)
    optimizer = half(optax.sgd(0.1), sparsity=schedule, every=3)
    counts = [
        int(jnp.sum(~state.masks["dense"]))
        for _, state in train(optimizer, params_of(), 9)
    ]
    wanted = [round(float(schedule(t)) * 48) for t in (0, 0, 0, 3, 3, 3, 6, 6, 6)]
    assert counts == wanted


def test_unscheduled_steps_do_not_sort():
    params = params_of()
    static = half(optax.sgd(0.1))
    state = static.init(params)
    text = str(jax.make_jaxpr(static.update)(params, state, params))
    assert "sort" not in text
    rising = half(optax.sgd(0.1), sparsity=cubic_schedule(final_sparsity=0.5, steps=9))
    jaxpr = jax.make_jaxpr(rising.update)(params, rising.init(params), params)
    top = {equation.primitive.name for equation in jaxpr.jaxpr.eqns}
    assert "cond" in top
    assert "sort" not in top


def test_a_falling_schedule_brings_nothing_back():
    optimizer = half(optax.adam(0.1), sparsity=lambda step: 0.5 - 0.1 * step)
    steps = list(train(optimizer, params_of(), 4))
    for params, _ in steps:
        assert densities(params) == [0.5, 0.5]


def test_live_zeros_do_not_free_removed_weights():
    # All weights are 0 at the second choice, so only the first choice can decide.
    schedule = lambda step: jnp.where(step == 0, 0.25, 0.5)  # noqa: E731
    optimizer = half(optax.sgd(1.0), sparsity=schedule)
    params = {
        path: jnp.ones(leaf[0]).at[..., -1].set(0.5) for path, leaf in TREE.items()
    }
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    first = state.masks
    params = optax.apply_updates(params, updates)
    assert not any(jnp.any(leaf) for leaf in params.values())
    _, state = optimizer.update(params, state, params)
    for path in TREE:
        assert not np.any(~first[path] & state.masks[path])
        assert float(jnp.mean(state.masks[path])) == 0.5


def test_no_drift_through_momentum_and_decay():
    optimizer = half(optax.adamw(0.1, weight_decay=0.5))
    for params, state in train(optimizer, params_of(), 20):
        for path in TREE:
            np.testing.assert_array_equal(
                params[path], apply_masks(params, state.masks)[path]
            )


def test_the_inner_optimizer_sees_the_gradient_of_the_masked_function():
    optimizer = half(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    params = params_of()
    state = optimizer.init(params)
    grads = grads_of(params)
    live = apply_masks(grads, state.masks)
    updates, _ = optimizer.update(grads, state, params)
    scale = 1 / optax.tree.norm(live)
    mask = state.masks["conv"]
    np.testing.assert_allclose(
        updates["conv"][mask], -scale * grads["conv"][mask], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("weights", "gradients"),
    [
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.bfloat16),
    ],
)
def test_zeros_are_exact_in_every_dtype(weights, gradients):
    params = params_of()
    params = jax.tree.map(lambda p: (p * 1.0001).astype(weights), params)
    optimizer = half(optax.sgd(0.1))
    state = optimizer.init(params)
    grads = jax.tree.map(lambda p: jnp.ones(p.shape, gradients), params)
    updates, state = jax.jit(optimizer.update)(grads, state, params)
    pruned = optax.apply_updates(params, updates)
    for path in TREE:
        assert pruned[path].dtype == weights
        removed = ~np.asarray(state.masks[path])
        assert np.all(np.asarray(pruned[path].astype(jnp.float32))[removed] == 0)
    assert densities(pruned) == [0.5, 0.5]


def test_as_part_of_a_chain():
    optimizer = optax.chain(optax.scale(2.0), optax.clip(1.0), half(optax.adam(0.1)))
    params, _ = list(train(optimizer, params_of(), 3))[-1]
    assert densities(params) == [0.5, 0.5]


def test_masked():
    where = {"conv": True, "dense": True, "bias": False}
    optimizer = optax.masked(half(optax.adam(0.1)), where)
    params, state = list(train(optimizer, params_of(), 3))[-1]
    assert densities(params) == [0.5, 0.5]
    assert isinstance(state.inner_state.masks["bias"], optax.MaskedNode)
    hidden = optax.masked(half(optax.adam(0.1)), where | {"dense": False})
    with pytest.raises(MismatchError, match="'dense', which is not in the tree: conv"):
        hidden.init(params)


def test_multi_steps():
    optimizer = optax.MultiSteps(
        half(optax.adam(0.1), sparsity=cubic_schedule(final_sparsity=0.5, steps=1)), 3
    )
    seen = []
    for params, state in train(optimizer, params_of(), 6):
        seen.append((densities(params), int(state.inner_opt_state.step)))
    assert seen[:5] == [([1.0, 1.0], n) for n in (0, 0, 1, 1, 1)]
    assert seen[5] == ([0.5, 0.5], 2)


@pytest.mark.parametrize(
    "sparsity",
    [0.5, cubic_schedule(final_sparsity=0.5, steps=2)],
    ids=["number", "schedule"],
)
def test_inject_hyperparams(sparsity):
    factory = optax.inject_hyperparams(prune)
    optimizer = factory(
        optax.adam(0.1), [(..., Prune())], sites=SITES, sparsity=sparsity, every=1
    )
    traces = []

    @jax.jit
    def update(*args):
        traces.append(args)
        return optimizer.update(*args)

    params, state = list(train(optimizer, params_of(), 3, update))[-1]
    assert densities(params) == [0.5, 0.5]
    if not callable(sparsity):
        state.hyperparams["sparsity"] = jnp.array(0.75, jnp.float32)
        updates, state = update(grads_of(params), state, params)
        assert densities(optax.apply_updates(params, updates)) == [0.25, 0.25]
    assert len(traces) == 1


def test_extra_arguments_reach_the_inner_optimizer():
    def update(updates, state, params=None, *, factor, **extra):
        return jax.tree.map(lambda u: u * factor, updates), state

    scaled = optax.GradientTransformationExtraArgs(lambda params: (), update)
    optimizer = half(scaled)
    params = params_of()
    state = optimizer.init(params)
    updates, _ = optimizer.update(params, state, params, factor=3.0)
    np.testing.assert_array_equal(updates["bias"], 3 * params["bias"])


def test_tree_map_params_sees_the_masks():
    optimizer = half(optax.adam(0.1))
    state = optimizer.init(params_of())
    mapped = optax.tree_map_params(optimizer, lambda x: x.size, state)
    assert mapped.masks == {"conv": 288, "dense": 48, "bias": None}
    assert mapped.inner[0].mu == {"conv": 288, "dense": 48, "bias": 5}
    assert mapped.step is state.step


def test_linen_train_state():
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)])
    x = jax.random.normal(jax.random.key(1), (8, 12))
    variables = model.init(jax.random.key(0), x)
    sites = find_sites(model.apply, variables, x).below("params")
    rules = [("layers_0/kernel", Prune(pattern=NM(1, 4))), (..., Prune(sparsity=0.5))]
    optimizer = prune(optax.adam(1e-2), rules, sites=sites)
    state = TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=optimizer
    )

    @jax.jit
    def step(state):
        loss = lambda p: jnp.mean(state.apply_fn({"params": p}, x) ** 2)  # noqa: E731
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(3):
        state = step(state)
    assert float(jnp.mean(state.params["layers_0"]["kernel"] != 0)) == 0.25
    assert float(jnp.mean(state.params["layers_2"]["kernel"] != 0)) == 0.5
    whole = find_sites(model.apply, variables, x)
    astray = prune(optax.adam(1e-2), [(..., Prune(sparsity=0.5))], sites=whole)
    with pytest.raises(
        MismatchError, match=r"'params/layers_0/kernel'.*below\('params'\)"
    ):
        astray.init(variables["params"])


def test_nnx_optimizer():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs))
    x = jax.random.normal(jax.random.key(1), (8, 12))
    graph, state = nnx.split(model)
    sites = find_sites(lambda state, x: nnx.merge(graph, state)(x), state, x)
    schedule = cubic_schedule(final_sparsity=0.5, steps=2)
    rules = [("layers/0/kernel", Prune(pattern=NM(2, 4))), (..., Prune())]
    optimizer = nnx.Optimizer(
        model,
        prune(optax.adam(1e-2), rules, sites=sites, sparsity=schedule),
        wrt=nnx.Param,
    )

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)
        optimizer.update(model, grads)

    seen = []
    for _ in range(4):
        step(model, optimizer)
        seen.append([float(jnp.mean(layer.kernel[...] != 0)) for layer in model.layers])
    assert seen[0] == [1.0, 1.0]
    assert seen[-1] == [0.5, 0.5]
    masks = nnx.as_pure(optimizer.opt_state).masks
    pruned = apply_masks(nnx.state(model, nnx.Param), masks)
    np.testing.assert_array_equal(
        pruned["layers"][1]["kernel"][...], model.layers[1].kernel[...]
    )


class TestBadInput:
    def test_update_without_parameters(self):
        optimizer = half(optax.sgd(0.1))
        params = params_of()
        with pytest.raises(ValueError, match="update needs the parameters"):
            optimizer.update(params, optimizer.init(params))

    @pytest.mark.parametrize("every", [0, -3, True])
    def test_every(self, every):
        with pytest.raises(ValueError, match="every must be at least 1"):
            half(optax.sgd(0.1), every=every)

    def test_wrong_rules_raise_before_init(self):
        with pytest.raises(MismatchError, match=r"prune: 'conv'.*does not divide"):
            prune(optax.sgd(0.1), [(..., Prune(pattern=NM(2, 5)))], sites=SITES)
        with pytest.raises(MismatchError, match="prune: rule 0 has no sparsity"):
            prune(optax.sgd(0.1), [(..., Prune())], sites=SITES)
        with pytest.raises(MismatchError, match="matches no weight"):
            prune(optax.sgd(0.1), [("nowhere", Prune(sparsity=0.5))], sites=SITES)

    def test_missing_gradient(self):
        optimizer = half(optax.sgd(0.1))
        params = params_of()
        state = optimizer.init(params)
        grads = {path: leaf for path, leaf in params.items() if path != "dense"}
        with pytest.raises(MismatchError, match="'dense'"):
            optimizer.update(grads, state, params)

    def test_parameters_without_leaves(self):
        optimizer = half(optax.sgd(0.1))
        state = optimizer.init(params_of())
        with pytest.raises(
            MismatchError, match="'conv', which is not in the tree: it is"
        ):
            optimizer.update({}, state, {})


AFTER = {
    "ema": optax.ema(0.9),
    "scale": optax.scale(0.01),
    "decay": optax.add_decayed_weights(0.01),
}


@pytest.mark.parametrize("after", [None, *AFTER])
def test_removed_weights_that_come_back_are_counted(after: str | None) -> None:
    params = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}
    sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 4)))
    rules = [(..., Prune(sparsity=0.75))]
    optimizer = prune(optax.sgd(0.1), rules, sites=sites)
    if after is not None:
        optimizer = optax.chain(optimizer, AFTER[after])
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.ones((4, 4))}, state, params)
        params = optax.apply_updates(params, updates)
    mine = state if after is None else state[0]
    if after is None:
        assert mine.returned == 0
        changes = summarize(params, mine, rules, sites=sites)
        assert changes.sparsity == changes["w"].zeros_before == 0.75
        return
    assert mine.returned > 0
    block = [(..., NM(1, 4))]
    (lost, _) = summarize(params, mine.masks, rules, sites=sites).notes
    assert (
        "of the 12 weights that the masks remove are not zero in params, in w" in lost
    )
    assert "write prune(optax.chain(...)" in lost
    with pytest.raises(MismatchError, match=r"If that was done.*write prune\(optax"):
        to_sparse(params, block, sites=sites)
    for use in (
        lambda: summarize(params, mine, rules, sites=sites),
        lambda: to_sparse(params, block, sites=sites, state=mine),
    ):
        with pytest.raises(
            MismatchError, match=r"removed from 'w' .*prune\(optax.chain"
        ):
            use()


def test_weights_removed_under_a_schedule_are_not_said_to_return() -> None:
    """At each step new weights go that the step before had left."""
    params = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}
    sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 4)))
    amount = optax.linear_schedule(0.0, 0.75, 4)
    optimizer = prune(optax.sgd(0.1), [(..., Prune(sparsity=amount))], sites=sites)
    state = optimizer.init(params)
    for _ in range(6):
        updates, state = optimizer.update({"w": jnp.ones((4, 4))}, state, params)
        params = optax.apply_updates(params, updates)
        assert state.returned == 0


def test_complex_weights_are_pruned_by_modulus() -> None:
    params = {"w": jnp.array([[3 + 4j, 1j], [-2.0 + 0j, 0.5 - 0.5j]], jnp.complex64)}
    sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 2), jnp.complex64))
    optimizer = prune(optax.sgd(0.0), [(..., Prune(sparsity=0.5))], sites=sites)
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    pruned = optax.apply_updates(params, updates)["w"]
    assert (pruned != 0).tolist() == [[True, False], [True, False]]


def test_lookahead_brings_weights_back_unless_it_begins_without_them() -> None:
    """Its slow weights are means with their first values, to which it resets at times.

    The count of what came back must outlast the steps that make it zero again.
    """
    params = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}
    sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 4)))
    rules = [(..., Prune(pattern=Unstructured(), sparsity=0.75))]
    inner = prune(optax.sgd(0.1), rules, sites=sites)
    optimizer = optax.lookahead(inner, sync_period=3, slow_step_size=0.5)

    def run(start):
        both = optax.LookaheadParams.init_synced(start)
        state, counts = optimizer.init(both), []
        for _ in range(7):
            updates, state = optimizer.update({"w": jnp.ones((4, 4))}, state, both)
            both = optax.apply_updates(both, updates)
            counts.append(int(state.fast_state.returned))
        return both.slow, state.fast_state, counts

    slow, state, counts = run(params)
    assert counts == [0, 0, 0, 12, 12, 12, 12]
    assert int(jnp.sum(slow["w"] != 0)) == 16
    with pytest.raises(MismatchError, match="12 of the 12 weights that prune removed"):
        to_sparse(slow, [(..., NM(1, 4))], sites=sites, state=state)

    masks = inner.init(params).masks
    slow, state, counts = run(apply_masks(params, masks))
    assert counts == [0] * 7
    assert int(jnp.sum(slow["w"] != 0)) == 4
    assert summarize(slow, state, rules, sites=sites).sparsity == 0.75


def test_an_integer_leaf_is_left_alone_unless_a_rule_takes_nothing_else() -> None:
    params = {
        "w": jnp.arange(1.0, 17.0).reshape(4, 4),
        "n": jnp.ones((4, 4), jnp.int32),
    }

    def model(p, x):
        return x @ p["w"], x.astype(jnp.int32) @ p["n"]

    sites = find_sites(model, params, jnp.ones((1, 4)))
    rules = [(..., Prune(pattern=NM(2, 4)))]
    state = prune(optax.sgd(0.1), rules, sites=sites).init(params)
    assert state.masks["n"] is None
    changes = summarize(params, state, rules, sites=sites)
    (skipped,) = changes.skipped
    assert (skipped.name, skipped.reason) == (
        "n",
        "it is int32, and only floats and complex numbers can be converted",
    )
    with pytest.raises(MismatchError, match=r"prune: 'n' is int32 .*\('n', None\)"):
        prune(optax.sgd(0.1), [("n", rules[0][1]), *rules], sites=sites)
