"""Softened KL against NumPy in float64: values, gradients, limits, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.distillation.logits import (
    decoupled_targets,
    jensen_shannon,
    mixed_targets,
    normalized_targets,
    reverse_kl,
    smoothed_labels,
    soft_targets,
)

RNG = np.random.default_rng(0)


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def oracle(student, teacher, t):
    """Loss, and its gradient to the student's logits."""
    q, p = (log_softmax(np.asarray(z, np.float64) / t) for z in (student, teacher))
    with np.errstate(invalid="ignore"):
        loss = t**2 * np.where(p > -np.inf, np.exp(p) * (p - q), 0).sum(axis=-1)
    return loss, t * (np.exp(q) - np.exp(p))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(7,), (5, 10), (2, 3, 33)])
def test_values_and_gradients(shape, temperature):
    student, teacher = RNG.normal(size=(2, *shape), scale=3).astype(np.float32)
    loss = soft_targets(student, teacher, temperature=temperature)
    grad = jax.grad(lambda z: soft_targets(z, teacher, temperature=temperature).sum())
    wanted, wanted_grad = oracle(student, teacher, temperature)
    assert loss.shape == shape[:-1]
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad(student), wanted_grad, rtol=1e-4, atol=1e-5)


def test_equal_logits_cost_nothing():
    z = jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32)
    np.testing.assert_array_equal(soft_targets(z, z, temperature=3.0), jnp.zeros(4))
    moved = soft_targets(z + 5.0, z, temperature=3.0)
    np.testing.assert_allclose(moved, np.zeros(4), atol=1e-5)
    assert (soft_targets(z[::-1], z, temperature=3.0) > 0).all()


def test_no_gradient_to_the_teacher():
    z = jnp.asarray(RNG.normal(size=(2, 4, 6)), jnp.float32)
    grad = jax.grad(lambda t: soft_targets(z[0], t, temperature=2.0).sum())(z[1])
    np.testing.assert_array_equal(grad, jnp.zeros_like(z[1]))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite(size):
    student = jnp.array([[size, 0.0, -size], [0.0, size, 0.0]], jnp.float32)
    teacher = jnp.array([[-size, 0.0, size], [0.0, size, 0.0]], jnp.float32)
    loss, pull = jax.vjp(lambda z: soft_targets(z, teacher, temperature=1.0), student)
    np.testing.assert_allclose(loss, [2 * size, 0.0], rtol=1e-6)
    (grad,) = pull(jnp.ones(2))
    np.testing.assert_allclose(grad, [[1, 0, -1], [0, 0, 0]], atol=1e-6)


def test_impossible_classes_count_for_nothing():
    student = jnp.array([[1.0, 2.0, -jnp.inf, 0.5]])
    teacher = jnp.array([[0.0, 1.0, -jnp.inf, -jnp.inf]])
    fn = lambda z: soft_targets(z, teacher, temperature=2.0).sum()  # noqa: E731
    wanted, wanted_grad = oracle(student, teacher, 2.0)
    np.testing.assert_allclose(fn(student), wanted[0], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(fn)(student), wanted_grad, rtol=1e-5)


@pytest.mark.parametrize("temperature", [100.0, 1000.0])
def test_high_temperatures_match_logits(temperature):
    classes = 8
    student, teacher = RNG.normal(size=(2, 5, classes)).astype(np.float32)
    grad = jax.grad(lambda z: soft_targets(z, teacher, temperature=temperature).sum())
    centred = [z - z.mean(axis=-1, keepdims=True) for z in (student, teacher)]
    limit = (centred[0] - centred[1]) / classes
    error = np.abs(grad(student) - limit).max()
    assert error < 20 / temperature * np.abs(limit).max()
    assert error < 0.05 * np.abs(limit).max()


def test_temperature_may_be_traced():
    student, teacher = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    fn = jax.jit(lambda t: soft_targets(student, teacher, temperature=t))
    for t in (1.0, 5.0):
        got = fn(jnp.array(t, jnp.bfloat16))
        np.testing.assert_allclose(got, oracle(student, teacher, t)[0], rtol=1e-4)
    assert fn._cache_size() == 1


def test_bfloat16_is_computed_in_float32():
    student, teacher = (
        jnp.asarray(z, jnp.bfloat16) for z in RNG.normal(size=(2, 4, 1000))
    )
    loss = soft_targets(student, teacher, temperature=4.0)
    assert loss.dtype == jnp.float32
    wanted, wanted_grad = oracle(student, teacher, 4.0)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    grad = jax.grad(lambda z: soft_targets(z, teacher, temperature=4.0).sum())(student)
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        grad.astype(jnp.float32), wanted_grad, rtol=2**-7, atol=1e-6
    )


