"""The cubic schedule against its equation, and magnitude scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.pruning.schedules import cubic_schedule
from jcompress.pruning.scores import score_by_magnitude


@pytest.mark.parametrize(
    ("initial", "final", "begin", "steps"), [(0.0, 0.8, 0, 10), (0.2, 0.95, 7, 30)]
)
def test_cubic_schedule_equals_its_equation(initial, final, begin, steps):
    schedule = cubic_schedule(
        initial_sparsity=initial, final_sparsity=final, begin=begin, steps=steps
    )
    for t in range(begin + steps + 5):
        past = np.clip((t - begin) / steps, 0, 1)
        wanted = final + (initial - final) * (1 - past) ** 3
        got = jax.jit(schedule)(jnp.array(t, jnp.int32))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert float(schedule(begin + steps)) == np.float32(final)


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
def test_cubic_schedule_refuses(bad):
    with pytest.raises(ValueError, match="cubic_schedule: "):
        cubic_schedule(**bad)


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
