"""Weights are trained as they are served: with the norm's scale folded into them."""

import doctest
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.qat import Lsq, freeze_statistics, freezing, init_scales
from jcompress.quantization import (
    Activation,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.rescaling import find_folds, fold, folded, folding
from jcompress.sites import find_sites

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 5, 5, 3)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 4, 16))
WANTED = jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)


class Net(nn.Module):
    """Convolutions, one of them depthwise, and a dense layer, each with a norm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.8
        )
        x = nn.relu(norm(name="norm0")(nn.Conv(8, (3, 3), name="first")(x)))
        x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="deep")(x)
        x = nn.relu(norm(name="norm1")(x)).mean((1, 2))
        return norm(name="norm2")(nn.Dense(4, name="head")(x))


evaluate = Net().apply
train = functools.partial(Net().apply, train=True, mutable=["batch_stats"])


def start() -> Any:
    """At first, but with norms whose channels differ much."""
    variables = Net().init(jax.random.key(0), X)

    def spread(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if "scale" in name or "var" in name:
            return leaf * jnp.exp2(jnp.arange(leaf.size, dtype=jnp.float32) % 5 - 2)
        return leaf

    return jax.tree_util.tree_map_with_path(spread, variables)


def served(variables: Any, rules: Any, scales: Any = None) -> Any:
    """Folded, quantized, and run."""
    made = fold(evaluate, variables, X)
    run = folded(evaluate, made.removed)
    sites = find_sites(run, made.small, X)
    small = quantize(made.small, rules, sites=sites, scales=scales)
    return small, compressed(run)(small, X)


def trained(rules: Any, scales: Any, folds: Any, steps: int = 12) -> Any:
    variables = start()
    free = (variables["params"], scales)
    optimizer = optax.sgd(0.05)

    @jax.jit
    def step(free: Any, stats: Any, state: Any, number: Any) -> Any:
        def loss(free: Any) -> Any:
            params, scales = free
            given: Any = {"scales": scales, "folds": folds}
            run = freeze_statistics(
                fake_quant(train, rules, **given),
                fake_quant(evaluate, rules, **given),
                frozen=number >= 8,
            )
            logits, updates = run({"params": params, "batch_stats": stats}, X)
            error = optax.softmax_cross_entropy_with_integer_labels(logits, Y)
            return error.mean(), updates["batch_stats"]

        slope, stats = jax.grad(loss, has_aux=True)(free)
        updates, state = optimizer.update(slope, state, free)
        return optax.apply_updates(free, updates), stats, state

    stats, state = variables["batch_stats"], optimizer.init(free)
    seen = []
    for number in range(steps):
        free, stats, state = step(free, stats, state, number)
        seen.append(stats["norm0"]["mean"])
    assert not np.array_equal(seen[0], seen[7])
    np.testing.assert_array_equal(seen[7], seen[-1])
    return {"params": free[0], "batch_stats": stats}, free[1]


@pytest.mark.parametrize("learned", [False, True])
def test_what_is_trained_is_what_is_served(learned: bool) -> None:
    how: Any = {"range": Lsq()} if learned else {"granularity": PerTensor()}
    spec = Weights(format=Int(3), **how)
    rules = [(..., Quantize(weights=spec, activation=Activation()))]
    folds = find_folds(evaluate, start(), X)
    assert set(folds) == {f"params/{n}/kernel" for n in ("first", "deep", "head")}
    scales = {}
    if learned:
        scales = init_scales(evaluate, rules, start(), X, folds=folds)
    variables, scales = trained(rules, scales, folds)
    small, out = served(variables, rules, scales)
    simulated = functools.partial(fake_quant, rules=rules, scales=scales)
    within = 1e-5 * float(jnp.abs(out).max())
    found = simulated(evaluate, folds=folds)(variables, X)
    np.testing.assert_allclose(out, found, atol=within)
    # Without the folds something else was trained.
    other = simulated(evaluate)(variables, X)
    assert float(jnp.abs(other - out).max()) > 100 * within

    # The integers, by hand: those of the folded weight.
    kernel = np.asarray(variables["params"]["first"]["kernel"], np.float64)
    norm, stats = variables["params"]["norm0"], variables["batch_stats"]["norm0"]
    whole = kernel * np.asarray(norm["scale"] / np.sqrt(stats["var"] + 1e-5))
    step = np.abs(whole).max() / 3
    if learned:
        step = np.abs(np.asarray(scales["params/first/kernel"].weights.scale))[:, 0]
    wanted = np.clip(np.round(whole / step), -3, 3) * step
    found = small["params"]["first"]["kernel"].dense()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(whole).max())


def test_training_mode_rounds_by_the_running_variance() -> None:
    variables = start()
    spec = Weights(format=Int(3), granularity=PerTensor())
    rules = [("params/first/kernel", Quantize(weights=spec))]
    folds = find_folds(evaluate, variables, X)
    stats = {"norm0": {"var": jnp.linspace(0.1, 9, 8), "mean": jnp.ones(8)}}
    variables["batch_stats"] |= stats
    got, updates = fake_quant(train, rules, folds=folds)(variables, X)
    factor = variables["params"]["norm0"]["scale"] / jnp.sqrt(stats["norm0"]["var"])
    whole = variables["params"]["first"]["kernel"] * factor[None, None, None]
    step = jnp.abs(whole).max() / 3
    rounded = jnp.round(whole / step) * step / factor[None, None, None]
    params = variables["params"] | {"first": variables["params"]["first"] | {
        "kernel": rounded}}  # fmt: skip
    wanted, expected = train(variables | {"params": params}, X)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    np.testing.assert_allclose(
        updates["batch_stats"]["norm0"]["var"],
        expected["batch_stats"]["norm0"]["var"],
        rtol=1e-4,
    )


def test_a_scale_of_zero_learns() -> None:
    variables = start()
    scale = variables["params"]["norm2"]["scale"]
    variables["params"]["norm2"]["scale"] = jnp.zeros_like(scale)
    rules = [(..., Quantize(weights=Weights(granularity=PerTensor())))]
    folds = find_folds(evaluate, start(), X)

    def loss(variables: Any) -> Any:
        run = fake_quant(train, rules, folds=folds)
        return jnp.mean(run(variables, X)[0] * WANTED)

    slope = jax.jit(jax.grad(loss))(variables)["params"]
    assert np.isfinite(slope["head"]["kernel"]).all()
    assert np.abs(slope["norm2"]["scale"]).max() > 1e-3


def test_nnx_by_the_names_of_its_state() -> None:
    class Small(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.norm(self.conv(x))

    model = Small(nnx.Rngs(0))
    model.norm.scale[...] = jnp.array([1.0, 2, 4, 8])
    graphs = []
    for run in (model.train, model.eval):
        run()
        graphs.append(nnx.split(model))
    (learning, state), (serving, _) = graphs

    def step(state: Any, x: jax.Array) -> Any:
        made = nnx.merge(learning, state)
        return made(x), nnx.state(made)

    def evaluation(state: Any, x: jax.Array) -> Any:
        return nnx.merge(serving, state)(x)

    rules = [("conv/kernel", Quantize(weights=Weights(format=Int(3))))]
    folds = find_folds(evaluation, state, X)
    both = [fake_quant(fn, rules, folds=folds) for fn in (step, evaluation)]
    out, new = freeze_statistics(*both, frozen=False)(state, X)
    kept, same = freeze_statistics(*both, frozen=True)(new, X)
    assert not np.allclose(out, kept)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    made = fold(evaluation, same, X)
    run = folded(evaluation, made.removed)
    small = quantize(made.small, rules, sites=find_sites(run, made.small, X))
    np.testing.assert_allclose(compressed(run)(small, X), kept, atol=1e-4)


@pytest.mark.parametrize("module", [folding, freezing])
def test_examples_of_the_docstrings(module: Any) -> None:
    with jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


def test_what_does_not_fit_raises() -> None:
    variables, rules = start(), [(..., Quantize())]
    folds = find_folds(evaluate, variables, X)
    with pytest.raises(MismatchError, match="find_folds: nothing to fold"):
        find_folds(train, variables, X)
    only = [("params/first/kernel", Quantize())]
    part = {"params/head/kernel": folds["params/head/kernel"]}
    with pytest.raises(MismatchError, match="folds has params/head/kernel, of which"):
        fake_quant(evaluate, only, folds=part)(variables, X)

    def alone(params: Any, x: Any) -> Any:
        stats = start()["batch_stats"]
        return evaluate({"params": params["params"], "batch_stats": stats}, x)

    with pytest.raises(MismatchError, match=r"depends on .*/var, which the tree"):
        fake_quant(alone, rules, folds=folds)({"params": variables["params"]}, X)
    wide = {"params/first/kernel": folds["params/head/kernel"]}
    with pytest.raises(MismatchError, match=r"has shape \[1, 4\], and the leaf \[3,"):
        fake_quant(evaluate, only, folds=wide)(variables, X)
    with pytest.raises(MismatchError, match=r"train gives \(outputs, updates\)"):
        freeze_statistics(evaluate, evaluate, frozen=True)(variables, X)
    with pytest.raises(MismatchError, match="both must give the same outputs"):
        freeze_statistics(train, lambda v, x: x, frozen=True)(variables, X)
    with pytest.raises(MismatchError, match=r"updates 'a' \[\], and the tree has no"):
        freeze_statistics(lambda v, x: (x, {"a": x[0, 0, 0, 0]}), evaluate,
                          frozen=True)(variables, X)  # fmt: skip
