"""`codebook_matmul`: every implementation conforms; errors."""

from typing import Any

import jax.numpy as jnp
import pytest
from sparse_conformance import CodebookForm, CodebookMatmul

from jcompress.kernels import Implementation
from jcompress.kernels.codebook_matmul import codebook_matmul


class TestReference(CodebookForm):
    implementation = Implementation.REFERENCE


class TestXla(CodebookMatmul):
    implementation = Implementation.XLA


X, I, C = jnp.ones((2, 12)), jnp.zeros((6, 6), jnp.uint8), jnp.ones((1, 16))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X.astype(jnp.int8), I, C), r"x is floats \[..., K\], not int8"),
        ((X, I, jnp.ones((1, 257))), "C from 1 to 256, not float32"),
        ((X, I, C.astype(jnp.bfloat16)), "not bfloat16"),
        ((X, I, C[0]), r"codebook is float32 \[R, C\]"),
        ((X, I, jnp.ones((1, 17))), r"1 tables of 17 values, indices is uint8 \[N, 12"),
        ((X, I, jnp.ones((4, 16))), r"N a multiple of 4, not uint8 \[6, 6\]"),
        ((X, I.astype(jnp.int8), C), r"uint8 \[N, 6\] .*, not int8"),
    ],
)
def test_errors(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codebook_matmul(*args)
