"""Branches and other functions of functions: `cond`, `switch`, `map`, `remat`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoo._case import ANY, Case, case, data, dot, leaf


def _layer(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


@case
def cond_with_weights() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.cond(
            jnp.sum(x) > 0,
            lambda: x @ p["yes"] + p["b"][None],
            lambda: x @ p["no"].T,
        )

    return Case(
        fn=fn,
        variables={"yes": leaf(8, 6), "no": leaf(6, 8), "b": leaf(6)},
        args=(data(4, 8),),
        weights={
            "yes": [dot((0,), (1,), 4 * 8 * 6)],
            "no": [dot((1,), (0,), 4 * 8 * 6)],
        },
        elementwise=("b",),
    )


@case
def cond_picks_the_weight() -> Case:
    """The branches return leaves; the product is outside, on either of them."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        w = jax.lax.cond(jnp.sum(x) > 0, lambda: p["a"], lambda: p["b"].T)
        return x @ w

    return Case(
        fn=fn,
        variables={"a": leaf(8, 6), "b": leaf(6, 8)},
        args=(data(4, 8),),
        loose=("a", "b"),
        total_macs=ANY,
    )


@case
def switch_in_scan() -> Case:
    def fn(p: Any, x: jax.Array, choice: jax.Array) -> jax.Array:
        def body(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            branches = [functools.partial(_layer, w=w) for w in p["ws"]]
            return jax.lax.switch(i, branches, x), None

        return jax.lax.scan(body, x, choice)[0]

    return Case(
        fn=fn,
        variables={"ws": [leaf(8, 8), leaf(8, 8) * 0.8, leaf(8, 8) * 0.6]},
        args=(data(4, 8), jnp.asarray([2, 0, 1, 2], jnp.int32)),
        weights={f"ws/{i}": [dot((0,), (1,), 4 * 8 * 8, runs=4)] for i in range(3)},
    )


@case
def map_over_examples() -> Case:
    return Case(
        fn=lambda p, x: jax.lax.map(lambda x: jnp.tanh(jnp.dot(x, p["w"])), x),
        variables={"w": leaf(8, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 8 * 6, runs=4)]},
    )


@case
def linear_recurrence() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        def combine(a: Any, b: Any) -> Any:
            return a[0] * b[0], a[1] * b[0] + b[1]

        u = x @ p["w"]
        gates = jnp.broadcast_to(jax.nn.sigmoid(p["a"])[None, None], u.shape)
        return jax.lax.associative_scan(combine, (gates, u), axis=1)[1]

    return Case(
        fn=fn,
        variables={"w": leaf(3, 6), "a": leaf(6)},
        args=(data(4, 5, 3),),
        weights={"w": [dot((0,), (1,), 4 * 5 * 3 * 6)]},
        loose=("a",),
    )


@case
def remat_with_static_argument() -> Case:
    @functools.partial(
        jax.checkpoint,
        static_argnums=(2,),
        policy=jax.checkpoint_policies.dots_saveable,
    )
    def block(x: jax.Array, p: Any, negate: bool) -> jax.Array:
        y = jnp.sin(x @ p["w"]) @ p["u"]
        return -y if negate else y

    return Case(
        fn=lambda p, x: block(block(x, p, True), p, False),
        variables={"w": leaf(8, 6), "u": leaf(6, 8)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)] * 2,
            "u": [dot((0,), (1,), 4 * 6 * 8)] * 2,
        },
    )
