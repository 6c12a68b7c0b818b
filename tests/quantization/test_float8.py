"""8-bit floats: their arithmetic against `ml_dtypes`, and how they are stored."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jcompress.formats import Float8
from jcompress.quantization import (
    Activation,
    PerChannel,
    PerGroup,
    PerRow,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
)
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes
from jcompress.tensors.ranges import range_of, scale_and_zero
from jcompress.tensors.rounding import fake_quantize, quantize_values, unclipped
from jcompress.tensors.weight_matrix import (
    dequantize_matrix,
    fake_quantize_weight,
    quantize_matrix,
)

pytestmark = pytest.mark.bits

ONE = jnp.ones(())


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def neighbourhoods() -> np.ndarray[Any, Any]:
    """Every number of the format, the middle of any two, and the floats around them."""
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    numbers = every.astype(np.float32)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    centres = np.concatenate([numbers, (numbers[1:] + numbers[:-1]) / 2])
    found = [centres]
    for towards in (-np.inf, np.inf):
        moved = centres
        for _ in range(3):
            moved = np.nextafter(moved, np.float32(towards))
            found.append(moved)
    # What rounds to the middle of two numbers in bfloat16 or float16 first.
    for ulp in (2.0**-9, 2.0**-12, 2.0**-20):
        found += [centres * np.float32(1 + ulp), centres * np.float32(1 - ulp)]
    drawn = normal(4000) * np.exp2(np.random.default_rng(1).uniform(-14, 8, 4000))
    return np.concatenate([*found, drawn.astype(np.float32)])


@pytest.mark.parametrize("compiled", [False, True])
def test_rounds_as_ml_dtypes_does(compiled: bool) -> None:
    x = neighbourhoods()
    expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn) + 0

    def stored(x: jax.Array) -> jax.Array:
        numbers = quantize_values(x, ONE, None, Float8())
        return numbers.astype(jnp.float8_e4m3fn)

    got = np.asarray((jax.jit(stored) if compiled else stored)(jnp.asarray(x)))
    np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))


def test_beyond_the_largest_number() -> None:
    x = jnp.asarray([448.0, 464.0, 464.1, 1e30, jnp.inf, -jnp.inf, jnp.nan])
    got = quantize_values(x, ONE, None, Float8())
    top = [448] * 5
    np.testing.assert_array_equal(got, [*top, -448, np.nan])
    np.testing.assert_array_equal(
        unclipped(x, ONE, None, Float8()), [True, True, *[False] * 5]
    )


def test_the_largest_number_is_not_clipped() -> None:
    """Rounding of the scale takes it a little above 448, and its gradient passes."""
    x = jnp.asarray(normal(300, 8))
    scale, zero = scale_and_zero(range_of(x, -1), Float8())
    assert zero is None
    expected = np.abs(x).max(1, keepdims=True) / 448
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert bool(unclipped(x, scale, None, Float8()).all())
    assert float(scale_and_zero(range_of(0 * x, None), Float8())[0].max()) == 1


def test_gradient_is_straight_through() -> None:
    x = jnp.asarray([0.1, -3.0, 470.0, -1e4, 460.0])
    gradient = jax.grad(lambda x: fake_quantize(x, ONE, None, Float8()).sum())(x)
    np.testing.assert_array_equal(gradient, [1, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("granularity", "dtype"),
    [
        (PerTensor(), jnp.float32),
        (PerChannel(), jnp.bfloat16),
        (PerGroup(4), jnp.float32),
    ],
)
def test_the_same_bits_everywhere(granularity: Any, dtype: Any) -> None:
    spec = Weights(format=Float8(), granularity=granularity)
    leaf = jnp.asarray(normal(3, 8, 6) * np.exp2(normal(1, 8, 1))).astype(dtype)
    axes = Axes((0,), (2,), (1,))
    matrix = jnp.swapaxes(leaf, 1, 2)
    values, scales, zeros = quantize_matrix(matrix, spec)
    assert values.dtype == jnp.float8_e4m3fn
    assert zeros is None
    dense = jnp.swapaxes(dequantize_matrix(values, scales, None, dtype), 1, 2)
    for run in (
        fake_quantize_weight,
        jax.jit(fake_quantize_weight, static_argnums=(1, 2)),
    ):
        np.testing.assert_array_equal(run(leaf, axes, spec), dense)
    again, _, _ = jax.jit(quantize_matrix, static_argnums=1)(matrix, spec)
    np.testing.assert_array_equal(
        np.asarray(again).view(np.uint8), np.asarray(values).view(np.uint8)
    )
    wide = np.asarray(leaf, np.float32)
    error = np.abs(np.asarray(dense, np.float32) - wide)
    step = np.broadcast_to(np.asarray(scales).max(), wide.shape) * 2.0**-10
    assert (error <= np.maximum(np.abs(wide) * 2.0**-4, step) * 1.01).all()


def test_tensor() -> None:
    leaf = jnp.asarray(normal(2, 6, 8))
    values, scales, _ = quantize_matrix(leaf, Weights(format=Float8()))
    given: dict[str, Any] = {
        "values": values,
        "scales": scales,
        "format": Float8(),
        "shape": (2, 6, 8),
        "dtype": jnp.float32,
        "stack_axes": (0,),
        "output_axes": (1,),
        "input_axes": (2,),
    }
    tensor = QTensor(**given)
    assert tensor.form == "float8"
    assert tensor.numbers is values
    assert tensor.stored_bytes == leaf.size + 4 * 2 * 6
    opened = tensor.unstack()
    assert opened is not None
    arrays, rebuild = opened
    slices = [rebuild([a[i] for a in arrays]).dense() for i in range(2)]
    np.testing.assert_array_equal(jnp.stack(slices), tensor.dense())
    with pytest.raises(ValueError, match=r"has no zero points"):
        QTensor(**{**given, "zeros": jnp.zeros((2, 6, 1), jnp.int8)})
    with pytest.raises(ValueError, match="values is int8"):
        QTensor(**{**given, "values": values.astype(jnp.int8)})
    with pytest.raises(ValueError, match="values is float8_e5m2"):
        QTensor(**{**given, "values": values.astype(jnp.float8_e5m2)})


def test_training() -> None:
    """Gradients of what was rounded, as if it had not been."""
    spec = Quantize(
        weights=Weights(format=Float8()),
        activation=Activation(format=Float8(), granularity=PerRow()),
    )
    x, w = jnp.asarray(normal(5, 8)), jnp.asarray(normal(8, 4))
    layer = fake_quant(lambda p, x: x @ p["w"], [("w", spec)])
    gradient = jax.jit(jax.grad(lambda p, x: layer(p, x).sum(), argnums=(0, 1)))
    dw, dx = gradient({"w": w}, x)
    near = {"rtol": 0.1, "atol": 0.1}
    np.testing.assert_allclose(dx, jnp.broadcast_to(w.sum(1), x.shape), **near)
    np.testing.assert_allclose(
        dw["w"], jnp.broadcast_to(x.sum(0)[:, None], w.shape), **near
    )
