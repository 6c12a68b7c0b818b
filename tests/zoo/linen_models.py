"""Flax Linen: perceptron, convolutions, batch normalization, residual networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo._case import Case, case, conv, data, dot, fields, fill


def make(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Variables of a model without running its initializers."""
    key = jax.random.key(0)
    return fill(jax.eval_shape(lambda key: model.init(key, *args, **kwargs), key))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(5)(x)


@case
def linen_mlp() -> Case:
    x = data(4, 8)
    return Case(
        fn=MLP().apply,
        variables=make(MLP(), x),
        args=(x,),
        weights={
            "params/Dense_0/kernel": [dot((0,), (1,), 4 * 8 * 16)],
            "params/Dense_1/kernel": [dot((0,), (1,), 4 * 16 * 5)],
        },
        elementwise=("params/Dense_0/bias", "params/Dense_1/bias"),
    )


@case
def linen_mlp_bfloat16() -> Case:
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(5, dtype=jnp.bfloat16)(x)

    x = data(4, 7, 8)
    return Case(
        fn=Half().apply,
        variables=make(Half(), x),
        args=(x,),
        weights={"params/Dense_0/kernel": [dot((0,), (1,), 4 * 7 * 8 * 5)]},
        elementwise=("params/Dense_0/bias",),
    )


