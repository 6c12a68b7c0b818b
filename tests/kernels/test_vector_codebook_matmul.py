"""`vector_codebook_matmul`: every implementation conforms; errors."""

from typing import Any

import jax.numpy as jnp
import pytest
from sparse_conformance import VectorCodebookForm, VectorCodebookMatmul

from jcompress.kernels import Implementation
from jcompress.kernels.vector_codebook_matmul import vector_codebook_matmul


class TestReference(VectorCodebookForm):
    implementation = Implementation.REFERENCE


class TestXla(VectorCodebookMatmul):
    implementation = Implementation.XLA


X, C = jnp.ones((2, 12)), jnp.zeros((6, 1, 4), jnp.uint8)
T, S = jnp.ones((1, 16, 4)), jnp.ones((6, 1))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X.astype(jnp.int8), C, T, S), r"x is floats \[..., K\], not int8"),
        ((X, C, T[:, :15], S), r"C a power of 2 .*, not float32 \[1, 15, 4\]"),
        ((X, C, jnp.ones((5, 16, 4)), S), "M from 1 to 4"),
        ((X, C, jnp.ones((1, 16, 9)), S), "D from 1 to 8"),
        ((X, C, T[:, :1], S), "from 2 to 256"),
        ((X, C, T.astype(jnp.bfloat16), S), "not bfloat16"),
        ((X, C, jnp.ones((1, 32, 4)), S), r"codes is uint8 \[N, 1, 5\], not uint8"),
        ((X, C[..., :3], T, S), r"codes is uint8 \[N, 1, 4\], not uint8 \[6, 1, 3"),
        ((X, C.astype(jnp.int8), T, S), r"not int8 \[6, 1, 4\]"),
        ((X, C, T, S[:5]), r"scales is float32 \[6, 1\], not float32 \[5, 1\]"),
    ],
)
def test_errors(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vector_codebook_matmul(*args)
