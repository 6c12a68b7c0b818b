"""Haiku and Equinox."""

import functools
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp

from zoo._case import Case, case, conv, data, dot, fill, ids, lookup


@case
def haiku_mlp() -> Case:
    model = hk.transform(lambda x: hk.nets.MLP([16, 5])(x))
    x = data(4, 8)
    return Case(
        fn=model.apply,
        variables=fill(jax.eval_shape(model.init, jax.random.key(0), x)),
        args=(None, x),
        weights={
            "mlp/~/linear_0/w": [dot((0,), (1,), 4 * 8 * 16)],
            "mlp/~/linear_1/w": [dot((0,), (1,), 4 * 16 * 5)],
        },
        elementwise=("mlp/~/linear_0/b", "mlp/~/linear_1/b"),
    )


def _lenient(fn: Any) -> Any:
    """Haiku's batch normalization mixes integers and floats by itself."""

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return fn(*args)

    return call


@case
def haiku_cnn_with_state() -> Case:
    def net(x: jax.Array) -> jax.Array:
        x = hk.Conv2D(6, 3, stride=2)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training=True))
        return hk.Linear(5)(hk.Flatten()(x))

    model = hk.without_apply_rng(hk.transform_with_state(net))
    x = data(4, 6, 6, 3)
    params, state = fill(jax.eval_shape(_lenient(model.init), jax.random.key(0), x))
    return Case(
        fn=_lenient(lambda p, x: model.apply(p, state, x)),
        variables=params,
        args=(x,),
        weights={
            "conv2_d/w": [conv((0, 1, 2), (3,), 4 * 3 * 3 * 3 * 3 * 3 * 6)],
            "linear/w": [dot((0,), (1,), 4 * 54 * 5)],
        },
        elementwise=("conv2_d/b", "linear/b", "batch_norm/scale", "batch_norm/offset"),
    )


@case
def haiku_layer_stack() -> Case:
    def net(tokens: jax.Array) -> jax.Array:
        x = hk.Embed(12, 8)(tokens)
        stack = hk.experimental.layer_stack(3)
        return stack(lambda x: x + jnp.tanh(hk.Linear(8)(x)))(x)

    model = hk.without_apply_rng(hk.transform(net))
    tokens = ids(4, 5, below=12)
    top = "__layer_stack_no_per_layer/linear"
    return Case(
        fn=model.apply,
        variables=fill(jax.eval_shape(model.init, jax.random.key(0), tokens)),
        args=(tokens,),
        weights={
            "embed/embeddings": [lookup((1,), (0,))],
            f"{top}/w": [dot((1,), (2,), 4 * 5 * 8 * 8, stack=(0,), runs=3)],
        },
        stacked=(f"{top}/b",),
    )


def filled(build: Any) -> Any:
    """An Equinox module with random arrays; its functions stay as they are."""
    shapes = eqx.filter_eval_shape(build, key=jax.random.key(0))
    arrays, rest = eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return eqx.combine(fill(arrays), rest)


@case
def equinox_mlp() -> Case:
    """Leaves of the tree that are functions are neither arrays nor parameters."""
    model = filled(lambda key: eqx.nn.MLP(8, 5, 16, 2, key=key))
    sizes = {0: 8 * 16, 1: 16 * 16, 2: 16 * 5}
    return Case(
        fn=lambda model, x: jax.vmap(model)(x),
        variables=model,
        args=(data(4, 8),),
        weights={
            f"layers/{i}/weight": [dot((1,), (0,), 4 * size)]
            for i, size in sizes.items()
        },
        elementwise=tuple(f"layers/{i}/bias" for i in sizes),
    )


@case
def equinox_conv() -> Case:
    model = filled(lambda key: eqx.nn.Conv2d(3, 6, 3, groups=3, padding=1, key=key))
    return Case(
        fn=lambda model, x: jax.vmap(model)(x),
        variables=model,
        args=(data(4, 3, 5, 5),),
        weights={"weight": [conv((1, 2, 3), (0,), 4 * 5 * 5 * 3 * 3 * (3 // 3) * 6)]},
        elementwise=("bias",),
    )


@case
def equinox_attention() -> Case:
    model = filled(lambda key: eqx.nn.MultiheadAttention(2, 8, key=key))
    names = ("query_proj", "key_proj", "value_proj", "output_proj")
    return Case(
        fn=lambda model, x: jax.vmap(lambda x: model(x, x, x))(x),
        variables=model,
        args=(data(4, 5, 8),),
        weights={f"{name}/weight": [dot((1,), (0,), 4 * 5 * 8 * 8)] for name in names},
    )


@case
def equinox_gru() -> Case:
    model = filled(lambda key: eqx.nn.GRUCell(3, 6, key=key))

    def fn(model: Any, x: jax.Array) -> jax.Array:
        def one(x: jax.Array) -> jax.Array:
            def body(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
                return model(x, h), None

            return jax.lax.scan(body, jnp.zeros(6), x)[0]

        return jax.vmap(one)(x)

    return Case(
        fn=fn,
        variables=model,
        args=(data(4, 5, 3),),
        weights={
            "weight_ih": [dot((1,), (0,), 4 * 3 * 3 * 6, runs=5)],
            "weight_hh": [dot((1,), (0,), 4 * 6 * 3 * 6, runs=5)],
        },
        elementwise=("bias", "bias_n"),
    )