class CNN(nn.Module):
    """Plain, grouped and depthwise convolutions with batch normalization."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), name="plain")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Conv(12, (3, 3), feature_group_count=4, name="grouped")(x)
        x = nn.Conv(24, (3, 3), feature_group_count=12, name="depthwise")(x)
        x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        return nn.Dense(5, name="head")(x.reshape(x.shape[0], -1))


CNN_TABLE: dict[str, Any] = fields(
    weights={
        "params/plain/kernel": [conv((0, 1, 2), (3,), 4 * 6 * 6 * 3 * 3 * 3 * 8)],
        "params/grouped/kernel": [conv((0, 1, 2), (3,), 4 * 6 * 6 * 3 * 3 * 2 * 12)],
        "params/depthwise/kernel": [conv((0, 1, 2), (3,), 4 * 6 * 6 * 3 * 3 * 1 * 24)],
        "params/head/kernel": [dot((0,), (1,), 4 * (3 * 3 * 24) * 5)],
    },
    elementwise=(
        "params/plain/bias",
        "params/grouped/bias",
        "params/depthwise/bias",
        "params/head/bias",
        "params/norm/scale",
        "params/norm/bias",
        "batch_stats/norm/mean",
        "batch_stats/norm/var",
    ),
)


@case
def linen_cnn_train() -> Case:
    x = data(4, 6, 6, 3)
    return Case(
        fn=CNN().apply,
        variables=make(CNN(), x, True),
        args=(x, True),
        kwargs={"mutable": ["batch_stats"]},
        **CNN_TABLE,
    )


@case
def linen_cnn_eval() -> Case:
    x = data(4, 6, 6, 3)
    return Case(
        fn=CNN().apply,
        variables=make(CNN(), x, True),
        args=(x,),
        kwargs={"train": False},
        **CNN_TABLE,
    )


@case
def linen_strided_dilated_transposed() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(6, (3, 3), (2, 2), padding="VALID", name="strided")(x)
            x = nn.Conv(5, (2, 2), kernel_dilation=(2, 2), name="dilated")(x)
            x = nn.ConvTranspose(4, (2, 2), (2, 2), name="transposed")(x)
            return nn.ConvTranspose(
                2, (3, 3), transpose_kernel=True, use_bias=False, name="flipped"
            )(x)

    x = data(4, 9, 9, 3)
    return Case(
        fn=Net().apply,
        variables=make(Net(), x),
        args=(x,),
        weights={
            "params/strided/kernel": [conv((0, 1, 2), (3,), 4 * 4 * 4 * 3 * 3 * 3 * 6)],
            "params/dilated/kernel": [conv((0, 1, 2), (3,), 4 * 4 * 4 * 2 * 2 * 6 * 5)],
            "params/transposed/kernel": [
                conv((0, 1, 2), (3,), 4 * 4 * 4 * 2 * 2 * 5 * 4)
            ],
            "params/flipped/kernel": [conv((0, 1, 3), (2,), 4 * 8 * 8 * 3 * 3 * 4 * 2)],
        },
        elementwise=(
            "params/strided/bias",
            "params/dilated/bias",
            "params/transposed/bias",
        ),
    )


@case
def linen_resnet() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            def norm(x: jax.Array, name: str) -> jax.Array:
                return nn.BatchNorm(use_running_average=True, name=name)(x)

            x = nn.relu(norm(nn.Conv(8, (3, 3), use_bias=False, name="stem")(x), "n0"))
            for i, width in enumerate((8, 16)):
                stride = (2, 2) if i else (1, 1)
                y = nn.Conv(width, (3, 3), stride, use_bias=False, name=f"a{i}")(x)
                y = nn.relu(norm(y, f"na{i}"))
                y = nn.Conv(width, (3, 3), use_bias=False, name=f"b{i}")(y)
                y = norm(y, f"nb{i}")
                if x.shape != y.shape:
                    x = nn.Conv(width, (1, 1), stride, use_bias=False, name="proj")(x)
                    x = norm(x, "np")
                x = nn.relu(x + y)
            return nn.Dense(5, name="head")(jnp.mean(x, axis=(1, 2)))

    x = data(4, 8, 8, 3)
    norms = ("n0", "na0", "nb0", "na1", "nb1", "np")
    hwio = (0, 1, 2), (3,)
    return Case(
        fn=Net().apply,
        variables=make(Net(), x),
        args=(x,),
        weights={
            "params/stem/kernel": [conv(*hwio, 4 * 8 * 8 * 3 * 3 * 3 * 8)],
            "params/a0/kernel": [conv(*hwio, 4 * 8 * 8 * 3 * 3 * 8 * 8)],
            "params/b0/kernel": [conv(*hwio, 4 * 8 * 8 * 3 * 3 * 8 * 8)],
            "params/a1/kernel": [conv(*hwio, 4 * 4 * 4 * 3 * 3 * 8 * 16)],
            "params/b1/kernel": [conv(*hwio, 4 * 4 * 4 * 3 * 3 * 16 * 16)],
            "params/proj/kernel": [conv(*hwio, 4 * 4 * 4 * 1 * 1 * 8 * 16)],
            "params/head/kernel": [dot((0,), (1,), 4 * 16 * 5)],
        },
        elementwise=(
            "params/head/bias",
            *(f"params/{norm}/{part}" for norm in norms for part in ("scale", "bias")),
            *(
                f"batch_stats/{norm}/{part}"
                for norm in norms
                for part in ("mean", "var")
            ),
        ),
    )


@case
def linen_general_and_einsum() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.DenseGeneral((3, 4), axis=(-2, -1), name="two_in_two_out")(x)
            x = nn.Einsum((3, 4, 6), "bhk,hkn->bhn", name="per_head")(x)
            return nn.Einsum((6, 3, 2), "bhn,nhm->bm", use_bias=False, name="swap")(x)

    x = data(4, 5, 7)
    return Case(
        fn=Net().apply,
        variables=make(Net(), x),
        args=(x,),
        weights={
            "params/two_in_two_out/kernel": [dot((0, 1), (2, 3), 4 * 5 * 7 * 3 * 4)],
            "params/per_head/kernel": [dot((1,), (2,), 4 * 3 * 4 * 6, stack=(0,))],
            "params/swap/kernel": [dot((0, 1), (2,), 4 * 3 * 6 * 2)],
        },
        elementwise=("params/two_in_two_out/bias", "params/per_head/bias"),
    )


@case
def linen_weight_norm() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.WeightNorm(nn.Dense(6, name="dense"), name="norm")(x)

    x = data(4, 8)
    return Case(
        fn=Net().apply,
        variables=make(Net(), x),
        args=(x,),
        weights={"params/dense/kernel": [dot((0,), (1,), 4 * 8 * 6, derived=True)]},
        elementwise=("params/dense/bias",),
        loose=("params/norm/dense/kernel/scale",),
        total_macs=4 * 8 * 6,
    )


@case
def linen_dropout() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
            x = nn.Dropout(0.5)(nn.Dense(16)(x), deterministic=deterministic)
            return nn.Dense(3)(x)

    x = data(4, 8)
    return Case(
        fn=Net().apply,
        variables=make(Net(), x, True),
        args=(x,),
        kwargs={"deterministic": False, "rngs": {"dropout": jax.random.key(1)}},
        weights={
            "params/Dense_0/kernel": [dot((0,), (1,), 4 * 8 * 16)],
            "params/Dense_1/kernel": [dot((0,), (1,), 4 * 16 * 3)],
        },
        elementwise=("params/Dense_0/bias", "params/Dense_1/bias"),
    )
