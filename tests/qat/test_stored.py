"""Learned scales are stored bit for bit; compiled as users do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Int
from jcompress.qat import Lsq, init_scales
from jcompress.quantization import PerGroup, Quantize, Weights, fake_quant, quantize
from jcompress.sites import find_sites

pytestmark = pytest.mark.bits


def layer(params: Any, x: jax.Array) -> jax.Array:
    out: jax.Array = x @ params["w"]
    return out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_stored_bit_for_bit(symmetric: bool, dtype: Any) -> None:
    spec = Weights(
        format=Int(4, symmetric=symmetric), granularity=PerGroup(4), range=Lsq()
    )
    rules = [("w", Quantize(weights=spec))]
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), dtype)}
    x = jnp.eye(8, dtype=dtype)
    scales = init_scales(layer, rules, params, x)
    scales = jax.tree.map(lambda part: part * np.float32(-0.83), scales)
    small = quantize(params, rules, sites=find_sites(layer, params, x), scales=scales)
    simulated = jax.jit(fake_quant(layer, rules, scales=scales))(params, x)
    np.testing.assert_array_equal(small["w"].dense(), simulated)
    assert small["w"].stored_bytes < params["w"].nbytes
