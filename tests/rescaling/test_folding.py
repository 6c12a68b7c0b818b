"""Folding: equal outputs, fewer leaves and operations, and what stays and why."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.leaves import named_leaves
from jcompress.quantization import Quantize, quantize
from jcompress.rescaling.folding import fold, folded
from jcompress.sites import find_sites


def fill(tree: Any) -> Any:
    """Random values; variances and scales away from 0."""

    def one(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        value = rng.normal(size=leaf.shape) * 0.4
        if any(word in name for word in ("var", "scale", "std", "gamma")):
            value = np.abs(value) + 0.5
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)


def normal(*shape: int) -> jax.Array:
    rng = np.random.default_rng(shape)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def made_of(model: nn.Module, x: jax.Array) -> Any:
    return fill(jax.eval_shape(model.init, jax.random.key(0), x))


def check(
    fn: Callable[..., Any], variables: Any, x: Any, tolerance: float = 2e-5
) -> Any:
    """Fold, and compare all three ways to run."""
    made = fold(fn, variables, x)
    expected = np.asarray(fn(variables, x), np.float32)
    within = tolerance * np.abs(expected).max()
    run = folded(fn, made.removed)
    for out in (fn(made.variables, x), run(made.small, x)):
        np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=within)
    assert jax.tree.structure(made.variables) == jax.tree.structure(variables)
    names = {name for name, _ in named_leaves(variables)}
    assert {name for name, _ in named_leaves(made.small)} == names - made.removed.keys()
    assert not names - made.removed.keys() & set(made.removed)
    return made


class CNN(nn.Module):
    """Every kind of convolution, each with its normalization."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm(name="norm0")(nn.Conv(8, (3, 3), name="plain")(x)))
        x = nn.Conv(16, (3, 3), feature_group_count=8, use_bias=False, name="deep")(x)
        x = nn.relu(norm(name="norm1", epsilon=1e-2)(x))
        x = nn.Conv(8, (3, 3), feature_group_count=4, name="grouped")(x)
        x = norm(name="norm2", use_scale=False)(x)
        x = nn.ConvTranspose(
            6, (2, 2), (2, 2), transpose_kernel=True, use_bias=False, name="up"
        )(x)
        x = nn.relu(norm(name="norm3", use_bias=False)(x))
        x = nn.Dense(5, name="head")(x.mean((1, 2)))
        return norm(name="norm4", use_scale=False, use_bias=False)(x)


IMAGES = normal(2, 6, 6, 3)


def test_linen_convolutions_and_dense() -> None:
    variables = made_of(CNN(), IMAGES)
    made = check(CNN().apply, variables, IMAGES)
    weights = ["plain", "deep", "grouped", "up", "head"]
    assert [one.weight for one in made.folded] == [
        f"params/{w}/kernel" for w in weights
    ]
    shifts = ["params/norm0/bias", "params/norm1/bias", "params/norm2/bias",
              "batch_stats/norm3/mean", "batch_stats/norm4/mean"]  # fmt: skip
    assert [one.bias for one in made.folded] == shifts
    assert not made.skipped
    # What is left are the weights and one shift each.
    left = [name for name, _ in named_leaves(made.small)]
    assert sorted(left) == sorted([*shifts, *(f"params/{w}/kernel" for w in weights)])
    stats = made.variables["batch_stats"]["norm0"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_allclose(stats["var"], 1 - 1e-5, atol=1e-6)
    np.testing.assert_array_equal(made.variables["params"]["norm0"]["scale"], 1)
    assert "params/plain/kernel took in" in str(made)


def test_the_closed_form() -> None:
    variables = made_of(CNN(), IMAGES)
    made = fold(CNN().apply, variables, IMAGES)
    params, stats = variables["params"], variables["batch_stats"]
    factor = params["norm0"]["scale"] / np.sqrt(stats["norm0"]["var"] + 1e-5)
    shift = (params["plain"]["bias"] - stats["norm0"]["mean"]) * factor
    kernel = np.asarray(params["plain"]["kernel"]) * np.asarray(factor)
    found = made.variables["params"]
    np.testing.assert_allclose(found["plain"]["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(
        found["norm0"]["bias"], shift + params["norm0"]["bias"], rtol=1e-4, atol=1e-6
    )


def test_the_arithmetic_is_gone_and_everything_composes() -> None:
    variables = made_of(CNN(), IMAGES)
    made = fold(CNN().apply, variables, IMAGES)
    run = folded(CNN().apply, made.removed)

    def operations(fn: Any, tree: Any) -> str:
        return jax.jit(fn).lower(tree, IMAGES).compile().as_text()

    assert "rsqrt" in operations(CNN().apply, variables)
    text = operations(run, made.small)
    assert "rsqrt" not in text
    assert "subtract" not in text.replace("norm3", "").replace("norm4", "") or (
        text.count(" subtract(") <= 2
    )
    grads = jax.grad(lambda tree: jnp.sum(run(tree, IMAGES) ** 2))(made.small)
    assert jax.tree.structure(grads) == jax.tree.structure(made.small)
    sites = find_sites(run, made.small, IMAGES)
    assert sites.macs == find_sites(CNN().apply, variables, IMAGES).macs
    packed = quantize(made.small, [(..., Quantize())], sites=sites)
    out = compressed(run)(packed, IMAGES)
    expected = CNN().apply(variables, IMAGES)
    assert np.abs(out - expected).max() < 0.05 * np.abs(expected).max()


def test_nnx_jitted_and_rematerialized() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)
            self.head = nnx.Linear(8, 4, rngs=rngs)
            self.last = nnx.BatchNorm(4, rngs=rngs, use_running_average=True)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
            return self.last(self.head(x))

    graph, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))

    def fn(state: Any, x: jax.Array) -> Any:
        return nnx.merge(graph, state)(x)

    for wrap in (lambda f: f, jax.jit, jax.checkpoint):
        made = check(wrap(fn), fill(state), IMAGES)
        assert [one.weight for one in made.folded] == ["conv/kernel", "head/kernel"]
        assert len(made.removed) == 8


