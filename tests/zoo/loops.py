"""Loops: `scan`, `while_loop`, `fori_loop`."""

from typing import Any

import jax
import jax.numpy as jnp

from zoo._case import ANY, Case, case, data, dot, leaf


def _layer(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


@case
def scan_over_layers() -> Case:
    def fn(p: Any, x: jax.Array) -> Any:
        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
            return x, jnp.mean(x)

        return jax.lax.scan(body, x, p, reverse=True, unroll=2)

    return Case(
        fn=fn,
        variables={"w": leaf(3, 8, 8), "b": leaf(3, 8)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (2,), 4 * 8 * 8, stack=(0,), runs=3)]},
        stacked=("b",),
    )


@case
def scan_of_scans() -> Case:
    """A stack axis made of two loops, over a leaf that merges them."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def outer(x: jax.Array, ws: jax.Array) -> tuple[jax.Array, None]:
            return jax.lax.scan(lambda x, w: (_layer(x, w), None), x, ws)

        return jax.lax.scan(outer, x, p["w"].reshape(3, 2, 8, 8))[0]

    return Case(
        fn=fn,
        variables={"w": leaf(6, 8, 8)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (2,), 4 * 8 * 8, stack=(0,), runs=3 * 2)]},
    )


@case
def scan_over_time() -> Case:
    def fn(p: Any, x: jax.Array) -> Any:
        def body(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"][None])
            return h, h

        return jax.lax.scan(body, jnp.zeros((4, 6)), x.transpose(1, 0, 2))

    return Case(
        fn=fn,
        variables={"w": leaf(3, 6), "u": leaf(6, 6), "b": leaf(6)},
        args=(data(4, 5, 3),),
        weights={
            "w": [dot((0,), (1,), 4 * 3 * 6, runs=5)],
            "u": [dot((0,), (1,), 4 * 6 * 6, runs=5)],
        },
        elementwise=("b",),
    )


@case
def scan_carries_the_weight() -> Case:
    """The leaf passes through the carry unchanged, so it is the leaf in each step."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def body(carry: Any, x: jax.Array) -> tuple[Any, None]:
            p, h = carry
            return (p, jnp.tanh(h @ p["u"] + x @ p["w"])), None

        return jax.lax.scan(body, (p, jnp.zeros((4, 6))), x.transpose(1, 0, 2))[0]

    return Case(
        fn=fn,
        variables={"w": leaf(3, 6), "u": leaf(6, 6)},
        args=(data(4, 5, 3),),
        weights={
            "u": [dot((0,), (1,), 4 * 6 * 6, runs=5)],
            "w": [dot((0,), (1,), 4 * 3 * 6, runs=5)],
        },
    )


@case
def scan_changes_the_weight() -> Case:
    """Fast weights: from the second step on the carry holds data, not the leaf."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def body(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            w = carry
            y = jnp.tanh(x @ w)
            return w + 0.1 * jnp.einsum("bk,bn->kn", x, y), y

        return jax.lax.scan(body, p["w"], x.transpose(1, 0, 2))[1]

    return Case(
        fn=fn,
        variables={"w": leaf(3, 6)},
        args=(data(4, 5, 3),),
        loose=("w",),
        total_macs=ANY,
    )


@case
def scan_swaps_the_weights() -> Case:
    """Two leaves change places in the carry at every step."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def body(carry: Any, _: None) -> tuple[Any, None]:
            u, v, x = carry
            return (v, u, jnp.tanh(x @ u)), None

        return jax.lax.scan(body, (p["u"], p["v"], x), None, length=4)[0][2]

    return Case(
        fn=fn,
        variables={"u": leaf(8, 8), "v": leaf(8, 8) * 0.7},
        args=(data(4, 8),),
        loose=("u", "v"),
        total_macs=ANY,
    )


@case
def scan_stacks_the_weight() -> Case:
    """The leaf leaves the loop again, stacked, and only then meets data."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def body(carry: None, w: jax.Array) -> tuple[None, jax.Array]:
            return None, w.T

        _, turned = jax.lax.scan(body, None, p["w"])
        return jnp.einsum("bk,lkn->bln", x, turned)

    return Case(
        fn=fn,
        variables={"w": leaf(3, 6, 8)},
        args=(data(4, 8),),
        weights={"w": [dot((2,), (0, 1), 4 * 8 * 3 * 6)]},
    )


@case
def fori_loop_over_layers() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        def body(i: jax.Array, x: jax.Array) -> jax.Array:
            w = jax.lax.dynamic_index_in_dim(p["w"], i, keepdims=False)
            return jnp.tanh(x @ w + p["b"][i][None])

        return jax.lax.fori_loop(0, 3, body, x)

    return Case(
        fn=fn,
        variables={"w": leaf(3, 8, 8), "b": leaf(3, 8)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (2,), 4 * 8 * 8, stack=(0,), runs=3)]},
        stacked=("b",),
    )


@case
def while_loop_over_layers() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            i, x = state
            w = jax.lax.dynamic_index_in_dim(p["w"], i, keepdims=False)
            return i + jnp.int32(1), jnp.tanh(x @ w + p["b"])

        def more(state: tuple[jax.Array, jax.Array]) -> jax.Array:
            return state[0] < 3

        return jax.lax.while_loop(more, body, (jnp.int32(0), x))[1]

    return Case(
        fn=fn,
        variables={"w": leaf(3, 8, 8), "b": leaf(1, 8)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (2,), 4 * 8 * 8, stack=(0,), runs=None)]},
        elementwise=("b",),
        grad=False,
    )


@case
def while_until_converged() -> Case:
    """Weights in the condition and in the body; the trip count depends on data."""

    def fn(p: Any, x: jax.Array) -> Any:
        def more(state: tuple[jax.Array, jax.Array]) -> jax.Array:
            n, x = state
            return (n < 10) & (jnp.max(jnp.abs(x @ p["stop"])) > 0.1)

        def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return state[0] + jnp.int32(1), jnp.tanh(state[1] @ p["w"]) * 0.5

        return jax.lax.while_loop(more, body, (jnp.int32(0), x))

    return Case(
        fn=fn,
        variables={"w": leaf(8, 8), "stop": leaf(8, 2)},
        args=(data(4, 8),),
        weights={
            "stop": [dot((0,), (1,), 4 * 8 * 2, runs=None)],
            "w": [dot((0,), (1,), 4 * 8 * 8, runs=None)],
        },
        grad=False,
    )


@case
def fori_loop_with_bound() -> Case:
    """A bound that is an argument: nothing knows how often the body runs."""

    def fn(p: Any, x: jax.Array, n: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, n, lambda _, x: _layer(x, p["w"]), x)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 8)},
        args=(data(4, 8), jnp.int32(2)),
        weights={"w": [dot((0,), (1,), 4 * 8 * 8, runs=None)]},
        grad=False,
        vmap=False,
    )
