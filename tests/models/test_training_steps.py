"""`train` and `distil`, the steps of `jcompress.compress` that train."""

import dataclasses
import doctest
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jcompress as jc
from jcompress.checkpoint import CheckpointError
from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.leaves import named_leaves
from jcompress.models import Step, Work, recipes
from jcompress.models.recipes import distil, train
from jcompress.pruning import NM
from jcompress.pruning.one_shot import Magnitude, OneShot
from jcompress.quantization import Quantize, Weights, fake_quant, quantize
from jcompress.sites import find_sites
from jcompress.tensors import LowRank, NMSparse, QTensor

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
SGD = optax.sgd
X = RNG.normal(size=(6, 16, 32)).astype(np.float32)
PARAMS = {
    "up": jnp.asarray(RNG.normal(size=(32, 24)).astype(np.float32) / 6),
    "down": jnp.asarray(RNG.normal(size=(24, 5)).astype(np.float32) / 5),
}
LABELS = RNG.integers(0, 5, (6, 16)).astype(np.int32)
BATCHES = [(x, y) for x, y in zip(X, LABELS, strict=True)]
FEW = [(..., Quantize(weights=Weights(format=Int(3))))]

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def model(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def compress(*steps, **more):
    given = {"training": BATCHES, "loss": cross_entropy, "measure": False, **more}
    return jc.compress((model, PARAMS), X[0], *steps, **given)


def loop(fn, params, order, loss, rate=0.1):
    """Plain gradient descent, one batch after the other."""
    losses = []
    for number in order:
        value, gradients = jax.value_and_grad(
            lambda p, n=number: jnp.mean(loss(fn(p, X[n]), n))
        )(params)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
    return params, losses


def order(steps, *, seed=0, training=0):
    """The batches as the docstring has it: another order each pass."""
    found = []
    for number in range(-(-steps // 6)):
        found += list(np.random.default_rng([seed, training, number]).permutation(6))
    return found[:steps]


def test_what_was_quantized_is_trained_with_its_rounding_and_stored():
    constant = optax.constant_schedule(0.1)
    step = train(steps=9, learning_rate=constant, optimizer=SGD)
    small = compress(FEW, step)
    wanted, losses = loop(
        fake_quant(model, FEW),
        PARAMS,
        order(9),
        lambda o, n: cross_entropy(o, LABELS[n]),
    )
    stored = quantize(wanted, FEW, sites=find_sites(model, PARAMS, X[0]))
    for name in PARAMS:
        assert isinstance(small.params[name], QTensor)
        found, known = (tree[name].dense() for tree in (small.params, stored))
        # A weight on the edge between two integers may fall to either side.
        assert np.isclose(found, known, atol=1e-5).mean() > 0.995
    (curve,) = small.curves
    assert (curve.name, curve.steps, curve.ends) == ("train", 9, tuple(range(1, 10)))
    np.testing.assert_allclose(curve.losses["total"], losses, rtol=1e-4)
    # The function that was trained is the one that is run.
    simulated = fake_quant(model, FEW)(PARAMS, X[0])
    np.testing.assert_allclose(compress(FEW)(X[0]), simulated, rtol=1e-5, atol=1e-5)


def test_before_the_step_that_quantizes_floats_are_trained_and_zeros_stay():
    constant = optax.constant_schedule(0.1)
    rules = [(..., OneShot(method=Magnitude(), pattern=NM(2, 4)))]
    for prune in (jc.nm(2, 4), rules):
        step = distil(steps=8, learning_rate=constant, optimizer=SGD, temperature=3)
        small = compress(prune, step, jc.w8() if prune is not rules else FEW)
        begun = jc.compress((model, PARAMS), X[0], prune, measure=False).params
        begun = {
            n: jnp.asarray(p.dense() if isinstance(p, NMSparse) else p)
            for n, p in begun.items()
        }
        masks = {name: np.asarray(leaf) != 0 for name, leaf in begun.items()}
        teacher = [model(PARAMS, x) for x in X]

        def loss(outputs, n, teacher=teacher):
            told = jax.nn.softmax(teacher[n] / 3)
            said = jax.nn.log_softmax(outputs / 3)
            return 9 * jnp.sum(told * (jnp.log(told) - said), axis=-1)

        def masked(params, x, masks=masks):
            zeros = {n: jnp.where(masks[n], p, 0.0) for n, p in params.items()}
            return model(zeros, x)

        wanted, losses = loop(masked, begun, order(8), loss)
        np.testing.assert_allclose(
            small.curves[0].losses["soft targets"], losses, rtol=1e-3
        )
        for name, leaf in small.params.items():
            assert ((leaf.dense() != 0) <= masks[name]).all()
            near = np.where(masks[name], wanted[name], 0)
            far = 0.01 if prune is not rules else 0.3
            assert np.abs(leaf.dense() - near).max() < far * np.abs(near).max()


def test_widths_factors_and_squares():
    step = functools.partial(distil, steps=60, squares=True, learning_rate=5e-3)
    for before in (jc.half_width(), jc.svd(parameters=0.4)):
        first = jc.compress((model, PARAMS), X[0], before, measure=False)
        small = compress(before, step())
        told = model(PARAMS, X[2])
        one, two = (float(jnp.sum((each(X[2]) - told) ** 2)) for each in (first, small))
        assert two < 0.8 * one
    assert isinstance(small.params["up"], LowRank)
    teacher, student = model(PARAMS, X[1]), first(X[1])
    apart = jnp.mean((teacher - student) ** 2) / jnp.mean(teacher**2)
    batch = [(X[1], LABELS[1])]
    begun = compress(before, step(steps=1), training=batch)
    np.testing.assert_allclose(begun.curves[0].losses["squares"], apart, rtol=1e-4)


def test_weights_of_both_losses_and_two_trainings():
    first, second = train(steps=30), distil(steps=30, weight=0.75, seed=3)
    small = compress(FEW, first, second)
    one, two = small.curves
    assert (one.name, two.name) == ("train", "distil")
    assert set(two.losses) == {"soft targets", "targets", "total"}
    parts = [
        0.75 * a + 0.25 * b
        for a, b in zip(two.losses["soft targets"], two.losses["targets"], strict=True)
    ]
    np.testing.assert_allclose(parts, two.losses["total"], rtol=1e-5)
    assert len(two.ends) == 25
    assert (two.ends[0], two.ends[-1]) == (1, 30)
    assert isinstance(small.params["up"], QTensor)
    assert "train: 30 steps, loss " in str(small)
    again = compress(FEW, first, distil(steps=3), train(steps=3))
    assert [curve.name for curve in again.curves] == ["train", "distil", "train 2"]


def test_without_labels_it_learns_from_the_data():
    small = jc.compress(
        (model, PARAMS), X[0], FEW, distil(steps=40), data=list(X[1:]), measure=False
    )
    first, *_, last = small.curves[0].losses["total"]
    assert last < 0.5 * first


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))
        return nn.Dense(5)(x)


class NormedNnx(nnx.Module):
    def __init__(self, rngs):
        self.a, self.n = nnx.Linear(32, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.d, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.d(self.n(self.a(x))))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_running_statistics_stay_as_they_are(kind):
    if kind == "linen":
        given = Normed(), Normed().init(jax.random.key(0), X[0])
    else:
        given = NormedNnx(nnx.Rngs(0))
    small = jc.compress(
        given,
        X[0],
        FEW,
        train(steps=20, learning_rate=1e-2),
        training=BATCHES,
        loss=cross_entropy,
        measure=False,
    )
    before, after = (dict(named_leaves(t)) for t in (small.dense.params, small.params))
    kept = [n for n in before if "mean" in n or "var" in n or "rngs" in n]
    assert len(kept) >= 2
    for name in kept:
        assert before[name] is after[name] or (before[name] == after[name]).all()
    changed = [
        n
        for n in before
        if n not in kept and n in after and not isinstance(after[n], QTensor)
    ]
    assert any((before[n] != after[n]).any() for n in changed)
    assert small.curves[0].losses["total"][-1] < small.curves[0].losses["total"][0]


def test_an_interrupted_training_ends_with_the_same_numbers(tmp_path):
    steps = [jc.nm(2, 4), jc.w8(), train(steps=30), distil(steps=30, weight=0.5)]
    whole = compress(*steps)
    told = []

    class Stop(Exception):
        pass

    def stops(name, done, total, note):
        told.append((name, done))
        if note and (name, done) in (("train", 7), ("distil", 3)):
            raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            compress(*steps, resume=tmp_path / "kept", tell=stops)
    told.clear()
    small = compress(*steps, resume=tmp_path / "kept", tell=lambda *a: told.append(a))
    assert [each[:2] for each in told[:3]] == [
        ("train", 25),
        ("distil", 3),
        ("distil", 4),
    ]
    assert small.curves[0].losses == whole.curves[0].losses
    assert small.curves[1].losses == whole.curves[1].losses
    for a, b in zip(*map(jax.tree.leaves, (small.params, whole.params)), strict=True):
        np.testing.assert_array_equal(a, b)

    others = {
        "recipe": {"steps": [*steps[:3], distil(steps=30, weight=0.25)]},
        "list of batches": {"training": BATCHES[:5]},
    }
    for what, change in others.items():
        with pytest.raises(CheckpointError, match=f"training of another {what}"):
            compress(*change.pop("steps", steps), resume=tmp_path / "kept", **change)
    other = (model, jax.tree.map(lambda leaf: leaf + 1, PARAMS))
    with pytest.raises(CheckpointError, match="training of another model"):
        jc.compress(
            other,
            X[0],
            *steps,
            training=BATCHES,
            loss=cross_entropy,
            resume=tmp_path / "kept",
            measure=False,
        )


class Stored(Step):
    def apply(self, work: Work) -> Work:
        small = quantize(work.params, FEW, sites=work.sites)
        return dataclasses.replace(work, params=small)


WRONG = {
    "first": ([distil(steps=3)], {}, "no step before it makes the"),
    "no loss": (
        [jc.w8(), train(steps=3)],
        {"loss": None},
        "2, train: there is no loss",
    ),
    "no part": (
        [jc.w8(), distil(steps=3, weight=0.7)],
        {"loss": None},
        "which have 0.3; give",
    ),
    "nothing": ([jc.w8(), train(steps=3)], {"training": []}, "nothing to learn from"),
    "matrix": (
        [jc.w8(), train(steps=3)],
        {"loss": lambda o, t: o.sum(axis=0)},
        "or one or more",
    ),
    "stored": (
        [Stored(), train(steps=3)],
        {},
        "'down' is stored as QTensor and has no copy",
    ),
    "pattern": (
        [jc.nm(2, 4), jc.w4(), train(steps=10**9)],
        {},
        "is quantized with 4 bits",
    ),
    "rate": (
        [jc.w8(), train(steps=9, learning_rate=1e30)],
        {},
        "train: the loss is (inf|nan) at",
    ),
    "axis": (
        [jc.w8(), train(steps=3)],
        {"training": [(X[0], LABELS[0, :3])]},
        "the same first axis",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_said_before_it_is_trained(name):
    steps, change, message = WRONG[name]
    with pytest.raises((ValueError, MismatchError), match=message):
        compress(*steps, **change)


def test_outputs_that_are_no_logits():
    def two(params, x):
        return model(params, x), x

    with pytest.raises(ValueError, match="squares = true takes any"):
        jc.compress((two, PARAMS), X[0], FEW, distil(steps=3), training=BATCHES)
    small = jc.compress(
        (two, PARAMS),
        X[0],
        FEW,
        distil(steps=3, squares=True),
        training=BATCHES,
        measure=False,
    )
    assert small.curves[0].losses["squares"][-1] > 0


def test_the_example_of_the_docstring():
    failed, attempted = doctest.testmod(recipes)
    assert (failed, attempted) == (0, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train(steps=0), "steps are at least 1, not 0"),
        (lambda: train(steps=3, learning_rate=-0.1), "learning_rate is above 0"),
        (lambda: train(steps=3, learning_rate=float("nan")), "is above 0 and finite"),
        (lambda: train(steps=3, seed=-1), "seed is not negative"),
        (lambda: distil(steps=3, weight=0), "weight is above 0 and at most 1, not 0"),
        (lambda: distil(steps=3, temperature=0.0), "temperature is above 0"),
        (lambda: distil(steps=3, temperature=2.0, squares=True), "have no temperature"),
        (lambda: train(steps=3, optimizer=optax.lbfgs), "optimizer cannot be used"),
        (lambda: train(steps=3, optimizer=lambda rate: 3), "is what makes one from"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
