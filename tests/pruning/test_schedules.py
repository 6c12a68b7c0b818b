"""Schedules against their equations, and magnitude scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.pruning.schedules import (
    cosine_schedule,
    cubic_schedule,
    exponential_schedule,
    linear_schedule,
    one_shot_schedule,
)
from jcompress.pruning.scores import score_by_magnitude

EQUATIONS = {
    cubic_schedule: lambda i, f, x: f + (i - f) * (1 - x) ** 3,
    linear_schedule: lambda i, f, x: i + (f - i) * x,
    cosine_schedule: lambda i, f, x: i + (f - i) * (1 - np.cos(np.pi * x)) / 2,
    exponential_schedule: lambda i, f, x: 1 - (1 - i) * ((1 - f) / (1 - i)) ** x,
}


@pytest.mark.parametrize("make", EQUATIONS)
@pytest.mark.parametrize(
    ("initial", "final", "begin", "steps"), [(0.0, 0.8, 0, 10), (0.2, 0.95, 7, 30)]
)
def test_schedules_equal_their_equations(make, initial, final, begin, steps):
    schedule = make(
        initial_sparsity=initial, final_sparsity=final, begin=begin, steps=steps
    )
    times = np.arange(begin + steps + 5, dtype=np.int32)
    past = np.clip((times - begin) / steps, 0, 1)
    got = jax.jit(jax.vmap(schedule))(times)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
        got, EQUATIONS[make](initial, final, past), rtol=0, atol=1e-6
    )
    assert float(schedule(begin + steps)) == np.float32(final)


def test_one_shot_schedule_rises_at_its_step():
    schedule = one_shot_schedule(final_sparsity=0.9, initial_sparsity=0.1, step=3)
    got = jax.jit(jax.vmap(schedule))(np.arange(6, dtype=np.int32))
    np.testing.assert_array_equal(got, np.float32([0.1, 0.1, 0.1, 0.9, 0.9, 0.9]))
    with pytest.raises(ValueError, match="one_shot_schedule: "):
        one_shot_schedule(final_sparsity=0.9, step=-1)


@pytest.mark.parametrize("make", EQUATIONS)
@pytest.mark.parametrize(
    "bad",
    [
        {"final_sparsity": 1.0, "steps": 5},
        {"final_sparsity": 0.3, "initial_sparsity": 0.5, "steps": 5},
        {"final_sparsity": 0.3, "initial_sparsity": -0.5, "steps": 5},
        {"final_sparsity": 0.5, "steps": 0},
        {"final_sparsity": 0.5, "steps": 5, "begin": -1},
    ],
)
def test_schedules_refuse(make, bad):
    with pytest.raises(ValueError, match=f"{make.__name__}: "):
        make(**bad)


def test_magnitudes_are_float32_and_skip_what_is_no_float():
    params = {
        "w": jnp.array([-1.5, 0.0, 2.0], jnp.bfloat16),
        "steps": jnp.array(3),
        "none": None,
        "plain": np.array([-1.0], np.float32),
    }
    scores = score_by_magnitude(params)
    np.testing.assert_array_equal(scores["w"], np.array([1.5, 0, 2], np.float32))
    assert scores["w"].dtype == jnp.float32
    assert scores["steps"] is None
    assert scores["none"] is None
    assert scores["plain"].tolist() == [1.0]