def test_mixed_dtypes_and_empty_batches():
    z = RNG.normal(size=(4, 6)).astype(np.float32)
    loss = soft_targets(jnp.asarray(z, jnp.bfloat16), z, temperature=1.0)
    assert loss.dtype == jnp.float32
    assert soft_targets(z[:0], z[:0], temperature=1.0).shape == (0,)


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "error", "text"),
    [
        ((4, 5), (4, 6), 1.0, ValueError, r"\(4, 5\), the teacher's \(4, 6\)"),
        ((4, 5), (5,), 1.0, ValueError, r"\(4, 5\), the teacher's \(5,\)"),
        ((), (), 1.0, ValueError, "scalar"),
        ((4, 0), (4, 0), 1.0, ValueError, "no classes"),
        ((4, 5), (4, 5), 0.0, ValueError, "above 0 and finite, not 0.0"),
        ((4, 5), (4, 5), -1, ValueError, "above 0"),
        ((4, 5), (4, 5), float("nan"), ValueError, "above 0"),
        ((4, 5), (4, 5), np.ones(4), ValueError, r"scalar, not of shape \(4,\)"),
    ],
)
def test_bad_input(student, teacher, temperature, error, text):
    with pytest.raises(error, match=text):
        soft_targets(jnp.ones(student), jnp.ones(teacher), temperature=temperature)


def test_integer_logits():
    with pytest.raises(TypeError, match="teacher's input is of dtype int32"):
        soft_targets(jnp.ones((2, 3)), jnp.ones((2, 3), jnp.int32), temperature=1.0)


LABELLED = {
    "smoothed": lambda s, y, **more: smoothed_labels(s, y, **more),
    "decoupled": lambda s, y, **more: decoupled_targets(
        s, s, labels=y, temperature=2.0, **more
    ),
    "normalized": lambda s, y, **more: normalized_targets(s, s, labels=y, **more),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_no_classes(name):
    loss, logits = LABELLED[name], jnp.ones((2, 4))
    for wrong in (4, -1):
        with pytest.raises(
            ValueError, match=f"the label {wrong} is no class; .*0 to 3"
        ):
            loss(logits, jnp.array([0, wrong]))
        traced = jax.jit(loss)(logits, jnp.array([0, wrong]))
        assert np.isnan(traced[1])
        assert not np.isnan(traced[0])
        # Where nothing counts stands any number, such as -1 for padding.
        loss(logits, jnp.array([0, wrong]), where=jnp.array([True, False]))
    with pytest.raises(TypeError, match="labels are of dtype float32"):
        loss(logits, jnp.ones(2))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\).* need \(2,\)"):
        loss(logits, jnp.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ((0.5, 0.6), "must not be negative and sum to 1"),
        ((1.5, -0.5), "must not be negative"),
        ((1.0,), r"shape \(1,\), but 2 teachers need \(2,\)"),
    ],
)
def test_weights_off_the_simplex(weights, text):
    z = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=text):
        mixed_targets(z, [z, z], weights=weights, temperature=1.0)


def test_options_out_of_range():
    z = jnp.ones((3, 4))
    for beta in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="beta must be between 0 and 1"):
            jensen_shannon(z, z, beta=beta)
    with pytest.raises(ValueError, match="smoothing must be from 0 to 1, not 2"):
        smoothed_labels(z, jnp.zeros(3, jnp.int32), smoothing=2)
    with pytest.raises(ValueError, match="there are no teachers"):
        mixed_targets(z, [], temperature=1.0)
    with pytest.raises(ValueError, match="at least 2 classes are needed"):
        decoupled_targets(
            z[:, :1], z[:, :1], labels=jnp.zeros(3, jnp.int32), temperature=1.0
        )


def test_jensen_shannon_lies_between_the_two_divergences():
    student, teacher = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    for loss, beta in ((soft_targets, 1e-3), (reverse_kl, 1 - 1e-3)):
        got = jensen_shannon(student, teacher, beta=beta) / 1e-3
        wanted = loss(student, teacher, temperature=1.0)
        np.testing.assert_allclose(got, wanted, rtol=0.02)


def test_classes_impossible_for_both():
    """Such as the padding of a vocabulary."""
    student, teacher = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    padded = [
        jnp.pad(z, ((0, 0), (0, 2)), constant_values=-jnp.inf)
        for z in (student, teacher)
    ]
    for loss in (soft_targets, reverse_kl, jensen_shannon):
        run = jax.value_and_grad(
            lambda s, t, loss=loss: loss(s, t, temperature=1.0).sum()
        )
        got, slope = run(*padded)
        wanted, wanted_slope = run(student, teacher)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        np.testing.assert_allclose(slope[:, :8], wanted_slope, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(slope[:, 8:], 0)
