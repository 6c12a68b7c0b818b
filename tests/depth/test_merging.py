"""Means of blocks and of layers, against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jcompress.depth.merging import merge_blocks, merge_layers
from jcompress.errors import MismatchError
from jcompress.quantization import Quantize, quantize
from jcompress.shrinking.groups import find_groups
from jcompress.shrinking.plan import shrink, shrunk

LAYERS, STACK, WIDTH = 6, "layers/down:2", "layers/up:2"


def model(p: Any, x: jax.Array) -> jax.Array:
    """Layers along axis 0 of a weight, 2 of the next, and of vectors and integers."""

    def step(x: jax.Array, layer: Any) -> Any:
        up, down, scale, shift = layer
        y = jnp.tanh(x @ up) @ down * scale
        return x + y + shift.astype(jnp.float32), None

    q = p["layers"]
    stack = (q["up"], jnp.moveaxis(q["down"], 2, 0), q["scale"], q["shift"])
    out: jax.Array = jax.lax.scan(step, x @ p["head"], stack)[0]
    return out


def numbers(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


PARAMS = {
    "head": numbers(5, 3),
    "layers": {
        "up": numbers(LAYERS, 3, 4),
        "down": numbers(4, 3, LAYERS),
        "scale": numbers(LAYERS),
        "shift": np.arange(LAYERS, dtype=np.int32),
    },
}
X = numbers(2, 5)
GROUPS = find_groups(model, PARAMS, X)
WEIGHTS = np.array([1.0, 2.0, 0.0, 5.0, 3.0, 0.5])


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray], ids=["host", "device"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize(
    ("kept", "runs"),
    [
        ([0, 2, 4], [[0, 1], [2, 3], [4, 5]]),
        ([0, 1, 5], [[0], [1, 2, 3, 4], [5]]),
        ([2, 3], [[0, 1, 2], [3, 4, 5]]),
        ([5], [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_a_layer_that_stays_is_the_mean_of_its_run(
    kept: list[int], runs: list[list[int]], weights: Any, place: Any
) -> None:
    plan = GROUPS.keep({STACK: kept})
    share = np.ones(LAYERS) if weights is None else weights
    given = None if weights is None else {STACK: weights}
    params = jax.tree.map(place, PARAMS)
    merged = merge_layers(params, GROUPS, plan, weights=given)
    host = [isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(merged)]
    assert set(host) == {place is np.asarray}
    for name, axis in (("up", 0), ("down", 2), ("scale", 0)):
        before = np.moveaxis(np.asarray(PARAMS["layers"][name], np.float64), axis, 0)
        after = np.moveaxis(np.asarray(merged["layers"][name]), axis, 0)
        assert merged["layers"][name].dtype == np.float32
        for layer in range(LAYERS):
            wanted = before[layer]
            if layer in kept:
                run = runs[kept.index(layer)]
                wanted = np.average(before[run], axis=0, weights=share[run])
            np.testing.assert_allclose(after[layer], wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(merged["head"], PARAMS["head"])
    np.testing.assert_array_equal(merged["layers"]["shift"], PARAMS["layers"]["shift"])


def test_merged_layers_run() -> None:
    """Smaller, also in another width, they are what a loop over the means computes."""
    plan = GROUPS.keep({STACK: [0, 3], WIDTH: [0, 2]})
    small = shrink(merge_layers(PARAMS, GROUPS, plan), plan)
    x = X @ PARAMS["head"]
    q: Any = PARAMS["layers"]
    for run in (slice(0, 3), slice(3, 6)):
        up, down = q["up"][run].mean(0)[:, [0, 2]], q["down"][[0, 2]][..., run].mean(2)
        x = x + np.tanh(x @ up) @ down * q["scale"][run].mean() + q["shift"][run][0]
    found = shrunk(model, plan)(small, X)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)


def test_means_of_small_floats_are_taken_in_float32() -> None:
    half = jax.tree.map(lambda leaf: leaf, PARAMS)
    half["layers"]["up"] = numbers(LAYERS, 3, 4).astype(ml_dtypes.bfloat16)
    merged = merge_layers(half, GROUPS, GROUPS.keep({STACK: [0]}))["layers"]["up"]
    wanted = half["layers"]["up"].astype(np.float32).mean(0).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(merged[0], wanted)


BLOCKS = {
    name: {"w": jnp.asarray(numbers(3, 3) * k), "n": jnp.asarray([k])}
    for k, name in enumerate("abc", 1)
}


@pytest.mark.parametrize("weights", [None, (3.0, 0.0, 1.0)])
def test_blocks(weights: Any) -> None:
    merged = merge_blocks(BLOCKS, "b", ["a", "c"], weights=weights)
    parts = [np.asarray(BLOCKS[name]["w"]) for name in "bac"]
    np.testing.assert_allclose(
        merged["b"]["w"], np.average(parts, axis=0, weights=weights), rtol=1e-6
    )
    np.testing.assert_array_equal(merged["b"]["n"], BLOCKS["b"]["n"])
    for name in "ac":
        jax.tree.map(np.testing.assert_array_equal, merged[name], BLOCKS[name])


def test_wrong_input() -> None:
    twins = {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2)}}
    with pytest.raises(MismatchError, match=r"blocks are a list of names, not \[\]"):
        merge_blocks(twins, "a", [])
    with pytest.raises(
        MismatchError, match="merge_blocks: the block 'a' is named twice"
    ):
        merge_blocks(twins, "a", ["b", "a"])
    plan = GROUPS.keep({STACK: [0, 3]})
    with pytest.raises(
        MismatchError, match=r"no layers of a stack, only units of \['la"
    ):
        merge_layers(PARAMS, GROUPS, GROUPS.keep({WIDTH: [0]}))
    with pytest.raises(
        MismatchError, match=r"weights of 'layers/down:2' are 6 numbers"
    ):
        merge_layers(PARAMS, GROUPS, plan, weights={STACK: [1.0, 2.0]})
    with pytest.raises(
        MismatchError, match=r"layers \[0, 1, 2\] of 'layers/down:2', .*neg"
    ):
        merge_layers(PARAMS, GROUPS, plan, weights={STACK: [0, 0, 0, 1, 1, 1]})
    with pytest.raises(MismatchError, match=r"weights are of \['down'\], the stacks"):
        merge_layers(PARAMS, GROUPS, plan, weights={"down": WEIGHTS})
    with pytest.raises(
        MismatchError, match=r"has 2 positions, the plan is for 6; merge"
    ):
        merge_layers(shrink(PARAMS, plan), GROUPS, plan)
    with pytest.raises(MismatchError, match=r"there is no leaf 'layers/"):
        merge_layers({"head": PARAMS["head"]}, GROUPS, plan)
    fewer = jax.tree.map(lambda leaf: leaf, PARAMS)
    fewer["layers"] = shrink(PARAMS, plan)["layers"]
    with pytest.raises(
        MismatchError, match=r"keeps layer 3 of 'layers/down:2', which has"
    ):
        merge_layers(fewer, find_groups(model, fewer, X), plan)
    packed = quantize(PARAMS, [("*/up", Quantize())], sites=GROUPS.sites)
    with pytest.raises(MismatchError, match="'layers/up' is a QTensor; merge dense"):
        merge_layers(packed, GROUPS, plan)

    with pytest.raises(MismatchError, match=r"there is no 'c/w' of that shape"):
        merge_blocks({**BLOCKS, "c": {"n": jnp.asarray([3])}}, "a", ["c"])
    with pytest.raises(MismatchError, match=r"2 numbers, one for each of \['a', 'b'\]"):
        merge_blocks(BLOCKS, "a", ["b"], weights=[1.0, -1.0])
    with pytest.raises(MismatchError, match="merge_blocks: no leaf is below 'd'"):
        merge_blocks(BLOCKS, "a", ["d"])
