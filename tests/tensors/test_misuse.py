"""A compressed leaf used as an array says what to do instead."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.execution import compressed
from jcompress.quantization import Quantize, quantize
from jcompress.sites import find_sites
from jcompress.tensors import Codebook
from jcompress.tensors.axes import Axes

LEAF = Codebook.of(jnp.eye(4), Axes((), (0,), (1,)))
USES: dict[str, Callable[[Any], Any]] = {
    "indexed": lambda leaf: leaf[0],
    "looped over": list,
    "added to": lambda leaf: leaf + 1,
    "negated": operator.neg,
    "compared": lambda leaf: leaf > 0,
    "multiplied by JAX": lambda leaf: jnp.ones((2, 4)) @ leaf,
    "multiplied by NumPy": lambda leaf: np.ones((2, 4)) @ leaf,
    "multiplied": lambda leaf: leaf @ jnp.ones((4, 2)),
    "converted": jnp.asarray,
    "converted by NumPy": np.asarray,
    "reduced": jnp.sum,
    "multiplied in jit": jax.jit(lambda leaf: jnp.dot(jnp.ones((2, 4)), leaf)),
}


@pytest.mark.parametrize("use", USES)
def test_it_is_refused_with_the_way_out(use: str) -> None:
    with pytest.raises(
        TypeError,
        match=r"Codebook: .* not an array .* compressed\(fn\)\(params, .* leaf\.dense",
    ):
        USES[use](LEAF)


def test_trees_hold_it_as_before() -> None:
    tree = jax.jit(lambda tree: tree)({"a": LEAF})
    jax.tree.map(np.testing.assert_array_equal, tree["a"].dense(), jnp.eye(4))
    assert tree["a"] != LEAF


CHANGES: dict[str, Callable[[Any], Any]] = {
    "stacked": lambda x: jnp.stack([x, x]),
    "cast": lambda x: x.astype(jnp.float16),
    "cut": lambda x: x[:2],
    "scalar": lambda x: x.ravel()[0],
}


@pytest.mark.parametrize("change", CHANGES)
def test_arrays_that_were_changed_one_by_one_are_noticed(change: str) -> None:
    def layer(params: Any, x: Any) -> Any:
        return x @ params["w"]

    params, x = {"w": jnp.eye(4)}, jnp.ones((2, 4))
    small = quantize(params, [("w", Quantize())], sites=find_sites(layer, params, x))
    wrong = jax.tree.map(CHANGES[change], small)
    message = r"QTensor: .* one by one, as jax\.tree\.map does: .*jax\.vmap"
    with pytest.raises(ValueError, match=rf"compressed: 'w': {message}"):
        compressed(layer)(wrong, x)
    with pytest.raises(ValueError, match=message):
        wrong["w"].dense()


def test_stacked_leaves_go_through_vmap() -> None:
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), LEAF)
    np.testing.assert_array_equal(
        jax.vmap(lambda leaf: leaf.dense())(stacked), [np.eye(4)] * 2
    )
