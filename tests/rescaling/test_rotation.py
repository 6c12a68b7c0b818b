"""Rotations: the same function, outliers spread, and what does not allow them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rescaling_models as models
import zoo

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import Activation, Quantize, Weights, quantize
from jcompress.rescaling import Rotated, rotate
from jcompress.rescaling.orthogonal import random_hadamard, random_with_fixed_mean
from jcompress.sites import find_sites

KEY = jax.random.key(0)
TOKENS = models.tokens()


@pytest.mark.parametrize("size", [2, 12, 20, 28, 64])
def test_hadamard_matrices(size: int) -> None:
    found = random_hadamard(KEY, size) * np.sqrt(size)
    np.testing.assert_allclose(np.abs(found), 1, rtol=1e-12)
    np.testing.assert_allclose(found @ found.T, size * np.eye(size), atol=1e-9)
    assert not np.array_equal(found, random_hadamard(jax.random.key(1), size))


def test_other_sizes_and_rotations_that_keep_the_mean() -> None:
    found = random_hadamard(KEY, 6)
    np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-12)
    kept = random_with_fixed_mean(KEY, 6)
    np.testing.assert_allclose(kept @ kept.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(kept.sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose(kept.sum(1), 1, rtol=1e-12)
    assert np.abs(kept - np.eye(6)).max() > 0.1


@functools.cache
def rotated_transformer() -> Rotated:
    params = models.transformer_params()
    return rotate(models.transformer, params, TOKENS, key=KEY)


def test_all_that_write_and_read_the_stream_are_rotated() -> None:
    params, made = models.transformer_params(), rotated_transformer()
    (stream,) = [one for one in made.rotated if "embed:1" in one.axes]
    names = {"embed:1", "head:0", "layers/o:3", "layers/down:2"}
    assert set(stream.axes) == names | {
        f"layers/{n}:1" for n in ("q", "k", "v", "gate", "up")
    }
    assert set(stream.folded) == {"norm", "layers/norm1", "layers/norm2"}
    assert not stream.keeps_mean
    for name in stream.folded:
        tree: Any = made.params
        for part in name.split("/"):
            tree = tree[part]
        np.testing.assert_array_equal(tree, 1)
    before, after = (
        np.asarray(tree["layers"]["down"], np.float64).reshape(-1, models.WIDTH)
        for tree in (params, made.params)
    )
    turn = np.linalg.lstsq(before, after, rcond=None)[0]
    np.testing.assert_allclose(np.abs(turn) * 4, 1, rtol=1e-4)
    np.testing.assert_allclose(turn @ turn.T, np.eye(models.WIDTH), atol=1e-5)
    np.testing.assert_allclose(made.params["embed"], params["embed"] @ turn, atol=1e-5)
    head = turn.T @ (np.asarray(params["norm"])[:, None] * np.asarray(params["head"]))
    np.testing.assert_allclose(made.params["head"], head, atol=1e-5)
    gate = params["layers"]["norm2"][..., None] * params["layers"]["gate"]
    np.testing.assert_allclose(
        made.params["layers"]["gate"], turn.T @ np.asarray(gate), atol=1e-5
    )
    assert "`logistic` uses it" in made.skipped["layers/gate:2"]
    assert "Hadamard; layers/norm1" in str(made)


def test_values_and_outputs_of_each_head_are_rotated() -> None:
    made = rotated_transformer()
    sets = [set(one.axes) for one in made.rotated]
    assert {"layers/v:3", "layers/o:2"} in sets
    assert {"layers/q:3", "layers/k:3"} in sets


@pytest.mark.parametrize("bits", [8, 4])
def test_planted_outliers_spoil_less_than_half(bits: int) -> None:
    """Two channels behind each norm are forty times as large, as for smoothing."""
    params = models.transformer_params()
    params["layers"] = models.with_outliers(params["layers"])
    rule = Quantize(weights=Weights(format=Int(bits)), activation=Activation())
    made = rotate(models.transformer, params, TOKENS, key=KEY)
    expected = models.transformer(params, TOKENS)

    @jax.jit
    def run(tree: Any) -> Any:
        return compressed(models.transformer)(tree, TOKENS)

    def error(tree: Any) -> float:
        sites = find_sites(models.transformer, tree, TOKENS)
        small = quantize(tree, [("embed", None), (..., rule)], sites=sites)
        return models.relative(run(small), expected)

    assert error(made.params) < error(params) / 2


def test_a_norm_that_takes_the_mean_away_is_kept() -> None:
    def model(p: Any, tokens: jax.Array) -> jax.Array:
        x = p["embed"][tokens]
        h = models.layer_norm(x, p["scale"], p["shift"])
        x = x + jax.nn.relu(h @ p["up"]) @ p["down"] + p["bias"][None, None]
        return models.layer_norm(x, p["last"], p["last_shift"]) @ p["head"]

    width = 12
    params = {
        "embed": models.normal(models.WORDS, width),
        "scale": models.normal(width, seed=4),  # some are negative
        "shift": models.normal(width, seed=5),
        "up": models.normal(width, 8),
        "down": models.normal(8, width),
        "bias": models.normal(width, seed=6),
        "last": 1 + models.normal(width, seed=7, scale=0.2),
        "last_shift": models.normal(width, seed=8),
        "head": models.normal(width, 5),
    }
    assert (params["scale"] < 0).any()
    made = rotate(model, params, TOKENS, key=KEY)
    (stream,) = made.rotated
    assert stream.keeps_mean
    assert set(stream.folded) == {"scale", "last"}
    assert {"shift:0", "bias:0", "last_shift:0"} <= set(stream.axes)
    for name in ("embed", "down"):
        np.testing.assert_allclose(
            made.params[name].mean(-1), params[name].mean(-1), atol=1e-6
        )
    assert made.error < 2e-6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("equinox_attention", [4]),
        ("haiku_attention", [4]),
        # The 5 outputs of `mix` are what each head of `out` reads.
        ("heads_by_reshape", [4, 5]),
    ],
)
def test_heads_that_are_merged_on_one_axis(name: str, sizes: list[int]) -> None:
    case = zoo.build(name)
    made = rotate(case.fn, case.variables, *case.args, key=KEY, **case.kwargs)
    assert [one.size for one in made.rotated] == sizes
    assert made.error < 1e-6


def test_streams_of_libraries() -> None:
    case = zoo.build("nnx_attention")
    made = rotate(
        case.fn, case.variables, *case.args, key=KEY, axes=["embed/embedding:1"]
    )
    assert any("attention/out/bias:0" in one.axes for one in made.rotated)


def test_what_stands_in_the_way_is_named() -> None:
    params, x = models.block_params(), models.normal(2, 4, models.WIDTH)
    # The stream is an argument; the heads can be rotated.
    made = rotate(models.llama_block, params, x, key=KEY)
    assert {axis for one in made.rotated for axis in one.axes} == {
        "q:2", "k:2", "v:2", "o:1",
    }  # fmt: skip
    with pytest.raises(MismatchError, match="o:2 stay: argument 0, by add"):
        rotate(models.llama_block, params, x, key=KEY, axes=["o:2"])
    with pytest.raises(MismatchError, match="nowhere:0 stay: it is no axis"):
        rotate(models.llama_block, params, x, key=KEY, axes=["nowhere:0"])
    with pytest.raises(MismatchError, match="conv_general_dilated"):
        rotate(
            models.convolutions, models.convolution_params(), models.images(), key=KEY
        )

    def curved(p: Any, tokens: jax.Array) -> jax.Array:
        return jnp.tanh(p["embed"][tokens]) @ p["head"]

    tree = models.transformer_params()
    with pytest.raises(MismatchError, match="embed:1, head:0 stay: `tanh` uses it"):
        rotate(curved, tree, TOKENS, key=KEY)
    tree["norm"] = tree["norm"].at[3].set(0.0)
    made = rotate(models.transformer, tree, TOKENS, key=KEY)
    assert made.skipped["embed:1"] == "the scale norm holds zeros"
    with pytest.raises(ValueError, match="has no values"):
        rotate(models.transformer, jax.eval_shape(lambda: tree), TOKENS, key=KEY)