P = fill(
    {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in {
            "w": (6, 8), "heads": (6, 2, 4), "v": (8, 8), "b": (8,), "mean": (8,),
            "var": (8,), "std": (8,), "scale": (8,), "bias": (8,), "gamma": (1, 8),
        }.items()
    }
)  # fmt: skip
ROWS = normal(5, 6)


def row(vector: jax.Array) -> jax.Array:
    return vector[None]


def separate(p: Any, x: jax.Array) -> jax.Array:
    y = (x @ p["w"] + row(p["b"]) - row(p["mean"])) / jnp.sqrt(row(p["var"]) + 1e-3)
    return y * row(p["scale"]) + row(p["bias"])


def joined(p: Any, x: jax.Array) -> jax.Array:
    factor = row(p["scale"]) * jax.lax.rsqrt(row(p["var"]) + 1e-3)
    return (x @ p["w"]) * factor + (row(p["bias"]) - row(p["mean"]) * factor)


def deviation(p: Any, x: jax.Array) -> jax.Array:
    return (row(p["bias"]) + x @ p["w"]) / row(p["std"])


def layer_scale(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["w"]) @ p["v"] * p["gamma"]


def spread_out(p: Any, x: jax.Array) -> jax.Array:
    shape = (5, 8)
    y = x @ p["w"] * jnp.broadcast_to(p["scale"], shape)
    return y + jnp.broadcast_to(p["bias"], shape)


def by_heads(p: Any, x: jax.Array) -> jax.Array:
    y = jnp.einsum("bi,ihd->hbd", x, p["heads"])
    return y * p["scale"].reshape(2, 1, 4) + p["bias"].reshape(2, 1, 4)


def reshaped(p: Any, x: jax.Array) -> jax.Array:
    y = (x[:, None] @ p["w"][None]).reshape(5, 1, 1, 8).astype(jnp.float32)
    return y * row(p["scale"])[None, None]


def twice(p: Any, x: jax.Array) -> jax.Array:
    y = (x @ p["w"]) * row(p["scale"]) + row(p["bias"])
    return (y - row(p["mean"])) / jnp.sqrt(row(p["var"]) + 1e-5) * 0.5


def weight_first(p: Any, x: jax.Array) -> jax.Array:
    return p["w"].T @ x.T * p["scale"][:, None] + p["bias"][:, None]


@pytest.mark.parametrize(
    ("fn", "weight", "bias", "removed"),
    [
        (separate, "w", "bias", {"b", "mean", "var", "scale"}),
        (joined, "w", "bias", {"mean", "var", "scale"}),
        (deviation, "w", "bias", {"std"}),
        (layer_scale, "v", None, {"gamma"}),
        (spread_out, "w", "bias", {"scale"}),
        (by_heads, "heads", "bias", {"scale"}),
        (reshaped, "w", None, {"scale"}),
        (twice, "w", "mean", {"scale", "bias", "var"}),
        (weight_first, "w", "bias", {"scale"}),
    ],
)
def test_any_arithmetic(fn: Any, weight: str, bias: Any, removed: set[str]) -> None:
    made = check(fn, P, ROWS)
    (one,) = made.folded
    assert (one.weight, one.bias) == (weight, bias)
    assert set(made.removed) == removed


