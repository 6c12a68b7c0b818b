"""`int8_matmul`: every implementation conforms; errors."""

from typing import Any

import jax.numpy as jnp
import pytest
from conformance import Int8Matmul

from jcompress.kernels import Implementation, int8_matmul


class TestReference(Int8Matmul):
    implementation = Implementation.REFERENCE


class TestXla(Int8Matmul):
    implementation = Implementation.XLA


X, Q, V, S, Z = (
    jnp.ones((2, 12)),
    jnp.ones((2, 12), jnp.int8),
    jnp.ones((5, 12), jnp.int8),
    jnp.ones((5, 1)),
    jnp.ones((5, 1), jnp.int8),
)


@pytest.mark.parametrize(
    ("args", "given", "message"),
    [
        ((X.astype(jnp.int32), V, S), {}, r"x is floats or int8 .* not int32"),
        ((X, V.astype(jnp.uint8), S), {}, r"values is int8 \[N, 12\].*numbers\)"),
        ((X, V, jnp.ones((5, 3))), {}, r"\[5 or 1, 1\], .*weight_only_matmul"),
        ((X, V, S, S), {}, r"zeros is int8 of the shape of scales"),
        ((X, V, S), {"bias": jnp.ones(4)}, r"bias is float32 \[5\], not float32 \[4\]"),
        ((X, V, S), {"bias": jnp.ones(5, jnp.int8)}, "not int8"),
        ((Q, V, S), {}, "x_scale is missing"),
        ((X, V, S), {"x_zero": jnp.ones(())}, "x_scale is missing"),
        ((X, V, S), {"x_bits": 16}, "x_bits is from 2 to 8, not 16"),
        ((X, V, S), {"x_scale": jnp.ones(2)}, r"scalar or \[2, 1\], not float32 \[2\]"),
        ((X, V, S), {"x_scale": jnp.ones((), jnp.bfloat16)}, "not bfloat16"),
        ((X, V, S), {"x_scale": jnp.ones(()), "x_zero": jnp.ones((2, 1))},
         r"x_zero is float32 of the shape of x_scale \[\]"),
    ],
)  # fmt: skip
def test_errors(args: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        int8_matmul(*args, **given)


def test_errors_of_what_follows() -> None:
    with pytest.raises(TypeError, match="then is an Elementwise or None, not 'relu'"):
        int8_matmul(X, V, S, then="relu")  # type: ignore[arg-type]
    for name in ("factor", "residual"):
        for wrong in (jnp.ones((2, 4)), jnp.ones((2, 5), jnp.bfloat16)):
            message = rf"{name} has the dtype and shape of the result, float32 \[2, 5\]"
            with pytest.raises(ValueError, match=message):
                int8_matmul(X, V, S, **{name: wrong})


def test_one_range_for_all_rows_may_have_any_size_one_shape() -> None:
    both = [
        int8_matmul(X, V, S, Z, x_scale=jnp.full(shape, 0.5))
        for shape in ((), (1, 1), (2, 1))
    ]
    assert bool((both[0] == both[1]).all() & (both[0] == both[2]).all())
