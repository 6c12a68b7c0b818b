"""Functions with gradients of their own, which no transform may lose or look into.

Each gradient here is on purpose not the true one, so an interpreter that inlines the
function is caught by the values of `jax.grad`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoo._case import ANY, Case, case, data, dot, leaf


@jax.custom_jvp
def clipped(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -1.0, 1.0)


@clipped.defjvp
def _clipped_jvp(primals: Any, tangents: Any) -> Any:
    return clipped(*primals), 3.0 * tangents[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def reversed_gradient(strength: float, x: jax.Array) -> jax.Array:
    return x


reversed_gradient.defvjp(
    lambda strength, x: (x, None), lambda strength, _, g: (-strength * g,)
)


@case
def custom_activations() -> Case:
    return Case(
        fn=lambda p, x: reversed_gradient(0.5, clipped(x @ p["w"])) @ p["u"],
        variables={"w": leaf(8, 6), "u": leaf(6, 5)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6)],
            "u": [dot((0,), (1,), 4 * 6 * 5)],
        },
    )


@jax.custom_jvp
def prelu(alpha: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, alpha[None] * x)


@prelu.defjvp
def _prelu_jvp(primals: Any, tangents: Any) -> Any:
    alpha, x = primals
    slope = jnp.where(x > 0, jnp.ones_like(x), alpha[None])
    low = jnp.where(x > 0, jnp.zeros_like(x), 2.0 * x)
    return prelu(alpha, x), slope * tangents[1] + low * tangents[0][None]


@jax.custom_vjp
def scaled(gain: jax.Array, x: jax.Array) -> jax.Array:
    return gain[None] * x


def _scaled_fwd(gain: jax.Array, x: jax.Array) -> Any:
    return gain[None] * x, (gain, x)


def _scaled_bwd(saved: Any, g: jax.Array) -> Any:
    gain, x = saved
    return 0.1 * jnp.sum(g * x, axis=0), g * gain[None]


scaled.defvjp(_scaled_fwd, _scaled_bwd)


@case
def custom_parameters() -> Case:
    """Activations with a leaf of their own: PReLU, and a scale with small steps."""
    return Case(
        fn=lambda p, x: scaled(p["gain"], prelu(p["alpha"], x @ p["w"])),
        variables={"w": leaf(8, 6), "alpha": leaf(6), "gain": leaf(6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6)]},
        elementwise=("alpha", "gain"),
    )


@jax.custom_vjp
def dense(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w


def _dense_fwd(w: jax.Array, x: jax.Array) -> Any:
    return x @ w, (w, x)


def _dense_bwd(saved: Any, g: jax.Array) -> Any:
    w, x = saved
    return 2.0 * (x.T @ g), g @ w.T


dense.defvjp(_dense_fwd, _dense_bwd)


@jax.custom_jvp
def dense_jvp(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w.T


@dense_jvp.defjvp
def _dense_jvp_jvp(primals: Any, tangents: Any) -> Any:
    (w, x), (dw, dx) = primals, tangents
    return dense_jvp(w, x), 0.5 * (dx @ w.T) + x @ dw.T


@case
def sealed_dense() -> Case:
    return Case(
        fn=lambda p, x: dense_jvp(p["u"], jnp.tanh(dense(p["w"], x))) @ p["v"],
        variables={"w": leaf(8, 6), "u": leaf(5, 6), "v": leaf(5, 3)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * 6, in_custom_gradient=True)],
            "u": [dot((1,), (0,), 4 * 6 * 5, in_custom_gradient=True)],
            "v": [dot((0,), (1,), 4 * 5 * 3)],
        },
    )


@case
def sealed_in_scan_and_remat() -> Case:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        @jax.checkpoint
        def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return clipped(dense(w, x)) + x @ p["shared"], None

        return jax.lax.scan(body, x, p["w"])[0]

    return Case(
        fn=fn,
        variables={"w": leaf(3, 8, 8), "shared": leaf(8, 8)},
        args=(data(4, 8),),
        weights={
            "w": [
                dot((1,), (2,), 4 * 8 * 8, stack=(0,), runs=3, in_custom_gradient=True)
            ],
            "shared": [dot((0,), (1,), 4 * 8 * 8, runs=3)],
        },
    )


@case
def straight_through_weight() -> Case:
    """Binary weights: the leaf passes through a function with its own gradient."""

    @jax.custom_jvp
    def sign(w: jax.Array) -> jax.Array:
        return jnp.where(w > 0, 1.0, -1.0).astype(w.dtype)

    sign.defjvp(lambda primals, tangents: (sign(*primals), tangents[0]))
    return Case(
        fn=lambda p, x: x @ sign(p["w"]),
        variables={"w": leaf(8, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 6, derived=True)]},
    )


@case
def solver_with_weights() -> Case:
    """`custom_linear_solve` holds several functions in one equation."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def matvec(v: jax.Array) -> jax.Array:
            return v + 0.1 * jnp.dot(p["w"], v)

        def solve(matvec: Any, b: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, 5, lambda _, v: b + v - matvec(v), b)

        return jax.lax.custom_linear_solve(matvec, x, solve, solve, symmetric=False)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 8)},
        args=(data(8),),
        loose=("w",),
        total_macs=ANY,
        vmap=False,
        mesh=False,
    )
