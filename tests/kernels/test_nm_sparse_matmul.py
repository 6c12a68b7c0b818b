"""`nm_sparse_matmul`: every implementation conforms; errors."""

from typing import Any

import jax.numpy as jnp
import pytest
from sparse_conformance import NMSparseForm, NMSparseMatmul

from jcompress.kernels import Implementation
from jcompress.kernels.nm_sparse_matmul import nm_sparse_matmul


class TestReference(NMSparseForm):
    implementation = Implementation.REFERENCE


class TestXla(NMSparseMatmul):
    implementation = Implementation.XLA


X, V, M = jnp.ones((2, 12)), jnp.ones((5, 6)), jnp.full((5, 2), 3, jnp.uint8)


@pytest.mark.parametrize(
    ("args", "n", "m", "message"),
    [
        ((X, V, M), 4, 4, "1 <= n < m, not n = 4, m = 4"),
        ((X.astype(jnp.int8), V, M), 2, 4, r"x is floats \[..., K\], not int8"),
        ((X, V, M), 1, 4, r"12 inputs and 1:4, values is .* \[N, 3\], not .* \[5, 6\]"),
        ((X, V.astype(jnp.float16), M), 2, 4, "not float16"),
        ((X, V, M[:4]), 2, 4, r"mask is uint8 \[5, 2\], not uint8 \[4, 2\]"),
        ((X, V, M.astype(jnp.int8)), 2, 4, "not int8"),
        ((X, V, M, jnp.ones((5, 1))), 2, 4, "floats have none"),
        ((X, V.astype(jnp.int8), M), 2, 4, r"int8 values need scales"),
        ((X, V.astype(jnp.int8), M, jnp.ones(5)), 2, 4, r"scales is float32 \[5, 1\]"),
    ],
)
def test_errors(args: Any, n: int, m: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nm_sparse_matmul(*args, n=n, m=m)
