"""Which inputs can be scaled, what takes up the inverse, and why others cannot."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rescaling_models as models
import zoo

from jcompress.formats import Int
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.rescaling import find_scalable
from jcompress.rescaling.rescaled import checked
from jcompress.rescaling.scalable import Scaling
from jcompress.sites import find_sites
from jcompress.tracing.trace import trace

X = models.normal(2, models.LENGTH, models.WIDTH)


def table(fn: Any, params: Any, *args: Any) -> dict[str, tuple[set[str], int]]:
    """By consumers, joined, the producers and the number of factors."""
    found = find_scalable(fn, params, *args)
    return {
        " ".join(sorted(group.consumers)): (set(group.producers), group.size)
        for group in found
    }


def test_relu_lets_factors_pass_and_the_bias_takes_part() -> None:
    params = models.mlp_params()
    assert table(models.mlp, params, X) == {"down": ({"up", "bias"}, models.HIDDEN)}
    found = find_scalable(models.mlp, params, X)
    assert "reads an argument of the function" in found.skipped["up"]
    assert found["down"] is found.groups[0]
    assert "32 inputs of down: up, bias" in str(found)


def test_a_block_of_attention_and_gated_products() -> None:
    params = models.block_params()
    assert table(models.llama_block, params, X) == {
        "k q v": ({"norm1"}, models.WIDTH),
        "o": ({"v"}, models.WIDTH),
        "gate up": ({"norm2"}, models.WIDTH),
        # What is gated takes up the factors, not the gate.
        "down": ({"up"}, models.HIDDEN),
    }


def test_layers_of_a_scan_have_their_own_factors() -> None:
    found = table(models.layers, models.block_params(3), X)
    assert found["down"] == ({"up"}, 3 * models.HIDDEN)
    assert found["k q v"] == ({"norm1"}, 3 * models.WIDTH)


def test_a_norm_with_a_shift_and_fused_heads() -> None:
    """A matrix for queries, keys and values, heads by reshape, grouped queries."""
    width, heads, few, head = 8, 4, 2, 3

    def block(p: Any, x: jax.Array) -> jax.Array:
        h = models.layer_norm(x, p["scale"], p["shift"]) @ p["qkv"]
        q, k, v = jnp.split(h, [heads * head, (heads + few) * head], axis=-1)
        q, k, v = (y.reshape(*y.shape[:2], -1, head) for y in (q, k, v))
        k, v = (jnp.repeat(y, heads // few, axis=2) for y in (k, v))
        scores = jax.nn.softmax(jnp.einsum("bqhk,bthk->bhqt", q, k))
        mixed = jnp.einsum("bhqt,bthk->bqhk", scores, v)
        return mixed.reshape(*x.shape[:2], -1) @ p["out"]

    params = {
        "scale": jnp.ones(width),
        "shift": jnp.ones(width),
        "qkv": models.normal(width, (heads + 2 * few) * head),
        "out": models.normal(heads * head, width),
    }
    x = models.normal(2, 5, width)
    assert table(block, params, x) == {
        "qkv": ({"scale", "shift"}, width),
        # Two heads of queries share each head of values, and its factors.
        "out": ({"qkv"}, few * head),
    }


def test_convolutions_pools_and_depthwise_kernels() -> None:
    params = models.convolution_params()
    found = find_scalable(models.convolutions, params, models.images())
    # Two could take up the factors; one suffices, and the other is left as it is.
    (group,) = found
    assert (group.consumers, group.producers) == (("last",), ("deep",))
    assert "one input each" in found.skipped["deep"]


def test_a_stream_is_scaled_by_all_that_write_to_it_or_not_at_all() -> None:
    def stream(p: Any, x: jax.Array) -> jax.Array:
        x = x @ p["in"]
        for name in ("a", "b"):
            x = x + jax.nn.relu(x @ p[name + "1"]) @ p[name + "2"]
        return jax.nn.relu(x) @ p["out"]

    names = {"in": (4, 8), "out": (8, 3)}
    names |= {f"{n}{i}": (8, 8) for n in "ab" for i in (1, 2)}
    params = {name: models.normal(*shape) for name, shape in names.items()}
    x = models.normal(2, 4)
    assert table(stream, params, x)["a1 b1 out"] == ({"in", "a2", "b2"}, 8)

    def seen(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return stream(p, x), x @ p["in"]

    found = find_scalable(seen, params, x)
    assert {group.name for group in found} == {"a2", "b2"}
    assert "the result of the function" in found.skipped["out"]


def test_reasons_name_what_stands_in_the_way() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        with jax.named_scope("middle"):
            x = jnp.tanh(x @ p["a"])
        return jax.nn.softmax(x @ p["b"]) @ p["c"]

    params = {name: models.normal(4, 4) for name in "abc"}
    small = quantize(
        params,
        [("c", Quantize(weights=Weights(format=Int(8))))],
        sites=find_sites(model, params, models.normal(2, 4)),
    )
    found = find_scalable(model, small, models.normal(2, 4))
    assert not found.groups
    assert found.skipped["b"] == "`dot_general` reads `tanh` in middle"
    assert found.skipped["c"] == "c, which is compressed already"


@pytest.mark.parametrize(
    "name",
    ["linen_cnn_eval", "linen_resnet", "linen_transformer", "nnx_cnn_eval",
     "nnx_attention",
     "nnx_scan_remat", "equinox_mlp", "equinox_attention", "haiku_attention",
     "merged_by_reshape", "experts_by_einsum", "padded_and_tiled_weight",
     "linen_strided_dilated_transposed", "weights_placed_split_and_turned_round"],
)  # fmt: skip
def test_any_factors_leave_the_function_as_it_is(name: str) -> None:
    case = zoo.build(name)
    traced = trace(case.fn, case.variables, case.args, case.kwargs)
    scaling = Scaling(traced)
    assert scaling.inputs.groups
    logs = np.random.default_rng(0).uniform(-1, 1, len(scaling.group_of))
    logs[scaling.group_of < 0] = 0
    values = scaling.found.spread(logs)
    new = {}
    for number, path in enumerate(traced.names):
        factor = np.exp(scaling.found.log_factor(number, values))
        if np.any(factor != 1):
            leaf = traced.leaves[number]
            new[path] = jnp.asarray(np.asarray(leaf) * factor, leaf.dtype)
    named = {path for group in scaling.inputs for path in group.producers}
    assert named <= new.keys()
    checked("test", traced, new, 1e-5)


def test_a_power_counts_as_often_as_it_multiplies() -> None:
    def model(p: Any, x: jax.Array) -> jax.Array:
        return jnp.square(jax.nn.relu(x @ p["up"])) @ p["down"]

    params = {"up": models.normal(4, 8), "down": models.normal(8, 4)}
    traced = trace(model, params, (models.normal(2, 4),), {})
    scaling = Scaling(traced)
    logs = np.where(scaling.group_of == 0, np.log(4.0), 0.0)
    values = scaling.found.spread(logs)
    down, up = (np.exp(scaling.found.log_factor(n, values)) for n in (0, 1))
    np.testing.assert_allclose(down.ravel() * up.ravel() ** 2, 1)
    assert set(np.round(np.log2(down.ravel()), 6)) <= {2.0, -2.0, 4.0, -4.0}


def test_what_is_no_function_of_a_tree_raises() -> None:
    with pytest.raises(TypeError, match="the order is"):
        find_scalable({"w": X}, {"w": X}, X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no array"):
        find_scalable(models.mlp, {"w": None}, X)
