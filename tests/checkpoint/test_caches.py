"""Caches of keys and values come back whole, and go on where they were."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jcompress import checkpoint, kv_cache
from jcompress.checkpoint import CheckpointError
from jcompress.formats import Int, PowerOfTwoScales
from jcompress.kv_cache import CacheFormat, KVCache, Vectors

FOUR = Vectors(format=Int(4, symmetric=False), group=4)
EIGHT = Vectors(scales=PowerOfTwoScales())
SCALES = jnp.arange(1.0, 17).reshape(2, 8)


def filled(keys: Vectors | None, values: Vectors | None, scales: Any = None) -> KVCache:
    format = CacheFormat(keys=keys, values=values)
    cache = kv_cache.init(format, 1, 6, 2, 8, jnp.bfloat16, key_scales=scales)
    new = jax.random.normal(jax.random.key(0), (2, 1, 4, 2, 8), jnp.bfloat16)
    return kv_cache.update(cache, new[0], new[1], 0)


def assert_same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_layers_of_caches_come_back(tmp_path: pathlib.Path) -> None:
    tree = {
        "layers": [filled(EIGHT, FOUR, SCALES), filled(None, EIGHT)],
        "position": jnp.int32(4),
    }
    checkpoint.save(tmp_path / "cache", tree)
    # Without a template a list becomes a dict; the caches are caches.
    found = checkpoint.load(tmp_path / "cache")
    for number, cache in enumerate(tree["layers"]):
        assert_same(found["layers"][str(number)], cache)
    shapes = jax.eval_shape(lambda: tree)
    found = checkpoint.load(tmp_path / "cache", like=shapes)
    assert_same(found, tree)
    new = jax.random.normal(jax.random.key(1), (3, 1, 1, 2, 8), jnp.bfloat16)
    outs = [
        kv_cache.attend(kv_cache.update(one, new[0], new[1], 4), new[2], 4)
        for one in (found["layers"][0], tree["layers"][0])
    ]
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("other", [filled(FOUR, FOUR), filled(EIGHT, FOUR, SCALES)])
def test_a_cache_of_another_kind_is_refused(
    other: KVCache, tmp_path: pathlib.Path
) -> None:
    checkpoint.save(tmp_path / "cache", {"c": filled(EIGHT, FOUR)})
    with pytest.raises(
        CheckpointError, match=r"'c' is stored as KVCache\[1, 2, 6\] of"
    ):
        checkpoint.load(tmp_path / "cache", like={"c": other})


def test_a_serialized_program_takes_a_cache() -> None:
    cache = filled(EIGHT, FOUR, SCALES)
    new = jnp.ones((1, 1, 2, 8), jnp.bfloat16)
    step = jax.jit(lambda cache, x: kv_cache.update(cache, x, x, 4))
    written = export.export(step)(cache, new).serialize()
    assert_same(export.deserialize(written).call(cache, new), step(cache, new))
