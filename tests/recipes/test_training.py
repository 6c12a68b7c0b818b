import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import compressed
from jcompress.quantization import quantize
from jcompress.recipes import Examples, load_digits, read_recipe
from jcompress.recipes.recipe import Model, Pruning, Shrinking
from jcompress.recipes.shrinking import (
    choose_round,
    deployed,
    round_stage,
    smaller,
)
from jcompress.recipes.training import (
    accuracy,
    apply_of,
    quantization_rules,
    run_epoch,
    sites_of,
    student_stage,
    teacher_stage,
)
from jcompress.shrinking import shrunk

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def optax_needs_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def tiny():
    recipe = read_recipe(seed=1)
    return dataclasses.replace(
        recipe,
        model=Model(widths=(4, 8)),
        teacher=dataclasses.replace(recipe.teacher, epochs=2, batch_size=32),
        student=dataclasses.replace(recipe.student, epochs=2, batch_size=32),
        shrinking=Shrinking(keep=0.6, rounds=2, multiple=1),
        recovery=dataclasses.replace(recipe.recovery, batch_size=32),
        pruning=Pruning(sparsity=0.75, epochs=2, every=2),
    )


def some(count=128):
    train = load_digits().train
    return Examples(images=train.images[:count], labels=train.labels[:count])


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def test_the_trainings_do_what_their_names_say():
    recipe, data = tiny(), some()
    stage = teacher_stage(recipe, len(data))
    state, first = run_epoch(stage, stage.start(), data, seed=1, epoch=0)
    again, _ = run_epoch(stage, stage.start(), data, seed=1, epoch=0)
    assert same(state, again)
    other, _ = run_epoch(stage, stage.start(), data, seed=2, epoch=0)
    assert not same(state, other)
    for epoch in range(1, 6):
        state, last = run_epoch(stage, state, data, seed=1, epoch=epoch)
    assert last < first
    assert not same(
        state.variables["batch_stats"], stage.start().variables["batch_stats"]
    )

    teacher = state.variables
    plan, variables = None, teacher
    for number in range(recipe.shrinking.rounds):
        now = choose_round(recipe, number, teacher, plan, variables, data)
        start = smaller(variables, plan, now)
        plan = now
        stage = round_stage(recipe, number, len(data), teacher, plan, start)
        state = stage.start()
        assert same(state.variables, start)
        losses = []
        for epoch in range(4):
            state, loss = run_epoch(stage, state, data, seed=1, epoch=epoch)
            losses.append(loss)
        assert losses[-1] < losses[0]
        variables = state.variables
        assert not same(variables["batch_stats"], start["batch_stats"])
    whole, left = (
        sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
        for tree in (teacher, variables)
    )
    assert 0.4 * whole < left <= 0.62 * whole

    network = deployed(recipe, plan, variables)
    narrow = shrunk(apply_of(recipe), plan)(variables, data.images)
    np.testing.assert_allclose(
        network.apply(network.variables, data.images), narrow, atol=1e-4, rtol=1e-4
    )
    # A fresh process knows the plan, not the variables.
    like = deployed(recipe, plan).variables
    assert jax.tree.structure(like) == jax.tree.structure(network.variables)
    stage = student_stage(recipe, len(data), teacher, network)
    state = stage.start()
    assert same(state.variables, network.variables)
    for epoch in range(recipe.student.epochs):
        state, _ = run_epoch(stage, state, data, seed=1, epoch=epoch)
    student = state.variables
    assert not jax.tree.leaves(student["batch_stats"])
    assert not same(student["params"], network.variables["params"])
    params = student["params"]
    for block in ("block_0", "block_1"):
        for convolution in ("Conv_0", "Conv_1"):
            kernel = np.asarray(params[block][convolution]["kernel"])
            assert np.mean(kernel == 0) == pytest.approx(0.75, abs=1 / kernel.size)
    assert np.all(np.asarray(params["stem"]["kernel"]))
    assert np.all(np.asarray(params["head"]["kernel"]))

    rules = quantization_rules(recipe, network.sites)
    small = quantize(student, rules, sites=network.sites)
    now = jax.jit(compressed(network.apply))(small, data.images)
    before = stage.logits(student, data.images)
    np.testing.assert_allclose(now, before, atol=1e-4, rtol=0)
    dense = jax.jit(network.apply)(student, data.images)
    assert np.max(np.abs(np.asarray(dense) - np.asarray(before))) > 1e-2


def test_a_model_without_blocks_that_change_the_shape_has_no_projection():
    recipe = dataclasses.replace(tiny(), model=Model(widths=(4, 4)))
    names = [name for name, _ in sites_of(recipe).leaves]
    assert "params/block_1/project/kernel" in names
    assert "params/block_0/project/kernel" not in names


def test_images_are_shifted_by_at_most_a_pixel():
    from jcompress.recipes.training import _shifted

    images = np.zeros((200, 8, 8, 1), np.float32)
    images[:, 4, 4, 0] = 1
    moved = _shifted(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 200
    assert set(rows) == set(columns) == {3, 4, 5}


def test_accuracy_counts_the_greatest_logit():
    logits = jnp.asarray([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, np.asarray([1, 1, 1])) == pytest.approx(2 / 3)
