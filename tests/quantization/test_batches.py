"""With the default activation an example does not depend on its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerRow,
    PerTensor,
    Quantize,
    fake_quant,
)

pytestmark = pytest.mark.bits


def dense(params, x):
    return x @ params["w"]


def convolution(params, x):
    images = x.reshape(x.shape[0], 2, 4, 1)
    return jax.lax.conv_general_dilated(
        images,
        params["w"].reshape(2, 2, 1, 6),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def ragged(params, x):
    return jax.lax.ragged_dot(x, params["w"].reshape(1, 8, 3), jnp.array([3]))


@pytest.mark.parametrize(
    ("model", "shape"), [(dense, (8, 3)), (convolution, (4, 6)), (ragged, (8, 3))]
)
def test_a_loud_neighbour_changes_nothing(model, shape):
    params = {"w": jnp.linspace(-1, 1, 24).reshape(shape)}
    x = jnp.linspace(-1, 2, 24).reshape(3, 8)
    loud = x.at[2].multiply(1000)
    run = fake_quant(model, [("w", Quantize(activation=Activation()))])
    np.testing.assert_array_equal(run(params, x)[:2], run(params, loud)[:2])
    shared = Activation(granularity=PerTensor())
    run = fake_quant(model, [("w", Quantize(activation=shared))])
    assert (run(params, x)[:2] != run(params, loud)[:2]).any()


def test_the_granularity_follows_the_range():
    assert Activation().granularity == PerRow()
    assert Activation(range=MovingAverage()).granularity == PerTensor()
    with pytest.raises(ValueError, match=r"every other range goes with PerTensor\(\)"):
        Activation(granularity=PerRow(), range=MovingAverage())


def test_arguments_of_another_spec_are_explained():
    with pytest.raises(TypeError, match=r"Weights\(format=Int\(bits=4"):
        Quantize(bits=4)
    with pytest.raises(TypeError, match="Activation takes no 4 without a name"):
        Activation(4)
