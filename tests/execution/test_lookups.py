"""Lookups in stored tables give the rows of the dense table, and no more of it."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcompress.execution import How, compressed, inspect
from jcompress.formats import (
    Float4,
    Float8,
    FloatScales,
    Int,
    NormalFloat4,
    QuantizedScales,
    Ternary,
)
from jcompress.quantization import (
    PerBlock,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    quantize,
)
from jcompress.sites import find_sites
from jcompress.tensors import is_compressed

rng = np.random.default_rng(0)
TABLE = jnp.asarray(rng.normal(size=(12, 8)).astype(np.float32))
STACK = jnp.asarray(rng.normal(size=(3, 12, 8)).astype(np.float32))
IDS = jnp.asarray([[3, 0, 11], [7, 7, 2]], jnp.int32)
FAR = jnp.asarray([3, 12, -13, -1, 40], jnp.int32)
STEP = jnp.int32(10)
BLOCKS = PerBlock(outputs=4, inputs=2)

SPECS = {
    "int8": Weights(),
    "int4 zero group": Weights(format=Int(4, symmetric=False), granularity=PerGroup(4)),
    "one scale": Weights(granularity=PerTensor()),
    "one scale, zero": Weights(format=Int(3, symmetric=False), granularity=PerTensor()),
    "blocks": Weights(granularity=BLOCKS),
    "float8": Weights(format=Float8(), scales=FloatScales(16)),
    "float4 quantized scales": Weights(
        format=Float4(), granularity=PerGroup(4), scales=QuantizedScales()
    ),
    "nf4 blocks": Weights(format=NormalFloat4(), granularity=BLOCKS),
    "ternary": Weights(format=Ternary()),
}


def take(mode: Any, **given: Any) -> Callable[..., jax.Array]:
    return lambda p, i: jnp.take(p["t"], i, axis=0, mode=mode, **given)


def scanned(p: Any, i: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, t: (x, t[i] + x), jnp.float32(0), p["t"])[1]


LOOKUPS: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "plain": (lambda p, i: p["t"][i], TABLE, IDS),
    "scaled": (lambda p, i: p["t"][i] * np.float32(8**0.5), TABLE, IDS),
    "bytes": (lambda p, i: p["t"][i], TABLE, IDS.astype(jnp.uint8)),
    "clip": (take("clip"), TABLE, FAR),
    "wrap": (take("wrap"), TABLE, FAR),
    "fill": (take("fill"), TABLE, FAR),
    "fill with 7": (take("fill", fill_value=7.0), TABLE, FAR),
    "one row": (lambda p, i: p["t"][i], TABLE, jnp.int32(-2)),
    "columns": (lambda p, i: jnp.take(p["t"], i, axis=1), TABLE, IDS % 8),
    "two places": (lambda p, i: p["t"][i[0] % 3, i[1]], STACK, IDS),
    "one of many matrices": (lambda p, i: p["t"][i % 3], STACK, IDS),
    "middle": (lambda p, i: jnp.take(p["t"], i, axis=1), STACK, IDS),
    "window": (
        lambda p, i: jax.lax.dynamic_slice_in_dim(p["t"], i, 4),
        TABLE,
        STEP,
    ),
    "windows": (
        jax.vmap(
            lambda p, i: jax.lax.dynamic_slice_in_dim(p["t"], i, 4), in_axes=(None, 0)
        ),
        TABLE,
        FAR,
    ),
    "scan": (scanned, STACK, IDS),
    "vmap": (
        lambda p, i: jax.vmap(lambda t, i: t[i])(p["t"], i),
        STACK[:2],
        IDS,
    ),
}


def stored(fn: Any, table: jax.Array, ids: Any, spec: Weights) -> dict[str, Any]:
    params = {"t": table}
    rules = [(..., Quantize(weights=spec))]
    return quantize(params, rules, sites=find_sites(fn, params, ids))


def check(fn: Any, small: Any, ids: Any, *hows: How) -> None:
    assert tuple(use.how for use in inspect(fn, small, ids)) == hows
    dense = jax.tree.map(
        lambda x: x.dense() if is_compressed(x) else x, small, is_leaf=is_compressed
    )
    got = jax.jit(compressed(fn))(small, ids)
    np.testing.assert_array_equal(got, jax.jit(fn)(dense, ids))


@pytest.mark.parametrize("name", SPECS)
def test_every_format_gives_its_dense_rows(name: str) -> None:
    fn = take("fill")
    check(fn, stored(fn, TABLE, FAR, SPECS[name]), FAR, How.ROWS)


@pytest.mark.parametrize("name", LOOKUPS)
def test_every_lookup_takes_rows(name: str) -> None:
    fn, table, ids = LOOKUPS[name]
    spec = Weights(format=Int(4, symmetric=False), granularity=PerTensor())
    if "one" not in name and name != "columns":
        spec = Weights(format=Int(4), granularity=PerBlock(outputs=3, inputs=4))
    if name == "vmap":  # Stacked, each with the blocks of its own.
        spec = Weights(granularity=BLOCKS, scales=QuantizedScales())
    check(fn, stored(fn, table, ids, spec), ids, How.ROWS)


@pytest.mark.parametrize("spec", ["int8", "int4 zero group", "one scale", "blocks"])
def test_a_tied_table_is_looked_up_and_multiplied(spec: str) -> None:
    table = jnp.tile(TABLE, (40, 16))

    def fn(p: Any, i: jax.Array) -> jax.Array:
        return jnp.tanh(p["t"][i]) @ p["t"].T

    small = stored(fn, table, IDS, SPECS[spec])
    hows = [use.how for use in inspect(fn, small, IDS)]
    assert hows == [How.ROWS, How.WEIGHT_ONLY]
    wanted = fn({"t": small["t"].dense()}, IDS)
    got = jax.jit(compressed(fn))(small, IDS)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * abs(wanted).max())


def test_embeddings_of_flax() -> None:
    linen = nn.Embed(12, 8, dtype=jnp.bfloat16)
    variables = linen.init(jax.random.key(0), IDS)
    graph, state = nnx.split(nnx.Embed(12, 8, rngs=nnx.Rngs(0)))
    models = (
        (linen.apply, variables),
        (lambda s, i: nnx.merge(graph, s)(i), state),
    )
    for fn, tree in models:
        small = quantize(tree, [(..., Quantize())], sites=find_sites(fn, tree, IDS))
        check(fn, small, IDS, How.ROWS)


def test_one_hot_products_run_as_products() -> None:
    table = jnp.tile(TABLE, (40, 16))

    def fn(p: Any, i: jax.Array) -> jax.Array:
        return jax.nn.one_hot(i, 480) @ p["t"]

    small = stored(fn, table, IDS, Weights())
    (use,) = inspect(fn, small, IDS)
    assert use.how is How.WEIGHT_ONLY
    wanted = small["t"].dense()[IDS]
    np.testing.assert_allclose(compressed(fn)(small, IDS), wanted, rtol=0, atol=1e-6)


def test_what_is_made_dense_says_why() -> None:
    def scaled(p: Any, i: jax.Array) -> jax.Array:
        return (p["t"] * np.float32(2))[i]

    def both(p: Any, i: jax.Array) -> jax.Array:  # A product sums over the words.
        return p["t"][i] + jax.nn.one_hot(i, 12) @ p["t"]

    for fn, why in ((scaled, "computes|element by element"), (both, "picks among")):
        small = stored(fn, TABLE, IDS, Weights())
        uses = [u for u in inspect(fn, small, IDS) if u.how is How.DENSE]
        assert uses
        assert any(re.search(why, u.why) for u in uses), uses
