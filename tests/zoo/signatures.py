"""Functions with unusual arguments, results and leaves."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo._case import Case, case, data, dot, leaf


@case
def static_and_none_arguments() -> Case:
    def fn(
        p: Any,
        x: jax.Array,
        mask: jax.Array | None,
        train: bool,
        *,
        activation: str = "relu",
        key: jax.Array | None = None,
    ) -> jax.Array:
        y = getattr(jax.nn, activation)(x @ p["w"])
        if mask is not None:
            y = y * mask
        if train:
            assert key is not None
            y = y * jax.random.bernoulli(key, 0.5, y.shape).astype(y.dtype)
        return y @ p["u"]

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6), "u": leaf(6, 5)},
        args=(data(4, 8), None, True),
        kwargs={"activation": "silu", "key": jax.random.key(3)},
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)],
            "u": [dot((0,), (1,), 4 * 6 * 5)],
        },
    )


class Result(NamedTuple):
    logits: jax.Array
    features: dict[str, Any]


@case
def structured_results() -> Case:
    """Nested outputs: a leaf as it came, an input as it came, a constant, None."""

    def fn(p: Any, batch: Any) -> Result:
        h = jnp.tanh(batch["x"] @ p["w"])
        features = {
            "h": h,
            "x": batch["x"],
            "w": p["w"],
            "turned": p["w"].T,
            "none": None,
            "twice": (h, h),
            "constant": jnp.arange(3),
        }
        return Result(h @ p["u"], features)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6), "u": leaf(6, 5)},
        args=({"x": data(4, 8), "y": jnp.arange(4)},),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)],
            "u": [dot((0,), (1,), 4 * 6 * 5)],
        },
    )


@case
def odd_leaves() -> Case:
    """Unused, integer, boolean, scalar and shape-only leaves."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = x @ p["w"] + jnp.zeros_like(p["like"])[None]
        y = jnp.where(p["keep"][None], y, jnp.zeros_like(y))
        return y * p["count"].astype(jnp.float32) * p["temperature"]

    return Case(
        fn=fn,
        variables={
            "w": leaf(8, 6),
            "unused": leaf(7, 3),
            "like": leaf(6),
            "count": jnp.int32(3),
            "keep": jnp.arange(6) > 1,
            "temperature": leaf(),
        },
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6)]},
        elementwise=("count", "keep", "temperature"),
        unused=("unused", "like"),
    )


@case
def leaf_only_returned() -> Case:
    """Moved and changed, but never with data."""

    def fn(p: Any, x: jax.Array) -> Any:
        new = {"w": p["w"] * 0.9, "step": p["step"] + jnp.int32(1)}
        return x @ p["u"], new

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6), "u": leaf(8, 5), "step": jnp.int32(0)},
        args=(data(4, 8),),
        weights={"u": [dot((0,), (1,), 4 * 8 * 5)]},
        unused=("w", "step"),
    )


@case
def nested_jit_and_scopes() -> Case:
    @functools.partial(jax.jit, static_argnames="power")
    def layer(w: jax.Array, x: jax.Array, power: int) -> jax.Array:
        with jax.named_scope("a_name_to_find"):
            return jnp.tanh(x @ w) ** power

    @jax.jit
    def twice(p: Any, x: jax.Array) -> jax.Array:
        return layer(p["u"], layer(p["w"], x, 2), 1)

    return Case(
        fn=lambda p, x: twice(p, x) + twice(p, -x),
        variables={"w": leaf(8, 6), "u": leaf(6, 5)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)] * 2,
            "u": [dot((0,), (1,), 4 * 6 * 5)] * 2,
        },
    )


@case
def lists_and_tuples() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        for w, b in p[0]:
            x = jnp.tanh(x @ w + b[None])
        return x * p[1]

    return Case(
        fn=fn,
        variables=([(leaf(8, 6), leaf(6)), (leaf(6, 5), leaf(5))], leaf()),
        args=(data(4, 8),),
        weights={
            "0/0/0": [dot((0,), (1,), 4 * 8 * 6)],
            "0/1/0": [dot((0,), (1,), 4 * 6 * 5)],
        },
        elementwise=("0/0/1", "0/1/1", "1"),
    )


@case
def loss_and_gradient() -> Case:
    """A whole gradient step in the function, with respect to its own leaves."""

    def fn(p: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.mean(jnp.square(jnp.tanh(x @ p["w"]) @ p["u"] - y))

        return jax.value_and_grad(loss)(p)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 6), "u": leaf(6, 5)},
        args=(data(4, 8), data(4, 5)),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)],
            "u": [dot((0,), (1,), 4 * 6 * 5), dot((1,), (0,), 4 * 5 * 6)],
        },
    )
