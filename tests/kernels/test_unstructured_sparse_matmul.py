"""`unstructured_sparse_matmul`: every implementation conforms; errors."""

from typing import Any

import jax.numpy as jnp
import pytest
from sparse_conformance import UnstructuredSparseForm, UnstructuredSparseMatmul

from jcompress.kernels import Implementation
from jcompress.kernels.unstructured_sparse_matmul import unstructured_sparse_matmul


class TestReference(UnstructuredSparseForm):
    implementation = Implementation.REFERENCE


class TestXla(UnstructuredSparseMatmul):
    implementation = Implementation.XLA


X, V, M = jnp.ones((2, 12)), jnp.ones(6), jnp.full((5, 2), 1, jnp.uint8)
S = jnp.arange(6, dtype=jnp.int32)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X.astype(jnp.int8), V, M, S), r"x is floats \[..., K\], not int8"),
        ((X, V[:0], M, S), r"\[V\] with V >= 1, not float32 \[0\]"),
        ((X, V.astype(jnp.float16), M, S), "not float16"),
        ((X, V, M[:, :1], S), r"12 inputs, mask is uint8 \[N, 2\], not uint8 \[5, 1\]"),
        ((X, V, M.astype(jnp.int8), S), "not int8"),
        ((X, V, M, S[:5]), r"starts is int32 \[6\], not int32 \[5\]"),
        ((X, V, M, S, jnp.ones((5, 1))), "floats have none"),
        ((X, V.astype(jnp.int8), M, S), r"int8 and uint8 values need scales"),
        ((X, V.astype(jnp.uint8), M, S), r"int8 and uint8 values need scales"),
        ((X, V.astype(jnp.int8), M, S, jnp.ones(5)), r"scales is float32 \[5, G\]"),
        ((X, V.astype(jnp.uint8), M, S, jnp.ones((5, 5))), r"where G divides 12, not"),
        ((X, V.astype(jnp.uint8), M, S, jnp.ones((4, 3))), r"scales is float32 \[5, G"),
    ],
)
def test_errors(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unstructured_sparse_matmul(*args)
