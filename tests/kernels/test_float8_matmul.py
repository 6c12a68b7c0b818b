"""`float8_matmul`: every implementation conforms; errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Float8Matmul, normal, weight

from jcompress.formats import Float8
from jcompress.kernels import Implementation, _float8, float8_matmul
from jcompress.quantization import Weights

pytestmark = pytest.mark.bits


class TestReference(Float8Matmul):
    implementation = Implementation.REFERENCE


class TestXla(Float8Matmul):
    implementation = Implementation.XLA


F8 = jnp.float8_e4m3fn
X, Q, V, S = (
    jnp.ones((2, 12)),
    jnp.ones((2, 12), F8),
    jnp.ones((5, 12), F8),
    jnp.ones((5, 1)),
)


@pytest.mark.parametrize(
    ("args", "given", "message"),
    [
        ((X.astype(jnp.int8), V, S), {}, r"x is floats or float8_e4m3fn .* not int8"),
        ((X.astype(jnp.float8_e5m2), V, S), {}, "not float8_e5m2"),
        ((X, V.astype(jnp.int8), S), {}, r"float8_e4m3fn \[N, 12\].*Float8\(\)"),
        ((X, V, jnp.ones((5, 3))), {}, r"\[5 or 1, 1\], .*weight_only_matmul"),
        ((X, V, S), {"bias": jnp.ones(4)}, r"bias is float32 \[5\], not float32 \[4\]"),
        ((Q, V, S), {}, "x_scale is missing"),
        ((X, V, S), {"x_scale": jnp.ones(2)}, r"scalar or \[2, 1\], not float32 \[2\]"),
    ],
)  # fmt: skip
def test_errors(args: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        float8_matmul(*args, **given)


def test_blocks_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same memory, one after the other, whatever is left over; and mapped."""
    monkeypatch.setattr(_float8, "_BLOCK_BYTES", 2 * 64 * 9)
    values, _, _ = weight(40, 64, Weights(format=Float8()))
    both = jnp.stack([values, values[::-1]])
    for rows in (1, 3):
        x = normal((2, rows, 64), jnp.bfloat16)
        run = jax.jit(jax.vmap(_float8.dot_by_blocks))
        wide = np.asarray(both, np.float64).swapaxes(1, 2)
        expected = np.asarray(x, np.float64) @ wide
        np.testing.assert_allclose(run(x, both), expected, rtol=1e-5, atol=1e-2)
        one = jax.jit(_float8.dot_by_blocks).lower(x[0], values).compile()
        np.testing.assert_allclose(one(x[0], values), expected[0], rtol=1e-5, atol=1e-2)
        memory = one.memory_analysis()
        assert memory is not None
        # Two blocks of converted weights, and sums, but not five.
        assert memory.temp_size_in_bytes < 2 * 64 * 9 * 3


def test_there_is_no_kernel_of_our_own_for_a_cpu() -> None:
    with pytest.raises(NotImplementedError, match=r"has no Implementation\.CPU"):
        float8_matmul(X, V, S, implementation=Implementation.CPU)
