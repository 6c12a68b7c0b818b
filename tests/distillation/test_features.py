"""Hidden-state losses against NumPy in float64: values, gradients, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.distillation.features import hidden_cosine, hidden_mse

RNG = np.random.default_rng(0)
LOSSES = [hidden_mse, hidden_cosine]


def oracle(loss, student, teacher, projection=None, mask=None):
    s, t = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    if projection is not None:
        s = s @ np.asarray(projection, np.float64)
    if loss is hidden_mse:
        each = ((s - t) ** 2).mean(axis=-1)
    else:
        norms = np.linalg.norm(s, axis=-1) * np.linalg.norm(t, axis=-1)
        each = 1 - (s * t).sum(axis=-1) / norms
    if mask is None:
        return each
    each = np.where(mask, each, 0)
    return each.sum(axis=-1) / np.maximum(mask.sum(axis=-1), 1)


def slopes(fn, x, step=1e-6):
    """Central differences in float64."""
    grad = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        grad[i] = (fn(up).sum() - fn(down).sum()) / (2 * step)
    return grad


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients(loss, projected, masked):
    student = RNG.normal(size=(3, 4, 5))
    teacher = RNG.normal(size=(3, 4, 6 if projected else 5))
    projection = RNG.normal(size=(5, 6)) if projected else None
    mask = RNG.random((3, 4)) < 0.6 if masked else None
    if masked:
        mask[0] = False
    options = {} if mask is None else {"where": jnp.asarray(mask)}

    def ours(s, w):
        w = None if w is None else w
        return loss(s, jnp.asarray(teacher, jnp.float32), projection=w, **options)

    s = jnp.asarray(student, jnp.float32)
    w = None if projection is None else jnp.asarray(projection, jnp.float32)
    got = ours(s, w)
    assert got.shape == ((3,) if masked else (3, 4))
    np.testing.assert_allclose(
        got, oracle(loss, student, teacher, projection, mask), rtol=1e-5, atol=1e-6
    )
    grad = jax.jit(jax.grad(lambda s: ours(s, w).sum()))(s)
    wanted = slopes(lambda x: oracle(loss, x, teacher, projection, mask), student)
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)
    if projected:
        grad = jax.grad(lambda w: ours(s, w).sum())(w)
        wanted = slopes(lambda x: oracle(loss, student, teacher, x, mask), projection)
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_has_no_effect_even_if_not_finite(loss):
    student, teacher = RNG.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = jnp.array([[True, True, False], [True, False, False]])
    dirty = [np.where(mask[..., None], x, np.nan) for x in (student, teacher)]
    run = lambda s, t: loss(s, t, where=mask).sum()  # noqa: E731
    value, grad = jax.value_and_grad(run)(jnp.asarray(dirty[0]), dirty[1])
    clean, clean_grad = jax.value_and_grad(run)(jnp.asarray(student), teacher)
    assert value == clean
    np.testing.assert_array_equal(grad, clean_grad)
    assert not grad[~mask].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_to_the_teacher(loss):
    student, teacher = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
    grad = jax.grad(lambda t: loss(student, t).sum())(teacher)
    np.testing.assert_array_equal(grad, jnp.zeros_like(teacher))


def test_cosine_at_zero_and_at_extremes():
    teacher = jnp.array([[3.0, 4.0]], jnp.float32)
    cost = lambda s: hidden_cosine(s, teacher).sum()  # noqa: E731
    zero = jnp.zeros((1, 2))
    assert cost(zero) == 1
    np.testing.assert_array_equal(jax.grad(cost)(zero), zero)
    for scale in (1e-30, 1e-10, 1e30):
        np.testing.assert_allclose(cost(teacher * scale), 0, atol=1e-6)
        np.testing.assert_allclose(cost(teacher * -scale), 2, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_is_accumulated_in_float32(loss):
    student, teacher = (
        jnp.asarray(x, jnp.bfloat16) for x in RNG.normal(size=(2, 4, 4096))
    )
    got = loss(student, teacher)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, oracle(loss, student, teacher), rtol=1e-5)
    grad = jax.grad(lambda s: loss(s, teacher).sum())(student)
    assert grad.dtype == jnp.bfloat16


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("student", "teacher", "projection", "mask", "text"),
    [
        ((2, 3, 4), (2, 5, 4), None, None, "all axes but the last must agree"),
        ((2, 4), (2, 6), None, None, r"4 wide .* 6; give a projection .*\(4, 6\)"),
        ((2, 4), (2, 6), (6, 4), None, r"shape \(6, 4\), .* need \(4, 6\)"),
        ((2, 3, 4), (2, 3, 4), None, (3, 2), r"where has shape \(3, 2\).*\(2, 3\)"),
        ((4,), (4,), None, (), "at least one axis"),
        ((2, 0), (2, 0), None, None, "empty"),
        ((), (), None, None, "scalar"),
    ],
)
def test_bad_shapes(loss, student, teacher, projection, mask, text):
    with pytest.raises(ValueError, match=f"{loss.__name__}: .*{text}"):
        loss(
            jnp.ones(student),
            jnp.ones(teacher),
            projection=None if projection is None else jnp.ones(projection),
            where=None if mask is None else jnp.ones(mask, bool),
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_dtypes(loss):
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="student's input is of dtype int32"):
        loss(x.astype(jnp.int32), x)
    with pytest.raises(TypeError, match="where is of dtype float32; it must be bool"):
        loss(x, x, where=jnp.ones(2))
