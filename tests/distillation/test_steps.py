"""`distill_step` against steps written out by hand; every scheme in a few lines."""

import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jcompress import checkpoint
from jcompress.distillation import (
    Loss,
    distill_step,
    fewer_blocks,
    init_state,
    narrower,
    steps,
)
from jcompress.distillation.features import hidden_mse
from jcompress.distillation.layers import evenly, with_values
from jcompress.distillation.logits import (
    mixed_targets,
    smoothed_labels,
    soft_targets,
)
from jcompress.distillation.relations import (
    contrastive,
    draw_negatives,
    init_bank,
    update_bank,
)
from jcompress.distillation.stored import keep_top, top_targets
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.pruning import Prune, Unstructured, prune
from jcompress.quantization import Quantize, Weights, fake_quant, quantize
from jcompress.sites import find_sites
from jcompress.statistics import NamedScope

RNG = np.random.default_rng(0)
SOFT = {"soft": lambda s, t, batch: soft_targets(s, t, temperature=2.0)}


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def model(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def apply(params, batch):
    return model(params, batch["x"])


def make(width):
    return {"up": normal(6, width), "down": normal(width, 4)}


BATCH = {"x": normal(8, 6), "y": jnp.asarray(RNG.integers(0, 4, 8))}
TEACHER, STUDENT = make(16), make(5)


def close(got, wanted, **bounds):
    bounds = {"rtol": 1e-4, "atol": 1e-5, **bounds}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **bounds), got, wanted)


def test_a_step_by_hand():
    weight = optax.linear_schedule(0.0, 1.0, 4)
    losses = {
        **SOFT,
        "labels": Loss(
            fn=lambda s, t, batch: smoothed_labels(s, batch["y"]), weight=weight
        ),
    }
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = distill_step(apply, apply, losses, optimizer)
    state = init_state(STUDENT, optimizer)
    params, inner = STUDENT, optimizer.init(STUDENT)
    for number in range(3):

        def by_hand(params, number=number):
            logits = apply(params, BATCH)
            targets = jax.nn.softmax(apply(TEACHER, BATCH) / 2)
            log = jax.nn.log_softmax(logits / 2)
            soft = 4 * (targets * (jnp.log(targets) - log)).sum(-1).mean()
            own = jax.nn.log_softmax(logits)[jnp.arange(8), BATCH["y"]]
            return soft - number / 4 * own.mean(), (soft, -own.mean())

        (total, parts), grads = jax.value_and_grad(by_hand, has_aux=True)(params)
        updates, inner = optimizer.update(grads, inner, params)
        params = optax.apply_updates(params, updates)
        state, values = step(state, TEACHER, BATCH)
        close(values, {"total": total, "soft": parts[0], "labels": parts[1]})
    close(state.params, params)
    assert state.step == 3
    assert step._cache_size() == 1


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_microbatches_sum_to_the_batch(parts):
    optimizer = optax.sgd(1.0)
    run = lambda n: distill_step(apply, apply, SOFT, optimizer, microbatches=n)(  # noqa: E731
        init_state(STUDENT, optimizer), TEACHER, BATCH
    )
    close(run(parts), run(1))


def test_half_precision_and_compressed_teachers():
    """A teacher is a function and a tree."""
    optimizer = optax.sgd(0.1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TEACHER)
    low = lambda p, batch: model(p, batch["x"].astype(jnp.bfloat16))  # noqa: E731
    rules = [(..., Quantize(weights=Weights(format=Int(8))))]
    small = quantize(TEACHER, rules, sites=find_sites(model, TEACHER, BATCH["x"]))
    packed = lambda p, batch: compressed(model)(p, batch["x"])  # noqa: E731
    wanted, _ = distill_step(apply, apply, SOFT, optimizer)(
        init_state(STUDENT, optimizer), TEACHER, BATCH
    )
    for teacher, params in ((low, half), (packed, small)):
        step = distill_step(apply, teacher, SOFT, optimizer)
        got, _ = step(init_state(STUDENT, optimizer), params, BATCH)
        assert got.params["up"].dtype == jnp.float32
        close(got.params, wanted.params, atol=0.05, rtol=0)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(5)(x))
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


