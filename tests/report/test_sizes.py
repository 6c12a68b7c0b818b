"""`sizes` against closed forms, worked out by hand for each layer."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Int
from jcompress.pruning import Block, to_sparse
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.report import parameters, stored_bytes
from jcompress.report.sizes import BETWEEN_DATA, Sizes, sizes
from jcompress.sharing import TieBlocks, TieLayers, tie, tied
from jcompress.sites import find_sites
from jcompress.tensors import LowRank

pytestmark = pytest.mark.once


def shapes(model: nn.Module, *args: Any) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), *args)


def zeros(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def table(found: Sizes) -> dict[str, tuple[int, int]]:
    return {
        row.name.removeprefix("params/"): (row.parameters, row.macs)
        for row in found.rows
    }


def conv(height: int, width: int, k: int, c: int, d: int) -> tuple[int, int]:
    """Parameters and multiplications of a convolution with a bias."""
    return k * k * c * d + d, height * width * k * k * c * d


def dense(n: int, m: int, rows: int = 1, bias: bool = True) -> tuple[int, int]:
    return n * m + (m if bias else 0), rows * n * m


class LeNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (5, 5), name="c1")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(16, (5, 5), padding="VALID", name="c3")(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(120, name="f5")(x))
        return nn.Dense(10, name="out")(nn.relu(nn.Dense(84, name="f6")(x)))


def test_lenet() -> None:
    image = zeros(1, 28, 28, 1)
    found = sizes(LeNet().apply, shapes(LeNet(), image), image)
    assert table(found) == {
        "c1": conv(28, 28, 5, 1, 6),
        "c3": conv(10, 10, 5, 6, 16),
        "f5": dense(400, 120),
        "f6": dense(120, 84),
        "out": dense(84, 10),
    }
    # The counts that are told of LeNet-5 with 10 outputs.
    assert found.parameters == 61_706
    assert found.macs == 416_520
    assert found.bytes == 4 * 61_706
    assert (found.nonzero, found.stored_macs) == (None, None)


def test_a_batch_multiplies_the_products_only() -> None:
    image = zeros(7, 28, 28, 1)
    found = sizes(LeNet().apply, shapes(LeNet(), image), image)
    assert (found.parameters, found.macs) == (61_706, 7 * 416_520)


class MobileBlock(nn.Module):
    """Expand, depthwise with stride 2, project: MobileNetV2's inverted residual."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu6(norm(name="n1")(nn.Conv(48, (1, 1), use_bias=False, name="e")(x)))
        x = nn.Conv(48, (3, 3), 2, feature_group_count=48, use_bias=False, name="d")(x)
        x = nn.relu6(norm(name="n2")(x))
        x = nn.Conv(12, (1, 1), use_bias=False, name="p")(x)
        return nn.Conv(12, (3, 3), feature_group_count=4, name="grouped")(x)


def test_a_mobilenet_block_and_a_grouped_convolution() -> None:
    image = zeros(1, 14, 14, 8)
    found = sizes(MobileBlock().apply, shapes(MobileBlock(), image), image)
    assert table(found) == {
        "e": (8 * 48, 14 * 14 * 8 * 48),
        "d": (9 * 48, 7 * 7 * 9 * 48),
        "p": (48 * 12, 7 * 7 * 48 * 12),
        "grouped": (9 * 3 * 12 + 12, 7 * 7 * 9 * 3 * 12),
        "n1": (2 * 48, 0),
        "n2": (2 * 48, 0),
        "batch_stats/n1": (2 * 48, 0),
        "batch_stats/n2": (2 * 48, 0),
    }


