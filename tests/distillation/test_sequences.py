"""Sampling from a decoder, and learning on what it wrote."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.distillation.logits import jensen_shannon, reverse_kl, smoothed_labels
from jcompress.distillation.sequences import on_policy, sample_tokens

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(5, 5), scale=2), jnp.float32)
TEACHER = jnp.asarray(RNG.normal(size=(5, 5), scale=2), jnp.float32)
NEXT = 20.0 * jnp.eye(5)[(jnp.arange(5) + 1) % 5]  # certain: one more
PROMPTS = jnp.array([[0, 1], [3, 2], [4, 4]])


def decoder(params, tokens):
    """A chain: each token depends on the one before."""
    return params[tokens]


def test_a_certain_decoder_counts_on():
    got = sample_tokens(decoder, NEXT, PROMPTS, length=4, key=jax.random.key(0))
    np.testing.assert_array_equal(
        got.tokens, [[0, 1, 2, 3, 4, 0], [3, 2, 3, 4, 0, 1], [4, 4, 0, 1, 2, 3]]
    )
    wanted = np.tile([False, True, True, True, True], (3, 1))
    np.testing.assert_array_equal(got.where, wanted)


def test_shorter_prompts_and_an_end():
    got = sample_tokens(
        decoder,
        NEXT,
        PROMPTS,
        length=3,
        key=jax.random.key(0),
        lengths=jnp.array([1, 2, 2]),
        end=4,
    )
    np.testing.assert_array_equal(
        got.tokens, [[0, 1, 2, 3, 4], [3, 2, 3, 4, 4], [4, 4, 0, 1, 2]]
    )
    np.testing.assert_array_equal(
        got.where,
        [
            [True, True, True, True],
            [False, True, True, False],
            [False, True, True, True],
        ],
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_tokens_come_as_often_as_they_are_likely(temperature):
    count = 4000
    got = jax.jit(
        lambda key: sample_tokens(
            decoder,
            TABLE,
            jnp.zeros((count, 1), jnp.int32),
            length=2,
            key=key,
            temperature=temperature,
        )
    )(jax.random.key(0))
    table = np.exp(np.asarray(TABLE, np.float64) / temperature)
    table = table / table.sum(axis=1, keepdims=True)
    for at, wanted in ((1, table[0]), (2, table[0] @ table)):
        often = np.bincount(got.tokens[:, at], minlength=5) / count
        np.testing.assert_allclose(often, wanted, atol=0.03)


def test_on_policy_is_the_loss_on_what_the_student_wrote():
    key = jax.random.key(3)
    loss = functools.partial(jensen_shannon, beta=0.3)
    run = lambda s, t: on_policy(  # noqa: E731
        decoder, s, decoder, t, PROMPTS, loss=loss, length=3, key=key
    )
    got = run(TABLE, TEACHER)
    tokens = np.asarray(
        sample_tokens(decoder, TABLE, PROMPTS, length=3, key=key).tokens
    )
    rows = tokens[:, 1:-1]  # the tokens after which one was chosen
    p, q = (
        np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        for z in np.asarray([TEACHER, TABLE], np.float64)
    )
    m = 0.3 * p + 0.7 * q
    by_row = 0.3 * (p * np.log(p / m)).sum(1) + 0.7 * (q * np.log(q / m)).sum(1)
    np.testing.assert_allclose(got, by_row[rows].mean(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(got, run(TABLE, TEACHER))  # a key, so it is pure
    slope = jax.grad(lambda t: run(TABLE, t).sum())(TEACHER)
    np.testing.assert_array_equal(slope, jnp.zeros_like(TEACHER))


def test_a_student_learns_on_its_own_sequences():
    prompts = jnp.asarray(RNG.integers(0, 5, (16, 1)))

    @jax.jit
    def step(params, key):
        loss = lambda p: on_policy(  # noqa: E731
            decoder, p, decoder, TEACHER, prompts, loss=reverse_kl, length=6, key=key
        ).mean()
        value, grad = jax.value_and_grad(loss)(params)
        return params - grad, value

    params, values = TABLE, []
    for number in range(60):
        params, value = step(params, jax.random.key(number))
        values.append(value)
    assert values[-1] < values[0] / 4


def test_sequences_of_the_teacher():
    """Distillation at the level of sequences: the teacher writes, the student reads."""
    got = sample_tokens(decoder, NEXT, PROMPTS, length=3, key=jax.random.key(0))
    loss = smoothed_labels(
        decoder(TABLE, got.tokens[:, :-1]), got.tokens[:, 1:], where=got.where
    )
    log = np.asarray(jax.nn.log_softmax(TABLE))
    tokens = np.asarray(got.tokens)
    wanted = -np.mean([log[tokens[:, i], tokens[:, i + 1]] for i in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_bad_input():
    run = functools.partial(sample_tokens, decoder, TABLE, key=jax.random.key(0))
    with pytest.raises(TypeError, match="prompts are of dtype float32"):
        run(jnp.ones((2, 2)), length=1)
    with pytest.raises(ValueError, match=r"shape \(2,\); they must be \[batch, tok"):
        run(jnp.ones(2, jnp.int32), length=1)
    with pytest.raises(ValueError, match="length must be a whole number from 1, not 0"):
        run(PROMPTS, length=0)
    with pytest.raises(ValueError, match="above 0 and finite"):
        run(PROMPTS, length=1, temperature=0.0)
    with pytest.raises(ValueError, match=r"lengths have shape \(2,\)"):
        run(PROMPTS, length=1, lengths=jnp.ones(2, jnp.int32))
