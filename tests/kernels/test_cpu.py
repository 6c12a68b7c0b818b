"""The compiled kernels for CPUs conform; sizes at the edges of what they cut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Int8Matmul, WeightOnlyMatmul, normal, stored, weight

from jcompress.formats import Int
from jcompress.kernels import (
    Implementation,
    _native,
    int8_matmul,
    weight_only_matmul,
)
from jcompress.quantization import PerChannel, PerGroup, Weights

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(bool(_native.missing()), reason=_native.missing()),
]


class TestInt8Matmul(Int8Matmul):
    implementation = Implementation.CPU


class TestWeightOnlyMatmul(WeightOnlyMatmul):
    implementation = Implementation.CPU

    def run(self, x: jax.Array, *arrays: Any, bits: int, **given: Any) -> jax.Array:
        """Groups that no instruction set takes, and float8, are left to XLA."""
        size = x.shape[-1] // arrays[1].shape[-1]
        why = f"groups of {size} inputs" if size % 4 and x.shape[-1] > size else ""
        if arrays[0].dtype == jnp.float8_e4m3fn:
            why = "takes no float8 weights"
        if why:
            with pytest.raises(NotImplementedError, match=why):
                super().run(x, *arrays, bits=bits, **given)
            return weight_only_matmul(x, *arrays, bits=bits, **given)
        return super().run(x, *arrays, bits=bits, **given)


# Rows at the edges of a tile, outputs of a quad, inputs of a step of any vector.
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 13])
@pytest.mark.parametrize("inputs", [64, 127, 512, 1030])
@pytest.mark.parametrize("outputs", [3, 8])
def test_edges_of_what_is_cut(rows: int, inputs: int, outputs: int) -> None:
    x = normal((rows, inputs))
    for bits in (2, 3, 4, 8):
        w = weight(outputs, inputs, Weights(format=Int(bits, symmetric=False)))
        given = {"bits": bits, "implementation": Implementation.CPU}
        out = weight_only_matmul(x, stored(w[0], bits), *w[1:], **given)
        TestWeightOnlyMatmul().check(x, w, bits, out)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("x_bits", [None, 8])
def test_groups_in_a_step_and_steps_in_a_group(
    bits: int, size: int, symmetric: bool, x_bits: int | None
) -> None:
    spec = Weights(format=Int(bits, symmetric=symmetric), granularity=PerGroup(size))
    w = weight(6, 768, spec)
    for rows in (1, 7) if x_bits is None else (1, 3, 5, 8, 16):
        x = normal((rows, 768))
        given = {"bits": bits, "x_bits": x_bits, "implementation": Implementation.CPU}
        out = weight_only_matmul(x, stored(w[0], bits), *w[1:], **given)
        TestWeightOnlyMatmul().check(x, w, bits, out, x_bits)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("size", [None, 32, 512])
@pytest.mark.parametrize("x_bits", [None, 8])
def test_rows_across_the_lanes(bits: int, size: int | None, x_bits: int | None) -> None:
    """From some rows on the weight is unpacked, in blocks of up to 512 inputs."""
    kind = PerChannel() if size is None else PerGroup(size)
    inputs = 1030 if size is None else 1024
    spec = Weights(format=Int(bits, symmetric=size == 512), granularity=kind)
    w = weight(101, inputs, spec)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = normal((47, inputs), dtype)
        given = {"bits": bits, "x_bits": x_bits, "implementation": Implementation.CPU}
        out = weight_only_matmul(x, stored(w[0], bits), *w[1:], **given)
        TestWeightOnlyMatmul().check(x, w, bits, out, x_bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [None, 32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_by_strips_of_the_weight(
    bits: int, size: int | None, symmetric: bool
) -> None:
    """Outputs and rows that fill no strip, inputs that fill no block."""
    kind = PerChannel() if size is None else PerGroup(size)
    inputs = 301 if size is None else 640
    spec = Weights(format=Int(bits, symmetric=symmetric), granularity=kind)
    w = weight(37, inputs, spec)
    for rows in (24, 31, 64, 67):
        x = normal((rows, inputs))
        given = {"bits": bits, "x_bits": 8, "implementation": Implementation.CPU}
        out = weight_only_matmul(x, stored(w[0], bits), *w[1:], **given)
        TestWeightOnlyMatmul().check(x, w, bits, out, 8)


def test_many_rows_in_blocks_of_the_caches() -> None:
    # 100 rows of three digits fill several blocks of rows and of inputs.
    w = weight(9, 5000, Weights())
    x = normal((100, 5000))
    out = weight_only_matmul(x, *w, bits=8, implementation=Implementation.CPU)
    TestWeightOnlyMatmul().check(x, w, 8, out)


def test_the_rounding_of_activations_is_that_of_the_reference() -> None:
    w = weight(5, 300, Weights(granularity=PerChannel()))
    x = normal((40, 300)) * jnp.exp(normal((40, 1), seed=3))
    one = int8_matmul(x, *w, implementation=Implementation.CPU)
    two = jax.jit(int8_matmul, static_argnames="implementation")(
        x, *w, implementation=Implementation.REFERENCE
    )
    # The sums are exact, so that only a float of another rounding could differ.
    np.testing.assert_allclose(one, two, rtol=3e-7)
