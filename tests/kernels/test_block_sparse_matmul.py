"""`block_sparse_matmul`: every implementation conforms; errors; nothing dense."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from sparse_conformance import BlockSparseForm, BlockSparseMatmul

from jcompress.kernels import Implementation
from jcompress.kernels.block_sparse_matmul import block_sparse_matmul


class TestReference(BlockSparseForm):
    implementation = Implementation.REFERENCE


class TestXla(BlockSparseMatmul):
    implementation = Implementation.XLA


@pytest.mark.parametrize("rows", [2, 50])
def test_neither_the_product_nor_its_gradient_makes_the_weight_dense(rows: int) -> None:
    starts = jnp.arange(0, 9, dtype=jnp.int32)
    weight = (jnp.ones((8, 8, 8)), starts[:8], starts)

    def both(x: jax.Array) -> Any:
        return jax.vjp(
            lambda x: block_sparse_matmul(
                x, *weight, implementation=Implementation.XLA
            ),
            x,
        )[1](jnp.ones((rows, 64)))

    text = jax.jit(both).lower(jnp.ones((rows, 80))).as_text()
    assert not any(s in text for s in ("64x80x", "80x64x", "8x10x8x8x", "10x8x8x8x"))


X, B, C, S = (
    jnp.ones((2, 12)),
    jnp.ones((3, 2, 4)),
    jnp.zeros(3, jnp.int32),
    jnp.arange(4, dtype=jnp.int32),
)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X.astype(jnp.int8), B, C, S), r"x is floats \[..., K\], not int8"),
        ((X, B[0], C, S), r"\[B, bn, bk\] with B >= 1 .* not float32 \[2, 4\]"),
        ((X[:, :10], B, C, S), "bk a divisor of 10"),
        ((X, B[:0], C, S), "B >= 1"),
        ((X, B.astype(jnp.float16), C, S), "not float16"),
        ((X, B, C[:2], S), r"columns is int32 \[3\], one for each block"),
        ((X, B, C.astype(jnp.uint32), S), "columns is int32 .* not uint32"),
        ((X, B, C, S[:1]), r"starts is int32 \[N / 2 \+ 1\], not int32 \[1\]"),
        ((X, B, C, S, jnp.ones((6, 1))), "floats have none; blocks is float32"),
        ((X, B.astype(jnp.int8), C, S), r"int8 blocks need scales, float32 \[6, 1\]"),
        ((X, B.astype(jnp.int8), C, S, jnp.ones(6)), r"scales is float32 \[6, 1\]"),
    ],
)  # fmt: skip
def test_errors(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_sparse_matmul(*args)


def test_an_implementation_that_is_not_there() -> None:
    with pytest.raises(TypeError, match="implementation is None or one of"):
        block_sparse_matmul(X, B, C, S, implementation="xla")  # type: ignore[arg-type]
