"""Reconstruction: a block's outputs err less, on data not seen, too."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rescaling_models as models

from jcompress.correction import Reconstruction, reconstruct, reconstruction
from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Float4, Int, PowerOfTwoScales
from jcompress.quantization import (
    Activation,
    MovingAverage,
    PerGroup,
    Quantize,
    Weights,
    calibrate,
    fake_quant,
    init_ranges,
    quantize,
)
from jcompress.rounding import Gptq, Rounding
from jcompress.sites import find_sites
from jcompress.statistics import Output, SecondMoments, observe

PARAMS = models.block_params(2)
MIX = models.normal(models.WIDTH, models.WIDTH, seed=5) / 4
ROWS = [models.normal(16, 6, models.WIDTH, seed=n) @ MIX for n in range(3)]
BATCHES, UNSEEN = [(ROWS[0],), (ROWS[1],)], ROWS[2]
SITES = find_sites(models.layers, PARAMS, UNSEEN)


def by_layers(rounding: Rounding) -> Any:
    """Each weight by itself, from the same data."""
    weights = Weights(format=Int(2, symmetric=False), granularity=PerGroup(8))
    rules = [(..., Quantize(weights=weights, rounding=rounding))]
    observed = jax.jit(observe(models.layers, rules, SecondMoments()))
    moments = sum(
        (observed(PARAMS, x)[1] for x in ROWS[1:2]), observed(PARAMS, ROWS[0])[1]
    )
    return quantize(PARAMS, rules, sites=SITES, moments=moments)


def test_blocks_of_a_transformer_err_less_than_by_layers() -> None:
    """From the numbers of GPTQ on, which are often not the nearest."""
    small = by_layers(Gptq())
    told: list[Reconstruction] = []
    made = reconstruct(
        models.layers, PARAMS, small, BATCHES, steps=60, learning_rate=0.02,
        on_look=told.append,
    )  # fmt: skip
    run = jax.jit(compressed(models.layers))

    def error(tree: Any, x: Any) -> float:
        return models.relative(run(tree, x), models.layers(PARAMS, x))

    assert error(made, UNSEEN) < 0.85 * error(small, UNSEEN)
    # What is told is what the stored tree does on the batches.
    seen = jnp.concatenate([x for (x,) in BATCHES])
    assert told[-1].least == pytest.approx(error(made, seen) ** 2, rel=1e-3)
    assert told[-1].least == min(one.error for one in told)
    assert [one.step for one in told] == list(range(6, 61, 6))
    assert jax.tree.structure(made) == jax.tree.structure(small)
    for name in ("norm1", "norm2"):
        assert made[name] is small[name]
    assert made["q"].stored_bytes == small["q"].stored_bytes


def net(p: Any, x: jax.Array) -> Any:
    h = jnp.tanh(x @ p["in"])
    h = h + jax.nn.relu(h @ p["up"] + p["b"][None]) @ p["down"]
    return h @ p["out"], jnp.argmax(h, axis=-1)


NET = {
    "in": models.normal(12, 16) / 3,
    "up": models.normal(16, 24) / 4,
    "b": models.normal(24) / 4,
    "down": models.normal(24, 16) / 4,
    "out": models.normal(16, 5) / 4,
}
X = models.normal(64, 12, seed=1)


def test_a_place_within_and_only_its_leaves() -> None:
    mx = Weights(format=Float4(), granularity=PerGroup(4), scales=PowerOfTwoScales())
    rules = [(..., Quantize(weights=mx))]
    small = quantize(NET, rules, sites=find_sites(net, NET, X))
    made = reconstruct(
        net, NET, small, [(X,)], leaves=lambda site: site.path in ("up", "down"),
        places=[Output("down")], steps=60, learning_rate=0.02,
    )  # fmt: skip
    assert [path for path in NET if made[path] is not small[path]] == ["up", "down"]

    def block(tree: Any) -> Any:
        dense = {k: np.asarray(getattr(v, "dense", lambda v=v: v)(), np.float64)
                 for k, v in tree.items()}  # fmt: skip
        h = np.tanh(np.asarray(X, np.float64) @ dense["in"])
        return np.maximum(h @ dense["up"] + dense["b"], 0) @ dense["down"]

    wanted = block(NET)
    first, last = (np.linalg.norm(block(t) - wanted) for t in (small, made))
    assert last < 0.9 * first
    assert made["up"].form == small["up"].form
    assert made["up"].scales.dtype == small["up"].scales.dtype


def test_the_data_is_quantized_as_the_leaves_say() -> None:
    data = Activation(format=Int(3), range=MovingAverage())
    spec = Quantize(weights=Weights(format=Int(3)), activation=data)
    rules = [("in", Quantize(weights=Weights(format=Int(8)))), (..., spec)]
    ranges = init_ranges(net, rules, NET, X)
    _, ranges = calibrate(net, rules)(NET, ranges, X)
    small = quantize(NET, rules, sites=find_sites(net, NET, X), ranges=ranges)
    told: list[Reconstruction] = []
    made = reconstruct(
        net, NET, small, [(X,)], steps=40, learning_rate=0.02, on_look=told.append
    )
    acting = [
        (p, Quantize(weights=None, activation=data)) for p in ("up", "down", "out")
    ]
    dense = {k: getattr(v, "dense", lambda v=v: v)() for k, v in made.items()}
    found = fake_quant(net, acting, ranges=ranges)(dense, X)[0]
    wanted = net(NET, X)[0]
    assert told[-1].least == pytest.approx(
        models.relative(found, wanted) ** 2, rel=1e-3
    )
    plain = net(dense, X)[0]
    assert told[-1].least != pytest.approx(
        models.relative(plain, wanted) ** 2, rel=1e-2
    )
    assert made["up"].input_scales == small["up"].input_scales


def test_what_does_not_fit_raises() -> None:
    small = quantize(NET, [("up", Quantize())], sites=find_sites(net, NET, X))
    with pytest.raises(ValueError, match="batches is empty"):
        reconstruct(net, NET, small, [])
    with pytest.raises(ValueError, match="steps is a positive int, not 0"):
        reconstruct(net, NET, small, [(X,)], steps=0)
    with pytest.raises(ValueError, match="learning_rate is above 0, not -1"):
        reconstruct(net, NET, small, [(X,)], learning_rate=-1)
    with pytest.raises(MismatchError, match="no leaf in `leaves` is a QTensor in"):
        reconstruct(net, NET, small, [(X,)], leaves="down")
    with pytest.raises(MismatchError, match="'up' of params is not the dense leaf"):
        reconstruct(net, small, small, [(X,)])
    with pytest.raises(MismatchError, match="outputs hold no floats"):
        reconstruct(lambda p, x: net(p, x)[1], NET, small, [(X,)], leaves="up")


def test_examples_of_the_docstrings() -> None:
    with jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(reconstruction)
    assert attempted
    assert not failed