class Transformer(nn.Module):
    """An embedding, one transformer block, and a head."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(50, 16, name="embed")(ids)
        y = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(y, y)
        y = nn.gelu(nn.Dense(64, name="up")(x))
        return nn.Dense(3, name="head")(x + nn.Dense(16, name="down")(y))


def test_a_transformer_block() -> None:
    n, d = 10, 16
    ids = zeros(1, n, dtype=jnp.int32)
    found = sizes(Transformer().apply, shapes(Transformer(), ids), ids)
    rows = table(found)
    between = [name for name in rows if "params" not in name and rows[name][0] == 0]
    assert {name: rows[name] for name in rows if name not in between} == {
        "embed": (50 * d, 0),
        "norm": (2 * d, 0),
        **{
            f"attention/{part}": dense(d, d, n)
            for part in ("query", "key", "value", "out")
        },
        "up": dense(d, 4 * d, n),
        "down": dense(4 * d, d, n),
        "head": dense(d, 3, n),
    }
    # Scores and their product with the values: n n d each.
    assert sum(rows[name][1] for name in between) == 2 * n * n * d
    assert all("attention" in name for name in between)
    assert found.macs == 2 * n * n * d + n * (4 * d * d + 8 * d * d + 3 * d)


def test_an_lstm_over_time_and_layers() -> None:
    def cell(p: Any, carry: Any, x: jax.Array) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(x @ p["input"] + h @ p["hidden"] + p["bias"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def lstm(p: Any, x: jax.Array) -> Any:
        zero = jnp.zeros((x.shape[1], 5), x.dtype)
        return jax.lax.scan(functools.partial(cell, p["cell"]), (zero, zero), x)[1]

    cells = {"input": zeros(3, 20), "hidden": zeros(5, 20), "bias": zeros(1, 20)}
    found = sizes(lstm, {"cell": cells}, zeros(11, 2, 3))
    assert table(found) == {
        "cell": (4 * (3 * 5 + 5 * 5 + 5), 11 * 2 * 4 * (3 * 5 + 5 * 5))
    }

    def stacked(p: Any, x: jax.Array) -> Any:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    found = sizes(stacked, {"w": zeros(6, 4, 4)}, zeros(3, 4))
    assert table(found) == {"w": (6 * 16, 6 * 3 * 16)}


def test_products_between_data_are_named_by_their_scope() -> None:
    def fn(p: Any, x: jax.Array) -> Any:
        with jax.named_scope("outer"):

            def step(c: Any, y: jax.Array) -> Any:
                with jax.named_scope("inner"):
                    return c, y @ y.T

            _, y = jax.lax.scan(step, None, x)
        return y.sum() + jnp.sum(x[0] @ x[1].T) + p["b"]

    found = sizes(fn, {"b": zeros()}, zeros(3, 4, 5))
    rows = {row.name: row for row in found.rows}
    assert rows["outer/inner"].macs == 3 * 4 * 4 * 5
    assert rows[BETWEEN_DATA].macs == 4 * 4 * 5
    assert rows["b"].macs == 0


RNG = np.random.default_rng(0)
PARAMS = {
    "up": {
        "w": jnp.asarray(RNG.normal(size=(8, 16)), jnp.float32),
        "b": jnp.zeros((1, 16), jnp.float32),
    },
    "down": {"w": jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)},
}
X = zeros(3, 8)


def mlp(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["up"]["w"] + p["up"]["b"]) @ p["down"]["w"]


def test_compressed_and_sparse_leaves() -> None:
    """Of the multiplications, the part with weights that are not 0."""
    tree = jax.tree.map(lambda leaf: leaf, PARAMS)
    tree["up"]["w"] = PARAMS["up"]["w"].at[:, 4:].set(0.0)
    dense_sizes = sizes(mlp, tree, X)
    sites = find_sites(mlp, tree, X)
    sparse = to_sparse(tree, [("up/w", Block((4, 4)))], sites=sites)
    packed = quantize(
        sparse, [("down/w", Quantize(weights=Weights(format=Int(4))))], sites=sites
    )
    for found, given in ((dense_sizes, tree), (sizes(mlp, packed, X), packed)):
        down, up = found.rows
        assert (up.parameters, up.nonzero) == (8 * 16 + 16, 8 * 4)
        assert (up.macs, up.stored_macs) == (3 * 8 * 16, 3 * 8 * 4)
        assert (down.macs, down.operations) == (3 * 16 * 4, ("dot",))
        assert found.bytes == stored_bytes(given)
        assert found.parameters == parameters(given)
        assert found.nonzero == up.nonzero + (down.nonzero or 0)
    assert sizes(mlp, packed, X).bytes < dense_sizes.bytes / 2


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_multiplies_twice(rank: int) -> None:
    factors = (
        jnp.ones((rank, 8), jnp.float32),
        jnp.ones((16, rank), jnp.float32),
    )
    leaf = LowRank(
        factors=factors,
        shape=(8, 16),
        dtype=jnp.float32,
        output_axes=(1,),
        input_axes=(0,),
    )
    tree = {**PARAMS, "up": {**PARAMS["up"], "w": leaf}}
    found = sizes(mlp, tree, X)
    (row,) = [row for row in found.rows if row.name == "up"]
    assert (row.macs, row.stored_macs) == (3 * 8 * 16, 3 * rank * (8 + 16))
    assert found.bytes == 4 * (rank * 24 + 16 + 64)


def test_tied_leaves_count_once() -> None:
    def two(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["a"]["w"] @ p["b"]["w"]

    params = {"a": {"w": jnp.ones((4, 4))}, "b": {"w": jnp.ones((4, 4))}}
    ties = [TieBlocks(("a", "b"))]
    found = sizes(tied(two, ties), tie(params, ties), zeros(2, 4))
    assert table(found) == {"a": (16, 2 * 2 * 16)}

    def deep(p: Any, x: jax.Array) -> Any:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    stack = {"w": jnp.ones((6, 4, 4))}
    layers = [TieLayers(below="w", groups=(0, 0, 0, 1, 1, 1))]
    found = sizes(tied(deep, layers), tie(stack, layers), zeros(2, 4))
    assert table(found) == {"w": (2 * 16, 6 * 2 * 16)}


def test_a_while_loop_counts_once() -> None:
    def fn(p: Any, x: jax.Array) -> Any:
        return jax.lax.while_loop(
            lambda y: jnp.sum(y) < 9, lambda y: jnp.tanh(y @ p["w"]) @ y.T @ y, x
        )

    found = sizes(fn, {"w": zeros(4, 4)}, zeros(4, 4))
    assert found.once
    assert found.macs == 3 * 64
    assert "a while loop counts once" in str(found)
    assert not sizes(mlp, PARAMS, X).once


def test_the_table() -> None:
    text = str(sizes(mlp, PARAMS, X)).splitlines()
    assert text[0].split() == [
        "layer", "operation", "parameters", "not", "0", "bytes", "multiplications",
        "with", "stored,", "not", "0",
    ]  # fmt: skip
    assert text[2].split() == ["down", "dot", "64", "64", "256", "192", "192"]
    assert text[3].split() == ["up", "dot", "144", "128", "576", "384", "384"]
    assert text[4].split() == ["total", "-", "208", "192", "832", "576", "576"]
    assert "simulated" in text[5]
    assert "?" in str(sizes(LeNet().apply, shapes(LeNet(), X4), X4))


@pytest.mark.parametrize("size", [8, 512])
@pytest.mark.parametrize("depth", [1, 3, 9])
def test_the_table_fits_a_terminal(depth: int, size: int) -> None:
    scope = "/".join(["encoder_block_of_a_long_name"] * depth)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        for layer in p.values():
            x = x @ layer["w"]
        return x @ x.T

    params = {f"{scope}/{name}": {"w": zeros(size, size)} for name in ("query", "key")}
    found = sizes(fn, params, zeros(4096, size))
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    told = " ".join(lines)
    for row in found.rows:
        assert row.name[-4:] in told
        for number in (row.parameters, row.bytes, row.macs, row.stored_macs):
            assert number is None or f"{number:,}" in told
    head = [line.split() for line in lines if line.startswith("layer")]
    assert sum("multiplications" in words for words in head) == 1


X4 = zeros(1, 28, 28, 1)


def test_no_array() -> None:
    with pytest.raises(ValueError, match="no array"):
        sizes(mlp, {}, X)


def test_a_key_among_the_leaves_has_its_bytes() -> None:
    params = {"key": jax.random.key(0), "w": jnp.ones((3, 4))}
    found = sizes(lambda p, x: x @ p["w"], params, jnp.ones((2, 3)))
    assert found.bytes == 8 + 4 * 12
    assert found.macs == 24
