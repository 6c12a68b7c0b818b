"""Embeddings: gathers by data, one-hot products, positions, mixtures of experts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo._case import Case, case, data, dot, ids, leaf, lookup, ragged


@case
def embedding_by_index() -> Case:
    return Case(
        fn=lambda p, i: p["table"][i],
        variables={"table": leaf(12, 6)},
        args=(ids(4, 5, below=12),),
        weights={"table": [lookup((1,), (0,))]},
    )


MODES: tuple[Any, ...] = ("clip", "fill", "wrap", None)


@case
def embedding_take_modes() -> Case:
    return Case(
        fn=lambda p, i: [jnp.take(p["t"], i, axis=0, mode=m) for m in MODES],
        variables={"t": leaf(12, 6)},
        args=(ids(4, 5, below=12),),
        weights={"t": [lookup((1,), (0,))] * 4},
    )


@case
def embedding_columns() -> Case:
    return Case(
        fn=lambda p, i: jnp.take(p["table"], i, axis=1),
        variables={"table": leaf(6, 12)},
        args=(ids(4, below=12),),
        weights={"table": [lookup((0,), (1,))]},
    )


@case
def embedding_two_indices() -> Case:
    return Case(
        fn=lambda p, i, j: p["table"][i, j],
        variables={"table": leaf(3, 5, 6)},
        args=(ids(4, below=3), ids(4, 1, below=5)[:, 0]),
        weights={"table": [lookup((2,), (0, 1))]},
    )


@case
def embedding_one_hot() -> Case:
    return Case(
        fn=lambda p, i: jax.nn.one_hot(i, 12) @ p["table"],
        variables={"table": leaf(12, 6)},
        args=(ids(4, 5, below=12),),
        weights={"table": [dot((0,), (1,), 4 * 5 * 12 * 6)]},
    )


@case
def embedding_tied_and_scaled() -> Case:
    """The table is scaled before the lookup, and transposed for the logits."""

    def fn(p: Any, i: jax.Array) -> jax.Array:
        return jnp.take(p["table"] * 2.0, i, axis=0) @ p["table"].T

    return Case(
        fn=fn,
        variables={"table": leaf(12, 6)},
        args=(ids(4, 5, below=12),),
        weights={
            "table": [
                lookup((1,), (0,), derived=True),
                dot((1,), (0,), 4 * 5 * 6 * 12),
            ]
        },
    )


@case
def positions_and_class_token() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        token = jnp.broadcast_to(p["token"][None, None], (4, 1, 6))
        x = jnp.concatenate([token, x @ p["w"]], axis=1)
        return x + p["positions"][None, :4]

    return Case(
        fn=fn,
        variables={"token": leaf(6), "w": leaf(8, 6), "positions": leaf(9, 6)},
        args=(data(4, 3, 8),),
        weights={"w": [dot((0,), (1,), 4 * 3 * 8 * 6)]},
        elementwise=("positions",),
        loose=("token",),
    )


@case
def positions_at_a_step() -> Case:
    """Decoding: the row is chosen by an argument."""

    def fn(p: Any, x: jax.Array, step: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice(p["positions"], (step, jnp.int32(0)), (1, 6))
        return x + row

    return Case(
        fn=fn,
        variables={"positions": leaf(9, 6)},
        args=(data(4, 6), jnp.int32(3)),
        weights={"positions": [lookup((1,), (0,))]},
        vmap=False,
    )


@case
def relative_position_bias() -> Case:
    """Fixed indices into a table of positions, added like a bias."""
    offsets = np.arange(5)[:, None] - np.arange(5)[None, :] + 4

    def fn(p: Any, x: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqd,bkd->bqk", x, x @ p["w"])
        return jax.nn.softmax(scores + p["table"][offsets.astype(np.int32)][None])

    return Case(
        fn=fn,
        variables={"w": leaf(6, 6), "table": leaf(9)},
        args=(data(4, 5, 6),),
        weights={
            "w": [dot((0,), (1,), 4 * 5 * 6 * 6)],
            "table": [lookup((), (0,))],
        },
    )


@case
def rotary_positions() -> Case:
    """Iotas and constants reach the data; none of them is a leaf."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        q = x @ p["w"]
        angle = jnp.arange(5, dtype=jnp.float32)[:, None] * p["frequency"][None]
        a, b = jnp.split(q, 2, axis=-1)
        cos, sin = jnp.cos(angle)[None], jnp.sin(angle)[None]
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    return Case(
        fn=fn,
        variables={"w": leaf(6, 8), "frequency": leaf(4)},
        args=(data(4, 5, 6),),
        weights={"w": [dot((0,), (1,), 4 * 5 * 6 * 8)]},
        elementwise=("frequency",),
    )


@case
def experts_by_lookup() -> Case:
    """Each row fetches its own expert, whole; the product then is of data."""

    def fn(p: Any, x: jax.Array, i: jax.Array) -> jax.Array:
        return jnp.einsum("bk,bkn->bn", x, p["w"][i])

    return Case(
        fn=fn,
        variables={"w": leaf(3, 8, 6)},
        args=(data(4, 8), ids(4, below=3)),
        weights={"w": [lookup((1, 2), (0,))]},
    )


@case
def experts_by_ragged_dot() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        choice = jnp.argmax(x @ p["router"], axis=1)
        order = jnp.argsort(choice)
        sizes = jnp.sum(jax.nn.one_hot(choice, 3, dtype=jnp.int32), axis=0)
        h = jax.nn.gelu(jax.lax.ragged_dot(x[order], p["up"], sizes))
        y = jax.lax.ragged_dot(h, p["down"].transpose(0, 2, 1), sizes)
        return y[jnp.argsort(order)]

    return Case(
        fn=fn,
        variables={"router": leaf(8, 3), "up": leaf(3, 8, 6), "down": leaf(3, 7, 6)},
        args=(data(12, 8),),
        weights={
            "router": [dot((0,), (1,), 12 * 8 * 3)],
            "up": [ragged((1,), (2,), 12 * 8 * 6, stack=(0,))],
            "down": [ragged((2,), (1,), 12 * 6 * 7, stack=(0,))],
        },
        vmap=False,
    )


@case
def experts_by_masks() -> Case:
    """Dense dispatch (Switch): every expert sees a weighted batch."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(x @ p["router"])
        inputs = jnp.einsum("be,bk->ebk", gates, x)
        y = jnp.einsum("ebk,ekn->ebn", inputs, p["w"]) + p["b"][:, None]
        return jnp.einsum("ebn,be->bn", y, gates)

    return Case(
        fn=fn,
        variables={"router": leaf(8, 3), "w": leaf(3, 8, 6), "b": leaf(3, 6)},
        args=(data(4, 8),),
        weights={
            "router": [dot((0,), (1,), 4 * 8 * 3)],
            "w": [dot((1,), (2,), 3 * 4 * 8 * 6, stack=(0,))],
        },
        elementwise=("b",),
    )
