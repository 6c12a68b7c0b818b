"""Options out of range, banks, rules of layers, and examples that are the same."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.distillation import features, layers, relations
from jcompress.distillation.layers import evenly, first_layers, last_layers
from jcompress.errors import MismatchError
from jcompress.statistics import NamedScope, Output

RNG = np.random.default_rng(0)
BANK = relations.init_bank(jax.random.key(0), examples=6, size=4)
X = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
NEGATIVES = jnp.array([[1, 2], [3, 4], [5, 0]])


def test_a_bank_begins_with_directions():
    for side in BANK:
        np.testing.assert_allclose(jnp.linalg.norm(side, axis=1), 1, rtol=1e-5)
    assert jnp.abs(BANK.student - BANK.teacher).max() > 0.1


def test_rows_that_do_not_count_stay():
    where = jnp.array([True, False, True])
    dirty = X.at[1].set(jnp.nan)
    index = jnp.array([5, 1, 0])
    after = relations.update_bank(
        BANK, dirty, 2.0 * X, indices=index, momentum=0.0, where=where
    )
    unit = X / jnp.linalg.norm(X, axis=1, keepdims=True)
    for side, before in zip(after, BANK, strict=True):
        np.testing.assert_array_equal(side[1:5], before[1:5])
        np.testing.assert_allclose(side[jnp.array([5, 0])], unit[::2], rtol=1e-5)


def test_contrast_begins_at_chance():
    """Random pairs: each of K others is taken for the own one in 1 of K cases."""
    units = RNG.normal(size=(2, 4000, 16))
    units = units / np.linalg.norm(units, axis=-1, keepdims=True)
    bank = relations.Bank(*jnp.asarray(units, jnp.float32))
    index = jnp.arange(64)
    negatives = relations.draw_negatives(
        jax.random.key(2), index, count=512, examples=4000
    )
    student, teacher = units[:, 100:164]
    loss = relations.contrastive(
        jnp.asarray(student, jnp.float32),
        jnp.asarray(teacher, jnp.float32),
        bank=bank,
        negatives=negatives,
        temperature=0.2,
    )
    mean = np.exp(units[0] @ units[1].T / 0.2).mean()
    own = np.log1p(512 * mean / np.exp((student * teacher).sum(axis=1) / 0.2))
    np.testing.assert_allclose(loss.mean(), 2 * own.mean() + 2, rtol=0.02)


def run(**changed):
    given = {"bank": BANK, "negatives": NEGATIVES, **changed}
    return relations.contrastive(X, X, **given)


BAD = {
    "row": (
        lambda: run(negatives=NEGATIVES.at[0, 0].set(6)),
        ValueError,
        "the negatives go from 0 to 6, but the bank has rows from 0 to 5",
    ),
    "floats": (lambda: run(negatives=X), TypeError, "negatives are of dtype float32"),
    "rank": (lambda: run(negatives=NEGATIVES[0]), ValueError, r"needs \(3, K\)"),
    "cold": (lambda: run(temperature=0.0), ValueError, "above 0 and finite, not 0"),
    "width": (
        lambda: run(bank=relations.Bank(BANK.student[:, 1:], BANK.teacher[:, 1:])),
        ValueError,
        "the student is 4 wide and the bank 3; give projections",
    ),
    "projection": (
        lambda: run(projections=(jnp.ones((4, 4)), jnp.ones((4, 3)))),
        ValueError,
        r"the teacher's projection has shape \(4, 3\), .* need \(4, 4\)",
    ),
    "momentum": (
        lambda: relations.update_bank(BANK, X, X, indices=jnp.arange(3), momentum=1.5),
        ValueError,
        "momentum must be from 0 to 1",
    ),
    "indices": (
        lambda: relations.update_bank(BANK, X, X, indices=jnp.arange(2)),
        ValueError,
        r"indices have shape \(2,\)",
    ),
    "no others": (
        lambda: relations.draw_negatives(
            jax.random.key(0), jnp.arange(1), count=2, examples=1
        ),
        ValueError,
        "1 examples have no others",
    ),
    "empty bank": (
        lambda: relations.init_bank(jax.random.key(0), examples=0, size=4),
        ValueError,
        "0 examples",
    ),
    "heads": (
        lambda: relations.self_attention_relations(X[None], X[None], heads=3),
        ValueError,
        "the student's states have shape .* 3 heads divide",
    ),
    "no pair": (
        lambda: features.solution_flow(X, (X, X)),
        TypeError,
        "the student's features must be a pair",
    ),
    "positions": (
        lambda: features.solution_flow(
            (jnp.ones((1, 4, 2)), jnp.ones((1, 2, 2))),
            (jnp.ones((1, 4, 2)), jnp.ones((1, 2, 2))),
        ),
        ValueError,
        "pool the larger ones",
    ),
    "power": (
        lambda: features.attention_transfer(X[None], X[None], power=0),
        ValueError,
        "power must be a whole number from 1, not 0",
    ),
    "spread": (
        lambda: features.variational_information(X, X, spread=jnp.ones(3)),
        ValueError,
        r"spread has shape \(3,\), .* need \(4,\)",
    ),
    "queries": (
        lambda: features.attention_scores(
            jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 3, 4)), where=jnp.ones((1, 3), bool)
        ),
        ValueError,
        "there are 3 queries and 4 keys",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "loss",
    [
        relations.similarities,
        relations.relational_distances,
        relations.relational_angles,
        relations.neighbour_probabilities,
    ],
)
def test_examples_that_are_the_same_have_finite_gradients(loss):
    same = jnp.concatenate([X, X[:1], jnp.zeros((1, 4))])
    other = jnp.concatenate([X[::-1], X[:1], X[:1]])
    run = jax.jit(jax.value_and_grad(lambda s: loss(s, other).sum()))
    value, slope = run(same)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_layers_by_rules():
    teacher = list("abcdef")
    assert evenly(range(3), teacher) == [(0, "b"), (1, "d"), (2, "f")]
    assert evenly(range(4), teacher) == [(0, "b"), (1, "c"), (2, "e"), (3, "f")]
    assert first_layers(range(2), teacher) == [(0, "a"), (1, "b")]
    assert last_layers(range(2), teacher) == [(0, "e"), (1, "f")]
    for rule in (evenly, first_layers, last_layers):
        assert rule(range(6), teacher) == list(enumerate(teacher))
        with pytest.raises(ValueError, match=rf"{rule.__name__}: 7 layers .* 6 of"):
            rule(range(7), teacher)
        with pytest.raises(ValueError, match="the student one"):
            rule([], teacher)


def test_names_that_are_not_there():
    model = lambda params, x: x @ params["kernel"]  # noqa: E731
    given = {"kernel": jnp.ones((4, 2))}, X
    with pytest.raises(MismatchError, match="the nearest is 'kernel'"):
        jax.eval_shape(layers.with_values(model, [Output("kernle")]), *given)
    with pytest.raises(MismatchError, match="the scopes are none"):
        jax.eval_shape(layers.with_values(model, [NamedScope("a")]), *given)


@pytest.mark.once
def test_the_example_runs():
    failed, attempted = doctest.testmod(layers)
    assert attempted
    assert not failed
