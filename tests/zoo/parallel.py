"""Functions that are mapped over examples, over models, or over devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from zoo._case import ANY, Case, case, conv, data, dot, ids, leaf, lookup


@case
def vmap_over_examples() -> Case:
    def one(p: Any, x: jax.Array) -> jax.Array:
        return p["w"] @ x + p["b"]

    return Case(
        fn=lambda p, x: jax.vmap(one, (None, 0))(p, x),
        variables={"w": leaf(6, 8), "b": leaf(6)},
        args=(data(4, 8),),
        weights={"w": [dot((1,), (0,), 4 * 8 * 6)]},
        elementwise=("b",),
    )


@case
def vmap_over_models() -> Case:
    """An ensemble: the first product spreads shared data, the second is batched."""

    def one(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["w"]) @ p["u"]

    return Case(
        fn=lambda p, x: jax.vmap(one, (0, None))(p, x),
        variables={"w": leaf(3, 8, 6), "u": leaf(3, 6, 5)},
        args=(data(4, 8),),
        weights={
            "w": [dot((1,), (0, 2), 3 * 4 * 8 * 6)],
            "u": [dot((1,), (2,), 3 * 4 * 6 * 5, stack=(0,))],
        },
    )


@case
def vmap_over_models_and_data() -> Case:
    def one(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["w"] + p["b"][None]

    return Case(
        fn=lambda p, x: jax.vmap(one)(p, x),
        variables={"w": leaf(3, 8, 6), "b": leaf(3, 6)},
        args=(data(3, 4, 8),),
        weights={"w": [dot((1,), (2,), 3 * 4 * 8 * 6, stack=(0,))]},
        elementwise=("b",),
    )


@case
def vmap_over_convolutions() -> Case:
    """Batched kernels become the groups of one convolution."""

    def one(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return Case(
        fn=lambda p, x: jax.vmap(one)(p["w"], x),
        variables={"w": leaf(3, 2, 2, 4, 5)},
        args=(data(3, 4, 6, 6, 4),),
        weights={
            "w": [
                conv((1, 2, 3), ANY, 3 * 4 * 6 * 6 * 2 * 2 * 4 * 5, stack=ANY),
            ]
        },
    )


@case
def vmap_over_lookups() -> Case:
    return Case(
        fn=lambda p, i: jax.vmap(lambda i: p["table"][i])(i),
        variables={"table": leaf(12, 6)},
        args=(ids(4, 5, below=12),),
        weights={"table": [lookup((1,), (0,))]},
    )


@case
def vmap_of_scan() -> Case:
    """One recurrent weight a model, batched by `vmap` inside of a loop over time."""

    def one(w: jax.Array, x: jax.Array) -> jax.Array:
        def body(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x + jnp.dot(h, w)), None

        return jax.lax.scan(body, jnp.zeros(6), x)[0]

    return Case(
        fn=lambda p, x: jax.vmap(one)(p["w"], x),
        variables={"w": leaf(3, 6, 6)},
        args=(data(3, 5, 6),),
        weights={"w": [dot((1,), (2,), 3 * 6 * 6, stack=(0,), runs=5)]},
    )


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))


@case
def shard_map_dense() -> Case:
    """Tensor parallel: split by columns, then by rows; each device a quarter."""

    def local(w: jax.Array, b: jax.Array, u: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.psum(jax.nn.relu(x @ w + b[None]) @ u, "model")

    mapped = jax.shard_map(
        local,
        mesh=_mesh(),
        in_specs=(P(None, "model"), P("model"), P("model", None), P()),
        out_specs=P(),
    )
    return Case(
        fn=lambda p, x: mapped(p["w"], p["b"], p["u"], x),
        variables={"w": leaf(8, 12), "b": leaf(12), "u": leaf(12, 6)},
        args=(data(4, 8),),
        weights={
            "w": [dot((0,), (1,), 4 * 8 * (12 // 4), runs=4)],
            "u": [dot((0,), (1,), 4 * (12 // 4) * 6, runs=4)],
        },
        elementwise=("b",),
    )


@case
def shard_map_over_data() -> Case:
    mapped = jax.shard_map(
        lambda w, x: x @ w,
        mesh=_mesh(),
        in_specs=(P(), P("model")),
        out_specs=P("model"),
    )
    return Case(
        fn=lambda p, x: mapped(p["w"], x),
        variables={"w": leaf(8, 6)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), (4 // 4) * 8 * 6, runs=4)]},
    )


@case
def constrained_sharding() -> Case:
    """A weight and an activation with a sharding constraint are what they were."""
    mesh = _mesh()

    def constrain(x: jax.Array, *spec: str | None) -> jax.Array:
        sharding = jax.sharding.NamedSharding(mesh, P(*spec))
        return jax.lax.with_sharding_constraint(x, sharding)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return constrain(x @ constrain(p["w"], None, "model"), "model", None)

    return Case(
        fn=fn,
        variables={"w": leaf(8, 12)},
        args=(data(4, 8),),
        weights={"w": [dot((0,), (1,), 4 * 8 * 12)]},
    )
