"""`compare` measures a dense and a compressed tree of one function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.quantization import Quantize, Weights, quantize
from jcompress.report import Label, compare
from jcompress.sites import find_sites

rng = np.random.default_rng(0)
W = jnp.asarray(rng.normal(size=(32, 8)).astype(np.float32))


def layer(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def test_compare() -> None:
    inputs = {
        n: [(rng.normal(size=(n, 32)).astype(np.float32),) for _ in range(2)]
        for n in (2, 4)
    }
    dense = {"w": W}
    sites = find_sites(layer, dense, *inputs[2][0])
    small = quantize(dense, [("w", Quantize(weights=Weights(bits=4)))], sites=sites)
    seen = []

    def accuracy(run: Any, tree: Any) -> float:
        seen.append(np.asarray(run(tree, *inputs[2][0])))
        return 0.5

    found = compare(layer, dense, small, accuracy=accuracy, inputs=inputs, rounds=5)
    assert found.dense.bytes == 32 * 8 * 4
    assert found.compressed.bytes == 32 * 8 // 2 + 8 * 4
    assert found.dense.macs == found.compressed.macs == 32 * 8
    assert found.dense.parameters == found.compressed.parameters == 32 * 8
    assert found.dense.nonzero == 32 * 8 > found.compressed.nonzero
    assert set(found.latency) == {2, 4}
    assert Label.SMALLER in found.labels
    assert 0 < np.abs(seen[0] - seen[1]).max() < 2
    with pytest.raises(ValueError, match="no compressed leaf"):
        compare(layer, dense, dense, accuracy=accuracy, inputs=inputs, rounds=5)
