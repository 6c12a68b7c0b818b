"""Combiners, weights and measures of ensembles against NumPy in float64."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.ensembles import (
    calibration,
    calibration_error,
    combining,
    diversity,
    fit_stacker,
    fit_temperature,
    fit_weights,
    folds,
    majority_vote,
    mean_logits,
    mean_probabilities,
    members,
    stacking,
    weighting,
    weights_by_score,
)

Host = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 40, 5)).astype(np.float32) * 3
LABELS = RNG.integers(0, 5, 40)
WEIGHTS = np.array([0.5, 0.2, 0.3], np.float32)


def softmax(x: Host) -> Host:
    e = np.exp(np.asarray(x, np.float64) - np.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_means_and_votes(weights: Any, dtype: Any) -> None:
    logits = jnp.asarray(LOGITS, dtype)
    wide = np.asarray(logits, np.float64)
    shares = np.full(3, 1 / 3) if weights is None else weights.astype(np.float64)
    mixed = np.einsum("e,ebc->bc", shares, softmax(wide))
    found = jax.jit(lambda x: mean_probabilities(x, weights=weights))(logits)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.log(mixed), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        mean_logits(logits, weights=weights),
        np.einsum("e,ebc->bc", shares, wide),
        rtol=1e-4,
        atol=1e-5,
    )
    votes = np.zeros((40, 5))
    for e in range(3):
        for b in range(40):
            votes[b, wide[e, b].argmax()] += shares[e]
    np.testing.assert_allclose(majority_vote(logits, weights=weights), votes, atol=1e-6)


def test_impossible_classes_and_members_without_weight() -> None:
    logits = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0], [jnp.nan, jnp.nan]])
    first = mean_probabilities(logits[:2])
    np.testing.assert_allclose(jnp.exp(first), [0.5, 0.5], rtol=1e-6)
    alone = mean_probabilities(logits[:2], weights=jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(jnp.exp(alone), [1, 0])
    extreme = jnp.array([[3e38, -3e38], [1e30, 0.0]], jnp.bfloat16)
    assert not np.isnan(np.asarray(mean_probabilities(extreme))).any()


def test_learned_weights_are_the_best_on_a_grid() -> None:
    strength = np.array([4.0, 0.5, 0.0])
    logits = LOGITS + strength[:, None, None] * np.eye(5)[LABELS]
    found = np.asarray(fit_weights(jnp.asarray(logits), jnp.asarray(LABELS)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    chosen = softmax(logits)[:, np.arange(40), LABELS]

    def likely(weights: Host) -> float:
        return float(np.log(weights @ chosen).mean())

    best = max(
        likely(np.array([a, b, 1 - a - b]))
        for a in np.linspace(0, 1, 41)
        for b in np.linspace(0, 1 - a, 41)
    )
    assert likely(found.astype(np.float64)) >= best - 1e-4
    assert found[0] > 0.6
    # A label that all members call impossible changes nothing.
    never = np.concatenate([logits, np.tile([-1e4, 0, 0, 0, 0], (3, 1, 1))], axis=1)
    labels = jnp.asarray([*LABELS, 0])
    np.testing.assert_allclose(
        fit_weights(jnp.asarray(never, jnp.float32), labels), found, atol=0.05
    )


def test_weights_by_score() -> None:
    np.testing.assert_allclose(weights_by_score([0.5, 1.0]), [1 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(weights_by_score([0.5, 1.0], sharpness=0), [0.5, 0.5])
    sharp = weights_by_score([0.5, 1.0], sharpness=1e4)
    np.testing.assert_array_equal(sharp, [0, 1])


@pytest.mark.parametrize("hidden", [0, 4])
def test_stacking_learns_what_a_mean_cannot(hidden: int) -> None:
    # One member knows the class, another says the next one, the third nothing.
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 3, 400)
    wrong = np.eye(3)[(labels + 1) % 3] * 4 + draw.normal(size=(400, 3))
    right = np.eye(3)[labels] * 1.5 + draw.normal(size=(400, 3))
    logits = jnp.asarray(np.stack([right, wrong]), jnp.float32)
    first, last = logits[:, :200], logits[:, 200:]
    stacker = fit_stacker(
        first, jnp.asarray(labels[:200]), hidden=hidden, key=jax.random.key(0)
    )
    by_mean = np.asarray(mean_probabilities(last)).argmax(-1) == labels[200:]
    stacked = np.asarray(stacker(last)).argmax(-1) == labels[200:]
    assert stacked.mean() > 0.95 > 0.5 > by_mean.mean()
    assert stacker.inner.shape == (6, hidden)
    # With a large cost of every step away it is the mean of the log-probabilities.
    tied = fit_stacker(first, jnp.asarray(labels[:200]), decay=1e4)
    expected = np.log(softmax(np.asarray(last))).mean(0)
    np.testing.assert_allclose(tied(last), expected, atol=1e-2)


def test_folds_hold_everything_once() -> None:
    parts = folds(11, 3, key=jax.random.key(0))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))
    with pytest.raises(ValueError, match="2 examples do not make 3 folds"):
        folds(2, 3, key=jax.random.key(0))


def test_calibration_error_against_a_loop() -> None:
    probabilities = softmax(LOGITS[0])
    sure, said = probabilities.max(-1), probabilities.argmax(-1)
    total = 0.0
    for low in np.arange(10) / 10:
        inside = (sure > low) & (sure <= low + 0.1)
        if inside.any():
            gap = (said[inside] == LABELS[inside]).mean() - sure[inside].mean()
            total += inside.mean() * abs(gap)
    found = jax.jit(lambda x, y: calibration_error(x, y, bins=10))(LOGITS[0], LABELS)
    np.testing.assert_allclose(found, total, rtol=1e-5)


def test_the_temperature_is_the_most_likely_one() -> None:
    draw = np.random.default_rng(2)
    logits = draw.normal(size=(3000, 4)).astype(np.float32)
    labels = np.array([draw.choice(4, p=p) for p in softmax(logits)])
    # What is three times too sure needs a temperature of about 3.
    found = float(fit_temperature(jnp.asarray(3 * logits), jnp.asarray(labels)))
    assert 2.6 < found < 3.4

    def likely(heat: float) -> float:
        chosen = softmax(3 * logits.astype(np.float64) / heat)
        return float(np.log(chosen[np.arange(3000), labels]).mean())

    assert likely(found) >= max(likely(found * 0.99), likely(found * 1.01))
    # All right and all wrong have no best one: the ends of what is searched.
    sure = jnp.eye(4)
    assert float(fit_temperature(sure, jnp.arange(4))) < 0.002
    assert float(fit_temperature(sure, (jnp.arange(4) + 1) % 4)) > 1000


def test_diversity_against_loops() -> None:
    found = diversity(jnp.asarray(LOGITS))
    said = LOGITS.argmax(-1)
    pairs = [(said[a] != said[b]).mean() for a in range(3) for b in range(a)]
    np.testing.assert_allclose(found.disagreement, np.mean(pairs), rtol=1e-5)
    p = softmax(LOGITS)
    mean = p.mean(0)
    gain = -(mean * np.log(mean)).sum(-1).mean() + (p * np.log(p)).sum(-1).mean()
    np.testing.assert_allclose(found.information, gain, rtol=1e-4)
    same = diversity(jnp.asarray(np.tile(LOGITS[:1], (4, 1, 1))))
    np.testing.assert_allclose(same, (0, 0), atol=1e-6)
    assert diversity(jnp.asarray(LOGITS[:1])).disagreement == 0


X, Y = jnp.asarray(LOGITS), jnp.asarray(LABELS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mean_probabilities(Y), TypeError, "dtype int"),
        (lambda: mean_logits(X[0, 0]), ValueError, r"\[members, ..., classes\]"),
        (lambda: mean_logits(X, weights=[0.5, 0.5]), ValueError, r"give \[3\]"),
        (lambda: majority_vote(X, weights=[0.5, 0.5, 0.5]), ValueError, "sum to 1.5"),
        (lambda: mean_logits(X, weights=[2, -1, 0]), ValueError, "not negative"),
        (lambda: fit_weights(X[0], Y), ValueError, "not .members, examples, classes"),
        (lambda: fit_weights(X, Y[:3]), ValueError, "of 40 examples"),
        (lambda: fit_weights(X, Y + 5), ValueError, "with 5 classes they are 0 to 4"),
        (lambda: fit_weights(X, X[0, :, 0]), TypeError, "labels are of dtype float32"),
        (lambda: fit_weights(X, Y, steps=0), ValueError, "steps is an int of 1"),
        (lambda: weights_by_score([0.0, 0.0]), ValueError, "not all 0"),
        (lambda: weights_by_score([1.0], sharpness=-1), ValueError, "sharpness is 0"),
        (lambda: fit_stacker(X, Y, hidden=2), ValueError, "give a key"),
        (lambda: fit_stacker(X, Y, decay=-1), ValueError, "decay is 0 or more"),
        (lambda: fit_stacker(X, Y)(X[:2]), ValueError, "3 members of 5 classes"),
        (lambda: calibration_error(X, Y), ValueError, r"\[examples, classes\]"),
        (lambda: calibration_error(X[0], Y, bins=0), ValueError, "bins is 1 or more"),
        (lambda: fit_temperature(X[0], Y - 9), ValueError, "labels go from -9"),
    ],
)
def test_bad_input(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "module", [calibration, combining, members, stacking, weighting]
)
def test_the_examples_run(module: Any) -> None:
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed
