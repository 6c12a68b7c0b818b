"""Stored probabilities against the whole ones: bytes, errors, what a file may be."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.distillation.logits import soft_targets
from jcompress.distillation.stored import keep_top, read_top, top_targets, write_top

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(10, 3, 50), scale=3).astype(np.float32)
STUDENT = jnp.asarray(RNG.normal(size=(10, 3, 50)), jnp.float32)


def softmax(z):
    z = np.exp(np.asarray(z, np.float64) - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def written(path, k=8, temperature=2.0):
    return write_top(
        path, (LOGITS[i : i + 4] for i in (0, 4, 8)), k=k, temperature=temperature
    )


def test_what_is_written_is_read(tmp_path):
    report = written(tmp_path / "top")
    stored, again = read_top(tmp_path / "top")
    assert again == report
    assert report.positions == 30
    # Two bytes for a class, two for a logarithm, four for what is left.
    assert report.stored_bytes == 30 * (8 * 4 + 4)
    assert report.stored_bytes == sum(
        file.stat().st_size for file in (tmp_path / "top").glob("*.bin")
    )
    assert report.dense_bytes == LOGITS.nbytes
    rows = np.array([7, 2, 9])
    batch = stored[rows]
    wanted = keep_top(jnp.asarray(LOGITS[rows]), 8, temperature=2.0)
    jax.tree.map(np.testing.assert_array_equal, batch, wanted)
    loss = top_targets(STUDENT[rows], batch)
    np.testing.assert_allclose(loss, top_targets(STUDENT[rows], wanted), rtol=1e-6)
    step = jax.jit(lambda student, batch: top_targets(student, batch).sum())
    np.testing.assert_allclose(step(STUDENT[rows], batch), loss.sum(), rtol=1e-5)


def test_errors_are_those_of_the_reconstruction(tmp_path):
    report = written(tmp_path / "top")
    p = softmax(LOGITS / 2)
    order = np.argsort(-p, axis=-1)[..., :8]
    kept = np.take_along_axis(p, order, axis=-1).sum(axis=-1)
    spread = np.repeat((1 - kept)[..., None] / 42, 50, axis=-1)
    np.put_along_axis(spread, order, np.take_along_axis(p, order, axis=-1), axis=-1)
    errors = (p * np.log(p / spread)).sum(axis=-1)
    np.testing.assert_allclose(report.kept, kept.mean(), rtol=1e-4)
    np.testing.assert_allclose(report.mean_error, errors.mean(), rtol=1e-2)
    np.testing.assert_allclose(report.largest_error, errors.max(), rtol=1e-2)


def test_the_more_is_stored_the_nearer_to_the_whole_loss():
    whole = soft_targets(STUDENT, LOGITS, temperature=2.0)
    loss = jax.jit(
        lambda k: top_targets(
            STUDENT, keep_top(jnp.asarray(LOGITS), k, temperature=2.0)
        ),
        static_argnums=0,
    )
    losses = [loss(k) for k in (1, 4, 16, 50)]
    for few, more in itertools.pairwise(losses):
        assert (few <= more + 2e-3).all()
    np.testing.assert_allclose(losses[-1], whole, rtol=5e-3, atol=2e-3)
    assert (losses[0] < 0.9 * whole).any()


def test_all_classes_leave_nothing_and_no_nan():
    top = keep_top(jnp.asarray(LOGITS[..., :4]), 4)
    slope = jax.grad(lambda s: top_targets(s, top).sum())(STUDENT[..., :4])
    q, p = softmax(np.asarray(STUDENT[..., :4])), softmax(LOGITS[..., :4])
    np.testing.assert_allclose(slope, q - p, atol=2e-3)


def test_many_classes_take_wider_numbers():
    top = keep_top(jnp.zeros((1, 2**16 + 1)), 2)
    assert top.indices.dtype == jnp.int32
    assert keep_top(jnp.zeros((1, 2**16)), 2).indices.dtype == jnp.uint16


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="k must be from 1 to 50 classes, not 51"):
        keep_top(jnp.asarray(LOGITS), 51)
    with pytest.raises(ValueError, match="above 0 and finite, not 0"):
        keep_top(jnp.asarray(LOGITS), 3, temperature=0.0)
    top = keep_top(jnp.asarray(LOGITS), 3)
    with pytest.raises(ValueError, match=r"\(10, 3, 49\), those stored \(10, 3, 50\)"):
        top_targets(STUDENT[..., :-1], top)
    with pytest.raises(ValueError, match="no finished stored logits"):
        read_top(tmp_path)
    with pytest.raises(ValueError, match="there are no logits"):
        write_top(tmp_path / "none", [], k=2)
    with pytest.raises(ValueError, match=r"a batch of shape \(2, 7\); all must be"):
        write_top(tmp_path / "two", [LOGITS[0], np.ones((2, 7), np.float32)], k=2)
    with pytest.raises(ValueError, match="no finished stored logits"):
        read_top(tmp_path / "two")
    written(tmp_path / "top")
    with pytest.raises(FileExistsError, match="holds stored logits already"):
        written(tmp_path / "top")
    file = tmp_path / "top" / "logs.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="must have 480 bytes"):
        read_top(tmp_path / "top")
