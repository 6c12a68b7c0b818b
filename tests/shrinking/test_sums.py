"""Sums over units: safe where removed units add zero, opt-in where they do not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.shrinking import find_groups, shrink, shrunk, zero_units

KEEP = [0, 2, 3]


def normal(*shape: int) -> jax.Array:
    rng = np.random.default_rng(shape)
    return jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32)


X = normal(4, 3)
TREE = {"w": normal(3, 6), "z": normal(6, 3).T, "a": normal(6), "b": normal(6)}
Op = Callable[..., jax.Array]


def function(op: Op) -> Op:
    def fn(tree: Any, x: jax.Array) -> jax.Array:
        return op(tree, x @ tree["w"], x @ tree["z"])

    return fn


def wide(v: jax.Array) -> jax.Array:
    return v[None, :]


SAFE: dict[str, Op] = {
    "with a leaf": lambda p, h, g: (h * wide(p["a"])).sum(-1),
    "with itself": lambda p, h, g: (h * h).sum(-1),
    "with another": lambda p, h, g: (h * g).sum(-1),
    "behind what is not zero": lambda p, h, g: (jax.nn.sigmoid(h) * wide(p["a"])).sum(
        -1
    ),
    "behind zero at zero": lambda p, h, g: jax.nn.gelu(h).sum(-1),
    "attention over a graph": lambda p, h, g: jax.nn.softmax(
        jax.nn.leaky_relu(
            (h * wide(p["a"])).sum(-1)[:, None] + (h * wide(p["b"])).sum(-1)[None]
        )
    ),
    "norm": lambda p, h, g: h / jnp.linalg.norm(h, axis=1, keepdims=True) @ p["b"],
    "masked by a constant": lambda p, h, g: jnp.where(
        jnp.arange(4)[:, None] > 1, h, 0.0
    ).sum(-1),
    "of two axes": lambda p, h, g: (h * wide(p["a"])).sum(),
    "of a branch": lambda p, h, g: jax.lax.cond(
        h.sum() > 0, lambda: h * 2, lambda: jnp.tanh(h)
    ).sum(-1),
}

OPT_IN: dict[str, Op] = {
    "mean of products": lambda p, h, g: (h * wide(p["a"])).mean(-1),
    "mean in two steps": lambda p, h, g: h.sum(-1).sum() / h.size,
    "neither is zero": lambda p, h, g: (jnp.exp(h) * jax.nn.sigmoid(g)).sum(-1),
    "one is added": lambda p, h, g: (h + 1.0).sum(-1),
    "exponentials": lambda p, h, g: jnp.exp(h).sum(-1),
    "largest": lambda p, h, g: (-jnp.abs(h)).max(-1),
    "product": lambda p, h, g: h.prod(-1),
    "divided by what is zero": lambda p, h, g: (h / (g * g)).sum(-1),
    "zero only in one branch": lambda p, h, g: jax.lax.cond(
        h.sum() > 0, lambda: h, lambda: jnp.cos(h)
    ).sum(-1),
    "carried by a loop": lambda p, h, g: jax.lax.fori_loop(
        0, 3, lambda _, s: jnp.cos(s), h
    ).sum(-1),
    "ones of a constant": lambda p, h, g: jnp.maximum(
        h, jnp.asarray(np.ones((4, 6), np.float32))
    ).sum(-1),
}


@pytest.mark.parametrize("name", SAFE)
def test_zeros_add_nothing(name: str) -> None:
    fn = function(SAFE[name])
    groups = find_groups(fn, TREE, X)
    group = groups["w:1"]
    assert (group.size, group.reduced) == (6, None)
    plan = groups.keep({"w:1": KEEP})
    masked = fn(zero_units(TREE, plan), X)
    small = shrunk(fn, plan)(shrink(TREE, plan), X)
    np.testing.assert_allclose(small, masked, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPT_IN)
def test_what_is_not_zero_is_reduced_over(name: str) -> None:
    fn = function(OPT_IN[name])
    groups = find_groups(fn, TREE, X)
    assert "reduce_" in str(groups["w:1"].reduced)
    plan = groups.keep({"w:1": KEEP})
    masked = fn(zero_units(TREE, plan), X)
    small = shrunk(fn, plan)(shrink(TREE, plan), X)
    # Not one of them would have been right to allow.
    assert not np.allclose(small, masked, rtol=1e-4, atol=1e-5)


def test_products_reduced_and_products_are_the_same_group() -> None:
    by_hand = find_groups(function(SAFE["with a leaf"]), TREE, X)
    product = find_groups(function(lambda p, h, g: h @ p["a"]), TREE, X)
    assert [(g.name, g.size) for g in by_hand] == [(g.name, g.size) for g in product]
    members = [{(m.path, m.axis) for m in g["w:1"].members} for g in (by_hand, product)]
    assert members[0] == members[1] == {("w", 1), ("a", 0)}
