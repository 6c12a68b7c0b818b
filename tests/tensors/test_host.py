"""NumPy rounds a weight to the bits of the compiled arithmetic, whatever its size."""

import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Float8, Int
from jcompress.quantization import PerChannel, PerGroup, PerTensor, Weights
from jcompress.tensors import QTensor, qtensor
from jcompress.tensors.axes import Axes
from jcompress.tensors.host import pack_on_host
from jcompress.tensors.weight_matrix import fake_quantize_weight

pytestmark = pytest.mark.bits

AXES = Axes((0,), (2,), (1,))
MAGNITUDES = np.array([1e-1, 1e-6, 1e-39, 1e4, 0, 0], "float32")
W = np.random.default_rng(0).normal(size=(2, 24, 6)).astype("float32") * MAGNITUDES
W[0, 0, 0] = -0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "spec",
    [
        Weights(format=Int(8), granularity=PerGroup(8)),
        Weights(format=Int(8, symmetric=False), granularity=PerTensor()),
        Weights(format=Int(4, symmetric=False)),
        Weights(format=Int(3)),
        Weights(format=Int(4, full=True)),
        Weights(format=Float8()),
    ],
)
def test_the_same_bits_as_compiled_and_as_simulated(dtype: str, spec: Weights) -> None:
    w = jnp.asarray(np.clip(W, -6e4, 6e4)).astype(dtype)
    compiled = qtensor._packed(w, AXES, spec)
    for ours, theirs in zip(pack_on_host(w, AXES, spec), compiled, strict=True):
        if ours is None or theirs is None:
            assert ours is theirs
        else:
            assert ours.dtype == theirs.dtype
            assert ours.tobytes() == np.asarray(theirs).tobytes()
    dense = QTensor.quantize(w, AXES, spec).dense()
    np.testing.assert_array_equal(dense, fake_quantize_weight(w, AXES, spec))


def test_small_channels_of_float16_keep_their_relative_error() -> None:
    small = jnp.asarray(W[..., 1:2], jnp.float16)
    assert 0 < float(jnp.abs(small).max()) < 1e-5
    tensor = QTensor.quantize(small, AXES, Weights(granularity=PerChannel()))
    np.testing.assert_allclose(
        np.asarray(tensor.dense(), float), np.asarray(small, float), atol=2.0**-24
    )


def test_the_largest_numbers_of_float16_do_not_overflow() -> None:
    w = jnp.asarray([[-65504.0], [65504.0]], jnp.float16)
    dense = QTensor.quantize(
        w, Axes((), (1,), (0,)), Weights(format=Int(8, symmetric=False))
    ).dense()
    np.testing.assert_allclose(np.asarray(dense, float), w.astype(float), rtol=1 / 128)