def test_bfloat16() -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), P)
    half = {name: half[name] for name in ("w", "scale", "bias", "mean")}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return (x @ p["w"] - row(p["mean"])) * row(p["scale"]) + row(p["bias"])

    made = check(fn, half, ROWS.astype(jnp.bfloat16), tolerance=3e-2)
    assert set(made.removed) == {"mean", "scale"}


def used_twice(p: Any, x: jax.Array) -> jax.Array:
    y = x @ p["w"]
    return y * row(p["scale"]) + jnp.tanh(y)


def weight_elsewhere(p: Any, x: jax.Array) -> jax.Array:
    return (x @ p["w"]) * row(p["scale"]) + jnp.sum(p["w"] ** 2) * x.sum()


def scale_elsewhere(p: Any, x: jax.Array) -> jax.Array:
    return (x @ p["w"]) * row(p["scale"]) @ p["v"] + row(p["scale"]) * x[:, :1]


def standardized(p: Any, x: jax.Array) -> jax.Array:
    w = p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True)
    return x @ w * row(p["scale"])


def not_a_scale(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["w"] * jnp.exp(row(p["scale"]))


def by_row(p: Any, x: jax.Array) -> jax.Array:
    return (x @ p["w"]) * p["scale"][:5, None]


def nonlinear(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["w"]) * row(p["scale"])


def returned(p: Any, x: jax.Array) -> Any:
    return x @ p["w"] * row(p["scale"]), p["scale"]


def in_a_loop(p: Any, x: jax.Array) -> Any:
    def body(y: Any, _: Any) -> Any:
        return y @ p["v"] * row(p["scale"]), None

    return jax.lax.scan(body, jnp.tanh(x @ p["w"]), None, length=2)[0]


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (used_twice, "scale: what it scales comes from the result of w, which is used"),
        (weight_elsewhere, "scale: w is used elsewhere too"),
        (scale_elsewhere, "scale: .*(scale is used elsewhere too|not from a product)"),
        (standardized, "scale: the product is not with w itself"),
        (not_a_scale, "scale: how the factor depends on scale is not known"),
        (by_row, "scale: it is not by output channel of w"),
        (nonlinear, "scale: what it scales comes from tanh, not from a product"),
        (returned, "scale: scale is used elsewhere too"),
        (in_a_loop, "scale: a loop, a branch or a function with a custom gradient"),
        (lambda p, x: x @ p["w"] + row(p["bias"]), "No leaf scales the result of a pr"),
    ],
)
def test_what_stays_and_why(fn: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=f"fold: nothing to fold. .*{message}"):
        fold(fn, P, ROWS)


def test_some_fold_and_others_are_named() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["w"] * row(p["scale"])) * p["gamma"]

    made = check(fn, P, ROWS)
    assert list(made.removed) == ["scale"]
    assert list(made.skipped) == ["gamma"]
    assert "gamma stays: what it scales comes from tanh" in str(made)


def test_training_mode_is_refused() -> None:
    variables = made_of(CNN(), IMAGES)
    train = functools.partial(CNN().apply, train=True, mutable=["batch_stats"])
    with pytest.raises(MismatchError, match=r"comes from .*in evaluation mode only"):
        fold(train, variables, IMAGES)
    made = fold(CNN().apply, variables, IMAGES)
    with pytest.raises(
        MismatchError, match="norm0/mean was folded away, and the function"
    ):
        folded(train, made.removed)(made.small, IMAGES)


def test_trees_that_do_not_fit() -> None:
    made = fold(separate, P, ROWS)
    with pytest.raises(
        MismatchError, match=r"folded: \w+ is present, though it was folded"
    ):
        folded(separate, made.removed)(made.variables, ROWS)
    with pytest.raises(
        MismatchError, match=r"folded: b, .* was removed, which is no leaf of"
    ):
        folded(separate, made.removed)({"w": P["w"]}, ROWS)
    with pytest.raises(MismatchError, match="folded: nothing was removed"):
        folded(separate, {})(made.small, ROWS)
    with pytest.raises(ValueError, match=r"fold: \w+ is traced"):
        jax.jit(lambda p: fold(separate, p, ROWS).variables)(P)
    packed = quantize(P, [("w", Quantize())], sites=find_sites(separate, P, ROWS))
    with pytest.raises(
        MismatchError, match="w is already a QTensor; fold, then compress"
    ):
        fold(separate, packed, ROWS)
