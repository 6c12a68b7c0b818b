"""Many small systems against NumPy's, one by one."""

import jax
import numpy as np
import pytest

from jcompress.rounding.solving import solve_each


@pytest.mark.parametrize("triangular", [False, True])
def test_against_numpy(triangular):
    random = np.random.default_rng(0)
    a = random.normal(size=(3, 4, 6, 9))
    a = np.einsum("abik,abjk->abij", a, a) + 0.1 * np.eye(6)
    if triangular:
        a = np.linalg.cholesky(a)
    b = random.normal(size=(3, 4, 6, 2))
    got = jax.jit(solve_each)(np.float32(a), np.float32(b))
    wanted = np.linalg.solve(a, b)
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-3)
    again = np.einsum("abij,abjk->abik", a, np.float64(got))
    np.testing.assert_allclose(again, b, atol=2e-4)


def test_no_lapack_in_the_program():
    shapes = [jax.ShapeDtypeStruct((8, n, m), np.float32) for n, m in ((5, 5), (5, 3))]
    text = jax.jit(solve_each).lower(*shapes).as_text()
    assert "lapack" not in text
