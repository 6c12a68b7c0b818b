"""AWQ of convolutions in groups, whose groups meet inputs of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rescaling_models as models

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.quantization import (
    FullRange,
    LeastError,
    PerChannel,
    PerTensor,
    Quantize,
    Weights,
    quantize,
)
from jcompress.rescaling import awq, smooth
from jcompress.rescaling.scalable import Scaling
from jcompress.sites import find_sites
from jcompress.statistics import AbsoluteMax, Means, SecondMoments, observe
from jcompress.tracing.trace import trace

CHANNELS, GROUPS = 12, 3


def conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def network(p: Any, x: jax.Array) -> jax.Array:
    return conv(jax.nn.relu(conv(x, p["up"])), p["down"], GROUPS)


def params() -> Any:
    """Some channels between the convolutions are much larger than others."""
    loud = jnp.exp2(jnp.arange(CHANNELS) % 5)
    return {
        "up": models.normal(1, 1, 4, CHANNELS) * loud[None, None, None],
        "down": models.normal(3, 3, CHANNELS // GROUPS, 6, seed=1),
    }


X = models.normal(2, 6, 6, 4, seed=2)


def nearest(matrix: np.ndarray, bits: int, whole: bool) -> np.ndarray:
    most = 2 ** (bits - 1) - 1
    axis = None if whole else -1
    scale = np.abs(matrix).max(axis, keepdims=True) / most
    return np.clip(np.round(matrix / scale), -most, most) * scale


@pytest.mark.parametrize("per", [PerChannel(), PerTensor()])
def test_the_exponent_is_that_of_least_error_over_all_groups(per: Any) -> None:
    p, bits, steps = params(), 3, 5
    weights = Weights(format=Int(bits), granularity=per, range=FullRange())
    rules = [("down", Quantize(weights=weights))]
    moments = observe(network, rules, SecondMoments())(p, X)[1]
    means = observe(network, rules, Means(absolute=True))(p, X)[1]["down"].mean
    made = awq(network, p, rules, moments, X, means={"down": means}, steps=steps)

    h = np.asarray(moments["down"], np.float64)
    kernel = np.asarray(p["down"], np.float64).transpose(3, 0, 1, 2)
    matrix = kernel.reshape(GROUPS, 2, -1)
    # One factor a channel: that of the largest mean over the window's positions.
    size = np.asarray(means, np.float64).reshape(GROUPS, 9, -1).max(1, keepdims=True)
    tried = []
    for exponent in np.linspace(0, 1, steps + 1):
        s = size**exponent
        s = s / np.sqrt(s.max() * s.min())
        columns = np.broadcast_to(s, (GROUPS, 9, s.shape[-1])).reshape(GROUPS, 1, -1)
        whole = isinstance(per, PerTensor)
        error = matrix - nearest(matrix * columns, bits, whole) / columns
        tried.append((np.einsum("gnk,gkl,gnl->", error, h, error), columns[:, 0]))
    expected = min(tried, key=lambda pair: pair[0])[1]
    assert not np.allclose(expected, 1)
    np.testing.assert_allclose(made.factors["down"], expected, rtol=1e-4)


@pytest.mark.parametrize(("range", "most"), [(FullRange(), 0.9), (LeastError(), 0.98)])
def test_loud_channels_are_rounded_with_less_error(range: Any, most: float) -> None:
    p, sites = params(), find_sites(network, params(), X)
    rules = [("down", Quantize(weights=Weights(format=Int(3), range=range)))]
    moments = observe(network, rules, SecondMoments())(p, X)[1]
    made = awq(network, p, rules, moments, X, steps=8)

    def error(tree: Any, known: Any) -> float:
        small = quantize(tree, rules, sites=sites, moments=known)
        small["down"] = small["down"].dense()
        return models.relative(network(small, X), network(p, X))

    assert error(made.params, made.moments(moments)) < most * error(p, moments)


def test_groups_of_a_scan() -> None:
    """Each layer has moments, and all layers share what a leaf before them takes up."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv(x, p["up"]))

        def layer(total: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            return total + conv(x, kernel, GROUPS), None

        empty = jnp.zeros((*x.shape[:3], 6))
        return jax.lax.scan(layer, empty, p["down"])[0]

    one = params()
    p = {"up": one["up"], "down": jnp.stack([one["down"], one["down"][::-1]])}
    scaling = Scaling(trace(fn, p, (X,), {}))
    assert scaling.columns["down"].shape == (2, GROUPS, 36)
    kernel = np.asarray(p["down"]).transpose(0, 4, 1, 2, 3)
    np.testing.assert_array_equal(
        scaling.matrix("down"), kernel.reshape(2, GROUPS, 2, 36).astype(np.float64)
    )
    rules = [("down", Quantize(weights=Weights(format=Int(3))))]
    moments = observe(fn, rules, SecondMoments())(p, X)[1]
    made = awq(fn, p, rules, moments, X, steps=4)
    assert made.factors["down"].shape == (2, GROUPS, 36)
    assert made.moments(moments)["down"].shape == (2, GROUPS, 36, 36)
    maxima = observe(fn, rules, AbsoluteMax())(p, X)[1]
    assert smooth(fn, p, maxima, X).factors["down"].shape == (2, GROUPS, 36)


def test_scales_that_groups_share_have_no_least_error() -> None:
    p = params()
    shared = Weights(format=Int(3), granularity=PerTensor(), range=LeastError())
    rules = [("down", Quantize(weights=shared))]
    moments = observe(network, rules, SecondMoments())(p, X)[1]
    with pytest.raises(MismatchError, match=r"share scales, by PerTensor\(\)"):
        awq(network, p, rules, moments, X)
