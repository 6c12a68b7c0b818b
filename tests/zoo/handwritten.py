"""Plain JAX: the many ways in which a weight reaches its product."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo._case import ANY, Case, case, data, dot, leaf, lookup


@case
def transposed_weight() -> Case:
    return Case(
        fn=lambda p, x: jnp.tanh(x @ p["w"].T) + p["b"],
        variables={"w": leaf(6, 8), "b": leaf(4, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (0,), 4 * 8 * 6)]},
        elementwise=("b",),
    )


@case
def weight_on_the_left() -> Case:
    return Case(
        fn=lambda p, x: jnp.dot(p["w"], x.T).T,
        variables={"w": leaf(6, 8)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (0,), 4 * 8 * 6)]},
    )


@case
def vector_leaf() -> Case:
    return Case(
        fn=lambda p, x: jnp.dot(x, p["v"]),
        variables={"v": leaf(8)},
        args=(data(4, 8),),
        weights={"v": [dot((0,), (), 4 * 8)]},
    )


@case
def bfloat16_casts() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        w = p["w"].astype(jnp.bfloat16)
        y = jnp.dot(x.astype(jnp.bfloat16), w, preferred_element_type=jnp.float32)
        return y + p["b"].astype(jnp.float32)[None]

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6), "b": leaf(6, dtype=jnp.bfloat16)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6)]},
        elementwise=("b",),
    )


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k))
    return jnp.einsum("bqk,bkd->bqd", weights, v)


@case
def qkv_by_slices_of_the_weight() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = (x @ p["qkv"][:, i * 6 : (i + 1) * 6] for i in range(3))
        return _attend(q, k, v)

    return Case(
        fn=fn,
        variables={"qkv": leaf(8, 18)},
        args=(data(4, 5, 8),),
        weights={"qkv": [dot((0,), (1,), 4 * 5 * 8 * 6)] * 3},
    )


@case
def qkv_by_splits_of_the_weight() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return _attend(*(x @ w for w in jnp.split(p["qkv"], 3, axis=1)))

    return Case(
        fn=fn,
        variables={"qkv": leaf(8, 18)},
        args=(data(4, 5, 8),),
        weights={"qkv": [dot((0,), (1,), 4 * 5 * 8 * 6)] * 3},
    )


@case
def qkv_by_splits_of_the_output() -> Case:
    return Case(
        fn=lambda p, x: _attend(*jnp.split(x @ p["qkv"] + p["b"], 3, axis=-1)),
        variables={"qkv": leaf(8, 18), "b": leaf(1, 1, 18)},
        args=(data(4, 5, 8),),
        weights={"qkv": [dot((0,), (1,), 4 * 5 * 8 * 18)]},
        elementwise=("b",),
    )


@case
def heads_by_reshape() -> Case:
    """Merged (heads, size) axes, split for the product; all or part is contracted."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        q = jnp.einsum("btd,dhk->bthk", x, p["q"].reshape(8, 3, 4))
        per_head = jnp.einsum("bthk,hkn->bthn", q, p["mix"].reshape(3, 4, 5))
        return jnp.einsum("bthn,hnd->btd", per_head, p["out"].reshape(3, 5, 7))

    return Case(
        fn=fn,
        variables={"q": leaf(8, 12), "mix": leaf(12, 5), "out": leaf(15, 7)},
        args=(data(4, 6, 8),),
        weights={
            "q": [dot((0,), (1,), 4 * 6 * 8 * 3 * 4)],
            "mix": [dot((0,), (1,), 4 * 6 * 3 * 4 * 5)],
            "out": [dot((0,), (1,), 4 * 6 * 3 * 5 * 7)],
        },
    )


@case
def merged_by_reshape() -> Case:
    """Axes that the leaf keeps apart and the product sees as one."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = x @ p["up"].reshape(8, 12)
        return y @ p["down"].transpose(1, 2, 0).reshape(12, 5)

    return Case(
        fn=fn,
        variables={"up": leaf(8, 3, 4), "down": leaf(5, 3, 4)},
        args=(data(4, 8),),
        weights={
            "up": [dot((0,), (1, 2), 4 * 8 * 12)],
            "down": [dot((1, 2), (0,), 4 * 12 * 5)],
        },
    )


@case
def views() -> Case:
    """Squeeze, expand, broadcast, reverse, move: none of them is arithmetic."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        a = x @ jnp.squeeze(p["a"], axis=1)
        b = jnp.flip(jnp.moveaxis(p["b"], 0, -1), axis=0)
        c = jnp.broadcast_to(p["c"][None], (4, 5, 7))
        return jnp.einsum("bn,bnm->bm", a @ b[:, :5], c)

    return Case(
        fn=fn,
        variables={"a": leaf(8, 1, 6), "b": leaf(9, 6), "c": leaf(5, 7)},
        args=(data(4, 8),),
        weights={
            "a": [dot((0,), (1, 2), 4 * 8 * 6)],
            "b": [dot((1,), (0,), 4 * 6 * 5)],
            "c": [dot((0,), (1,), 4 * 5 * 7)],
        },
    )


@case
def constant_permutation() -> Case:
    """Rows that a fixed index picks are looked up, and then multiplied."""
    order = np.array([2, 0, 1, 3, 5, 4, 7, 6], np.int32)
    return Case(
        fn=lambda p, x: x @ p["w"][order],
        variables={"w": leaf(8, 6)},
        args=(data(4, 8),),
        weights={"w": [lookup((1,), (0,)), dot((0,), (1,), 4 * 8 * 6, derived=ANY)]},
    )


@case
def experts_by_einsum() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        spread = jnp.einsum("bk,ekn->ben", x, p["spread"])
        y = jnp.einsum("ebk,ekn->ebn", spread.transpose(1, 0, 2), p["batched"])
        return jnp.einsum("ebn,nem->bm", y, p["merged"])

    return Case(
        fn=fn,
        variables={
            "spread": leaf(3, 8, 6),
            "batched": leaf(3, 6, 5),
            "merged": leaf(5, 3, 7),
        },
        args=(data(4, 8),),
        weights={
            "spread": [dot((1,), (0, 2), 4 * 8 * 3 * 6)],
            "batched": [dot((1,), (2,), 3 * 4 * 6 * 5, stack=(0,))],
            "merged": [dot((0, 1), (2,), 4 * 5 * 3 * 7)],
        },
    )


@case
def unrolled_stack() -> Case:
    """Python loop over a stacked weight: static slices of a stack axis."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        for i in range(3):
            x = jnp.tanh(x @ p["w"][i] + p["b"][i][None])
        return x

    return Case(
        fn=fn,
        variables={"w": leaf(3, 8, 8), "b": leaf(3, 8)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (2,), 4 * 8 * 8, stack=(0,))] * 3},
        stacked=("b",),
    )


@case
def squeeze_excite() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = jnp.mean(x, axis=(1, 2))
        y = jax.nn.relu(y @ p["down"] + p["b"][None])
        return x * jax.nn.sigmoid(y @ p["up"])[:, None, None, :]

    return Case(
        fn=fn,
        variables={"down": leaf(8, 2), "b": leaf(2), "up": leaf(2, 8)},
        args=(data(4, 3, 3, 8),),
        weights={
            "down": [dot((0,), (1,), 4 * 8 * 2)],
            "up": [dot((0,), (1,), 4 * 2 * 8)],
        },
        elementwise=("b",),
    )


@case
def energy() -> Case:
    """A gradient inside the function: one leaf forwards and, transposed, backwards."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ p["w"])))(x)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6), dot((1,), (0,), 4 * 6 * 8)]},
    )
