"""Less common layers of Linen, NNX, Haiku and Equinox."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
from flax import nnx

from zoo import linen_models, nnx_models, other_libraries
from zoo._case import ANY, Case, case, conv, data, dot, fill, ids, lookup


@case
def linen_vmap() -> Case:
    """An ensemble of dense layers on the same data."""
    layers = nn.vmap(
        nn.Dense,
        in_axes=None,
        axis_size=3,
        variable_axes={"params": 0},
        split_rngs={"params": True},
    )(6)
    x = data(4, 8)
    return Case(
        fn=layers.apply,
        variables=linen_models.make(layers, x),
        args=(x,),
        weights={"params/kernel": [dot((1,), (0, 2), 3 * 4 * 8 * 6)]},
        elementwise=("params/bias",),
    )


@case
def linen_bidirectional() -> Case:
    model = nn.Bidirectional(
        nn.RNN(nn.SimpleCell(6, name="there"), name="a"),
        nn.RNN(nn.SimpleCell(6, name="back"), name="b"),
    )
    x = data(4, 5, 3)
    variables = linen_models.make(model, x)
    cells = [f"params/{name}/cell" for name in variables["params"]]
    return Case(
        fn=model.apply,
        variables=variables,
        args=(x,),
        weights={
            f"{cell}/{side}/kernel": [dot((0,), (1,), macs, runs=5)]
            for cell in cells
            for side, macs in (("i", 4 * 3 * 6), ("h", 4 * 6 * 6))
        },
        elementwise=tuple(f"{cell}/i/bias" for cell in cells),
    )


@case
def linen_local_convolution() -> Case:
    """Every position has a kernel of its own: the positions are a stack."""
    model = nn.ConvLocal(5, (3, 3), padding="VALID")
    x = data(4, 6, 5, 2)
    return Case(
        fn=model.apply,
        variables=linen_models.make(model, x),
        args=(x,),
        weights={
            "params/kernel": [
                dot((2,), (3,), 4 * 4 * 3 * 3 * 3 * 2 * 5, stack=(0, 1)),
            ]
        },
        elementwise=("params/bias",),
        total_macs=ANY,
    )


@case
def linen_spectral_norm() -> Case:
    """The weight is divided by its norm, found by products of leaves alone."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layer = nn.SpectralNorm(nn.Dense(6, name="dense"), name="norm")
            return layer(x, update_stats=False)

    x = data(4, 8)
    variables = linen_models.make(Net(), x)
    return Case(
        fn=Net().apply,
        variables=variables,
        args=(x,),
        elementwise=("params/dense/bias",),
        loose=("params/dense/kernel", "batch_stats/norm/dense/kernel/u"),
        unused=("batch_stats/norm/dense/kernel/sigma",),
        total_macs=ANY,
    )


@case
def nnx_low_rank() -> Case:
    graph, state = nnx_models.make(
        lambda rngs: nnx.LoRALinear(8, 6, lora_rank=2, rngs=rngs)
    )
    return Case(
        fn=lambda state, x: nnx.merge(graph, state)(x),
        variables=state,
        args=(data(4, 8),),
        weights={
            "kernel": [dot((0,), (1,), 4 * 8 * 6)],
            "lora/lora_a": [dot((0,), (1,), 4 * 8 * 2)],
            "lora/lora_b": [dot((0,), (1,), 4 * 2 * 6)],
        },
        elementwise=("bias",),
    )


@case
def nnx_ensemble() -> Case:
    """`nnx.vmap` over modules, each on its own data."""

    class Ensemble(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            @nnx.vmap
            def build(rngs: nnx.Rngs) -> nnx.Linear:
                return nnx.Linear(8, 6, rngs=rngs)

            self.models = build(rngs.split(3))

        def __call__(self, x: jax.Array) -> Any:
            return nnx.vmap(lambda model, x: model(x))(self.models, x)

    graph, state = nnx_models.make(Ensemble)
    return Case(
        fn=lambda state, x: nnx.merge(graph, state)(x),
        variables=state,
        args=(data(3, 4, 8),),
        weights={"models/kernel": [dot((1,), (2,), 3 * 4 * 8 * 6, stack=(0,))]},
        elementwise=("models/bias",),
    )


@case
def haiku_lstm() -> Case:
    """One kernel for the input and the state, which are concatenated."""

    def net(x: jax.Array) -> Any:
        core = hk.LSTM(6)
        return hk.dynamic_unroll(core, x, core.initial_state(4), time_major=False)[0]

    model = hk.without_apply_rng(hk.transform(net))
    x = data(4, 5, 3)
    return Case(
        fn=model.apply,
        variables=fill(jax.eval_shape(model.init, jax.random.key(0), x)),
        args=(x,),
        weights={"lstm/linear/w": [dot((0,), (1,), 4 * (3 + 6) * 4 * 6, runs=5)]},
        elementwise=("lstm/linear/b",),
    )


@case
def haiku_attention() -> Case:
    def net(x: jax.Array) -> jax.Array:
        w_init = hk.initializers.VarianceScaling(1.0)
        return hk.MultiHeadAttention(3, 4, w_init=w_init, model_size=8)(x, x, x)

    model = hk.without_apply_rng(hk.transform(net))
    x = data(4, 5, 8)
    top = "multi_head_attention"
    names = ("query", "key", "value", "linear")
    return Case(
        fn=model.apply,
        variables=fill(jax.eval_shape(model.init, jax.random.key(0), x)),
        args=(x,),
        weights={
            f"{top}/{name}/w": [dot((0,), (1,), 4 * 5 * 8 * 3 * 4)] for name in names
        },
        elementwise=tuple(f"{top}/{name}/b" for name in names),
    )


@case
def equinox_transposed_convolution() -> Case:
    model = other_libraries.filled(
        lambda key: eqx.nn.ConvTranspose2d(3, 6, 2, stride=2, key=key)
    )
    return Case(
        fn=lambda model, x: jax.vmap(model)(x),
        variables=model,
        args=(data(4, 3, 5, 5),),
        weights={"weight": [conv((1, 2, 3), (0,), 4 * 5 * 5 * 2 * 2 * 3 * 6)]},
        elementwise=("bias",),
    )


@case
def equinox_embedding_and_norm() -> Case:
    model = other_libraries.filled(
        lambda key: eqx.nn.Sequential(
            [eqx.nn.Embedding(9, 8, key=key), eqx.nn.LayerNorm(8)]
        )
    )
    return Case(
        fn=lambda model, i: jax.vmap(model)(i),
        variables=model,
        args=(ids(4, below=9),),
        weights={"layers/0/weight": [lookup((1,), (0,))]},
        elementwise=("layers/1/weight", "layers/1/bias"),
    )
