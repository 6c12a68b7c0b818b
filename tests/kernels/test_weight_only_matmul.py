"""`weight_only_matmul`: every implementation and form conforms; errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import WeightOnlyMatmul, normal, stored, weight

from jcompress.formats import Int
from jcompress.formats.packing import pack_bits
from jcompress.kernels import Implementation, weight_only_matmul
from jcompress.kernels.weight_only_matmul.xla import by_conversion, by_digits, splits
from jcompress.quantization import PerGroup, PerTensor, Weights


class TestReference(WeightOnlyMatmul):
    implementation = Implementation.REFERENCE


class TestXla(WeightOnlyMatmul):
    implementation = Implementation.XLA


def test_the_tests_store_as_the_library_does() -> None:
    for bits in (2, 3, 4, 8):
        values, _, _ = weight(5, 27, Weights(format=Int(bits)))
        np.testing.assert_array_equal(stored(values, bits), pack_bits(values, bits))


@pytest.mark.parametrize("form", [by_digits, by_conversion])
@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("spec", [PerTensor(), PerGroup(8), PerGroup(3)])
def test_each_form_at_any_size(form: Any, rows: int, bits: int, spec: Any) -> None:
    w = weight(7, 48, Weights(format=Int(bits, symmetric=False), granularity=spec))
    for dtype in (jnp.float32, jnp.bfloat16):
        x = normal((rows, 48), dtype)
        values, scales, zeros = w
        wide = jnp.broadcast_to(scales, (7, scales.shape[1]))
        moved = jnp.broadcast_to(zeros, wide.shape)
        run = jax.jit(form, static_argnames="bits")
        out = run(x, stored(values, bits), wide, moved, bits=bits)
        TestXla().check(x, w, bits, out.astype(dtype))


def test_three_digits_are_as_good_as_float32() -> None:
    w = weight(64, 512, Weights())
    x = normal((8, 512))
    exact = weight_only_matmul(x, *w, bits=8, implementation=Implementation.REFERENCE)
    out = by_digits(x, *w, bits=8)
    assert float(jnp.abs(out - exact).max() / jnp.abs(exact).max()) < 1e-6


def test_few_rows_read_the_weight_as_it_is_stored() -> None:
    """On a CPU no float matrix of the size of the weight appears in the program."""
    values, scales, _ = weight(256, 512, Weights())
    run = functools.partial(
        weight_only_matmul, bits=8, implementation=Implementation.XLA
    )
    few = jax.jit(run).lower(normal((4, 512)), values, scales).compile().as_text()
    assert "f32[256,512]" not in few
    many = jax.jit(run).lower(normal((300, 512)), values, scales).compile().as_text()
    assert "f32[256,512]" in many


def test_when_digits_are_used() -> None:
    assert splits(1, 4096, 1)
    assert splits(8, 4096, 32)
    assert not splits(256, 4096, 1)
    assert not splits(32, 4096, 32)
    assert not splits(1, 4096, 128)
    assert not splits(1, 1 << 20, 1)
    assert splits(96, 4096, 1, digits=1)
    assert not splits(97, 4096, 1, digits=1)


def test_inputs_beyond_one_int32_sum() -> None:
    inputs = 40_000
    values = jnp.full((2, inputs), 127, jnp.int8)
    x = jnp.ones((1, inputs))
    for x_bits in (None, 8):
        out = weight_only_matmul(x, values, jnp.ones((2, 1)), bits=8, x_bits=x_bits)
        np.testing.assert_allclose(out, 127.0 * inputs, rtol=1e-5)


X, V8, V4, S = (
    jnp.ones((2, 12)),
    jnp.ones((5, 12), jnp.int8),
    jnp.ones((5, 6), jnp.uint8),
    jnp.ones((5, 1)),
)


@pytest.mark.parametrize(
    ("args", "bits", "message"),
    [
        ((X, V8, S), 9, "bits is from 2 to 8, not 9"),
        ((X, V8, S), 3, r"12 inputs and 3 bits, values is uint8 \[N, 5\], not int8"),
        ((X, V8, S), 4, r"12 inputs and 4 bits, values is uint8 \[N, 6\], not int8"),
        ((X, V4, S), 8, r"values is int8 \[N, 12\], not uint8 \[5, 6\]"),
        ((X.astype(jnp.int32), V8, S), 8, r"x is floats \[..., K\], not int32"),
        ((jnp.float32(1), V8, S), 8, r"x is floats \[..., K\], not float32 \[\]"),
        ((X, V8[None], S), 8, r"not int8 \[1, 5, 12\]"),
        ((X, V8, jnp.ones((4, 1))), 8, r"scales is float32 \[5 or 1, G\]"),
        ((X, V8, jnp.ones((5, 7))), 8, "G a divisor of 12"),
        ((X, V8, S.astype(jnp.bfloat16)), 8, r"not bfloat16 \[5, 1\]"),
        ((X, V8, S, S), 8, r"zeros is int8 of the shape of scales \[5, 1\], not float"),
    ],
)  # fmt: skip
def test_errors(args: Any, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weight_only_matmul(*args, bits=bits)


def test_errors_of_what_follows() -> None:
    with pytest.raises(ValueError, match=r"bias is float32 \[5\], not float32 \[4\]"):
        weight_only_matmul(X, V8, S, bits=8, bias=jnp.ones(4))
    with pytest.raises(ValueError, match="factor has the dtype and shape"):
        weight_only_matmul(X, V8, S, bits=8, factor=jnp.ones(5))


def test_an_implementation_by_another_name() -> None:
    with pytest.raises(TypeError, match=r"implementation is None or one of .* 'xla'"):
        weight_only_matmul(X, V8, S, bits=8, implementation="xla")  # type: ignore[arg-type]


def test_x_bits_out_of_bounds() -> None:
    with pytest.raises(ValueError, match="x_bits is from 2 to 8, not 9"):
        weight_only_matmul(X, V8, S, bits=8, x_bits=9)