def test_linen_with_batch_statistics_and_dropout():
    net = Normalized()
    variables = net.init(jax.random.key(0), BATCH["x"], train=False)

    def student(params, extra, batch, key):
        return net.apply(
            {"params": params, **extra},
            batch["x"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )

    optimizer = optax.sgd(0.1)
    extra = {"batch_stats": variables["batch_stats"]}
    step = distill_step(student, apply, SOFT, optimizer, stateful=True, keyed=True)
    state = init_state(variables["params"], optimizer, extra=extra)
    one, first = step(state, TEACHER, BATCH, jax.random.key(1))
    mean = (BATCH["x"] @ variables["params"]["Dense_0"]["kernel"]).mean(0)
    got = one.extra["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(got, mean / 2, rtol=1e-4, atol=1e-5)
    _, same = step(state, TEACHER, BATCH, jax.random.key(1))
    _, other = step(state, TEACHER, BATCH, jax.random.key(2))
    assert first["soft"] == same["soft"] != other["soft"]
    with pytest.raises(TypeError, match="give the step one"):
        step(state, TEACHER, BATCH)
    # Statistics go from part to part, each of which has its own key.
    parts = distill_step(
        student, apply, SOFT, optimizer, stateful=True, keyed=True, microbatches=2
    )
    two, _ = parts(state, TEACHER, BATCH, jax.random.key(1))
    halves = [
        (BATCH["x"][part] @ variables["params"]["Dense_0"]["kernel"]).mean(0)
        for part in (slice(0, 4), slice(4, 8))
    ]
    got = two.extra["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(got, halves[0] / 4 + halves[1] / 2, rtol=1e-4, atol=1e-5)


def test_nnx():
    graph, params = nnx.split(nnx.Linear(6, 4, rngs=nnx.Rngs(0)))

    def student(params, batch):
        return nnx.merge(graph, params)(batch["x"])

    optimizer = optax.sgd(0.1)
    step = distill_step(student, apply, SOFT, optimizer)
    state, first = step(init_state(params, optimizer), TEACHER, BATCH)
    for _ in range(20):
        state, values = step(state, TEACHER, BATCH)
    assert values["soft"] < first["soft"] / 2


def steps_of(step, state, teacher, count=15):
    values = []
    for _ in range(count):
        state, found = step(state, teacher, BATCH)
        values.append(float(found["total"]))
    return state, values


def test_self_distillation_born_again_and_mutual_learning():
    optimizer = optax.sgd(0.1, momentum=0.9)
    labels = {"labels": lambda s, t, batch: smoothed_labels(s, batch["y"])}
    both = {**labels, **SOFT}
    alone = distill_step(apply, None, labels, optimizer)
    step = distill_step(apply, apply, both, optimizer)
    # Born again: a student of the same shape learns from the one before.
    first, values = steps_of(alone, init_state(STUDENT, optimizer), None)
    assert values[-1] < values[0]
    again, _ = steps_of(step, init_state(make(5), optimizer), first.params)
    assert again.step == 15
    # Self-distillation: the teacher is a moving average of the student.
    state, average = init_state(STUDENT, optimizer), STUDENT
    for _ in range(5):
        state, _ = step(state, average, BATCH)
        average = optax.incremental_update(state.params, average, 0.1)
    assert jnp.abs(average["up"] - STUDENT["up"]).max() > 0
    # Deep mutual learning: each is the other's teacher.
    one, two = init_state(STUDENT, optimizer), init_state(make(5), optimizer)
    begin = steps_apart(one, two)
    for _ in range(15):
        last = one.params
        one, _ = step(one, two.params, BATCH)
        two, _ = step(two, last, BATCH)
    assert steps_apart(one, two) < begin


def steps_apart(one, two):
    logits = apply(one.params, BATCH), apply(two.params, BATCH)
    return float(soft_targets(*logits, temperature=2.0).mean())


def test_an_ensemble_into_one():
    optimizer = optax.sgd(0.1, momentum=0.9)
    teachers = jax.tree.map(lambda *x: jnp.stack(x), TEACHER, make(16), make(16))
    # The batch comes first in what a step gets, the teachers in what the loss gets.
    ensemble = jax.vmap(apply, in_axes=(0, None))
    losses = {
        "mixed": lambda s, t, batch: mixed_targets(
            s, t, weights=(0.5, 0.25, 0.25), temperature=2.0
        )
    }
    step = distill_step(apply, ensemble, losses, optimizer)
    _, values = steps_of(step, init_state(STUDENT, optimizer), teachers)
    assert values[-1] < values[0]


@pytest.mark.parametrize("self_", ["quantized", "pruned", "narrower"])
def test_a_model_into_its_smaller_self(self_):
    optimizer, params, fn = optax.sgd(0.02, momentum=0.9), TEACHER, model
    if self_ == "quantized":
        fn = fake_quant(model, [(..., Quantize(weights=Weights(format=Int(2))))])
    elif self_ == "pruned":
        rules = [(..., Prune(pattern=Unstructured(), sparsity=0.5))]
        sites = find_sites(model, TEACHER, BATCH["x"])
        optimizer = prune(optimizer, rules, sites=sites)
    else:
        fn, params = narrower(model, TEACHER, BATCH["x"], keep=0.5)
        assert params["up"].shape == (6, 8)
    student = lambda params, batch: fn(params, batch["x"])  # noqa: E731
    step = distill_step(student, apply, SOFT, optimizer)
    state, _ = step(init_state(params, optimizer), TEACHER, BATCH)
    state, values = steps_of(step, state, TEACHER)
    assert values[-1] < values[0]
    if self_ == "pruned":
        assert (state.params["up"] == 0).mean() == 0.5


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(6)(nn.relu(nn.Dense(12)(x)))


class Deep(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        for number in range(self.layers):
            x = Block(name=f"layer_{number}")(x)
        return nn.Dense(4, name="head")(x)


def scopes(layers):
    return [NamedScope(f"Deep/layer_{n}") for n in range(layers)]


def test_layers_of_a_teacher_without_editing_it():
    """The values of two functions, paired by a rule, a projection learned beside."""
    deep, flat = Deep(4), Deep(2)
    teacher = deep.init(jax.random.key(0), BATCH["x"])
    params = {
        "net": flat.init(jax.random.key(1), BATCH["x"]),
        "projection": jnp.eye(6),
    }
    ours, theirs = zip(*evenly(scopes(2), scopes(4)), strict=True)
    assert theirs == (NamedScope("Deep/layer_1"), NamedScope("Deep/layer_3"))
    inside, above = with_values(flat.apply, ours), with_values(deep.apply, theirs)

    def student(params, batch):
        return inside(params["net"], batch["x"]), params["projection"]

    def hidden(outputs, teacher, batch):
        found, projection = outputs
        pairs = zip(found.values, teacher.values, strict=True)
        return sum(hidden_mse(s, t, projection=projection) for s, t in pairs)

    optimizer = optax.sgd(0.1)
    look = lambda params, batch: above(params, batch["x"])  # noqa: E731
    step = distill_step(student, look, {"hidden": hidden}, optimizer)
    state, values = step(init_state(params, optimizer), teacher, BATCH)
    _, kept = deep.apply(teacher, BATCH["x"], capture_intermediates=True)
    _, own = flat.apply(params["net"], BATCH["x"], capture_intermediates=True)
    wanted = sum(
        np.square(
            own["intermediates"][f"layer_{a}"]["__call__"][0]
            - kept["intermediates"][f"layer_{b}"]["__call__"][0]
        ).mean()
        for a, b in ((0, 1), (1, 3))
    )
    np.testing.assert_allclose(values["hidden"], wanted, rtol=1e-4)
    assert jnp.abs(state.params["projection"] - jnp.eye(6)).max() > 0
    wrong = with_values(deep.apply, [NamedScope("Deep/layr_3")])
    with pytest.raises(MismatchError, match="the nearest is 'Deep/layer_3'"):
        jax.eval_shape(wrong, teacher, BATCH["x"])
    several = with_values(deep.apply, [NamedScope("Deep/layer_*")])
    with pytest.raises(MismatchError, match="matches 4 values, Deep/layer_0, "):
        jax.eval_shape(several, teacher, BATCH["x"])


def test_every_second_block_of_a_teacher():
    """A student in one line, which begins as its teacher without the others."""
    deep = Deep(4)
    teacher = deep.init(jax.random.key(0), BATCH["x"])
    blocks = [f"params/layer_{n}" for n in range(4)]
    fn, params = fewer_blocks(deep.apply, teacher, blocks, keep=2)
    two = {
        "layer_0": teacher["params"]["layer_0"],
        "layer_1": teacher["params"]["layer_3"],
        "head": teacher["params"]["head"],
    }
    close(fn(params, BATCH["x"]), Deep(2).apply({"params": two}, BATCH["x"]))
    optimizer = optax.sgd(0.02, momentum=0.9)
    student = lambda params, batch: fn(params, batch["x"])  # noqa: E731
    whole = lambda params, batch: deep.apply(params, batch["x"])  # noqa: E731
    step = distill_step(student, whole, SOFT, optimizer)
    _, values = steps_of(step, init_state(params, optimizer), teacher)
    assert values[-1] < values[0]


def test_narrower_keeps_the_most_important_half():
    fn, params = narrower(model, TEACHER, BATCH["x"], keep=0.25)
    scores = np.abs(TEACHER["up"]).sum(0) + np.abs(TEACHER["down"]).sum(1)
    best = np.sort(np.argsort(-scores)[:4])
    np.testing.assert_array_equal(params["up"], TEACHER["up"][:, best])
    np.testing.assert_array_equal(params["down"], TEACHER["down"][best])
    close(fn(params, BATCH["x"]), model(params, BATCH["x"]))
    with pytest.raises(ValueError, match="keep is between 0 and 1, not 1"):
        narrower(model, TEACHER, BATCH["x"], keep=1)


def test_contrast_with_a_bank():
    """What a loss remembers is part of the state."""
    bank = init_bank(jax.random.key(0), examples=20, size=3)
    params = {"net": STUDENT, "projections": (normal(5, 3), normal(16, 3))}
    batch = {**BATCH, "index": jnp.arange(8)}
    hidden = lambda params, x: jnp.tanh(x @ params["up"])  # noqa: E731

    def student(params, extra, batch, key):
        features = hidden(params["net"], batch["x"])
        negatives = draw_negatives(key, batch["index"], count=4, examples=20)
        return (features, params["projections"], extra, negatives), extra

    def contrast(outputs, teacher, batch):
        features, projections, bank, negatives = outputs
        return contrastive(
            features, teacher, bank=bank, negatives=negatives, projections=projections
        )

    def remember(bank, outputs, teacher, batch):
        return update_bank(
            bank, outputs[0], teacher, indices=batch["index"], projections=outputs[1]
        )

    optimizer = optax.sgd(0.01)
    step = distill_step(
        student,
        lambda params, batch: hidden(params, batch["x"]),
        {"contrast": contrast},
        optimizer,
        stateful=True,
        keyed=True,
        remember=remember,
        microbatches=2,
    )
    state = init_state(params, optimizer, extra=bank)
    after, values = step(state, TEACHER, batch, jax.random.key(1))
    assert np.isfinite(values["contrast"])
    for new, old, matrix, net in zip(
        after.extra, bank, params["projections"], (STUDENT, TEACHER), strict=True
    ):
        np.testing.assert_array_equal(new[8:], old[8:])
        rows = np.tanh(batch["x"] @ net["up"]) @ matrix
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        mixed = (rows + old[:8]) / 2
        mixed = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        np.testing.assert_allclose(new[:8], mixed, rtol=1e-3, atol=1e-4)
    moved = [
        jnp.abs(a - b).max()
        for a, b in zip(after.params["projections"], params["projections"], strict=True)
    ]
    assert min(moved) > 0  # the teacher's projection learns, too


def test_a_teacher_that_ran_once_and_a_training_that_goes_on(tmp_path):
    """Stored probabilities are part of the batch; the state is an ordinary tree."""
    top = keep_top(apply(TEACHER, BATCH), 4, temperature=2.0)
    batch = {**BATCH, "top": top}
    losses = {"top": lambda s, t, batch: top_targets(s, batch["top"])}
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = distill_step(apply, None, losses, optimizer, microbatches=2)
    state, _ = step(init_state(STUDENT, optimizer), None, batch)
    checkpoint.save(tmp_path / "state", state)
    loaded = checkpoint.load(tmp_path / "state", like=state)
    close(step(loaded, None, batch), step(state, None, batch), rtol=0, atol=0)
    whole = distill_step(apply, apply, SOFT, optimizer)
    wanted, _ = whole(init_state(STUDENT, optimizer), TEACHER, BATCH)
    close(state.params, wanted.params, atol=2e-3, rtol=0)  # float16


def test_negatives_are_never_the_example():
    index = jnp.arange(6)
    drawn = draw_negatives(jax.random.key(0), index, count=200, examples=6)
    assert (drawn != index[:, None]).all()
    assert set(np.unique(drawn[0])) == set(range(1, 6))


WRONG = {
    "no losses": ({"losses": {}}, ValueError, "there are no losses"),
    "a list": ({"losses": [SOFT]}, TypeError, "mapping from names"),
    "total": ({"losses": {"total": SOFT["soft"]}}, ValueError, "is the sum"),
    "no function": ({"losses": {"a": 3.0}}, TypeError, "fn must be a function"),
    "parts": ({"microbatches": 0}, ValueError, "at least 1, not 0"),
    "uneven": ({"microbatches": 3}, ValueError, "3 microbatches do not divide"),
    "a scalar": (
        {"losses": {"soft": lambda s, t, batch: SOFT["soft"](s, t, batch).mean()}},
        ValueError,
        r"loss 'soft' returns shape \(\); it must be \[8, ...\]",
    ),
    "shapes": (
        {"losses": {"soft": lambda s, t, b: soft_targets(s, t[1:], temperature=1.0)}},
        ValueError,
        r"the student's logits have shape \(8, 4\), the teacher's \(7, 4\)",
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name):
    changed, error, message = WRONG[name]
    options = {"losses": SOFT, "optimizer": optax.sgd(0.1), **changed}

    def trace():
        step = distill_step(apply, apply, **options)
        jax.eval_shape(step, init_state(STUDENT, optax.sgd(0.1)), TEACHER, BATCH)

    with pytest.raises(error, match=message):
        trace()


@pytest.mark.once
def test_bad_batches():
    step = distill_step(apply, apply, SOFT, optax.sgd(0.1))
    state = init_state(STUDENT, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"the same first axis.*'y': \(7,\)"):
        step(state, TEACHER, {**BATCH, "y": BATCH["y"][:7]})
    with pytest.raises(ValueError, match="holds no arrays"):
        step(state, TEACHER, {})
    with pytest.raises(ValueError, match="weight must be finite"):
        Loss(fn=SOFT["soft"], weight=float("nan"))


@pytest.mark.once
def test_the_example_runs():
    failed, attempted = doctest.testmod(steps)
    assert attempted
    assert not failed
