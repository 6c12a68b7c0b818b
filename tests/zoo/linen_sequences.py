"""Flax Linen: attention, transformers with scanned layers, recurrent cells."""

from typing import Any

import flax.linen as nn
import jax

from zoo._case import Case, case, data, dot, ids, lookup
from zoo.linen_models import make


@case
def linen_attention() -> Case:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
            return nn.MultiHeadDotProductAttention(
                num_heads=3, qkv_features=12, out_features=7, name="attention"
            )(x, y)

    x, y = data(4, 5, 8), data(4, 6, 10)
    top = "params/attention"
    return Case(
        fn=Net().apply,
        variables=make(Net(), x, y),
        args=(x, y),
        weights={
            f"{top}/query/kernel": [dot((0,), (1, 2), 4 * 5 * 8 * 3 * 4)],
            f"{top}/key/kernel": [dot((0,), (1, 2), 4 * 6 * 10 * 3 * 4)],
            f"{top}/value/kernel": [dot((0,), (1, 2), 4 * 6 * 10 * 3 * 4)],
            f"{top}/out/kernel": [dot((0, 1), (2,), 4 * 5 * 3 * 4 * 7)],
        },
        elementwise=tuple(f"{top}/{n}/bias" for n in ("query", "key", "value", "out")),
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        y = nn.LayerNorm(name="n1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=3, name="attention")(y, y)
        y = nn.gelu(nn.Dense(20, name="up")(nn.LayerNorm(name="n2")(x)))
        return x + nn.Dense(12, name="down")(y), None


class Transformer(nn.Module):
    """Scanned, rematerialised blocks between the two uses of one embedding."""

    remat: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(15, 12, name="embed")
        x = embed(tokens)
        block: Any = Block
        if self.remat:
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            block = nn.remat(Block, policy=policy, prevent_cse=False)
        layers = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = layers(name="layers")(x, None)
        return embed.attend(nn.LayerNorm(name="norm")(x))


def _transformer(remat: bool) -> Case:
    tokens = ids(4, 5, below=15)
    model = Transformer(remat=remat)
    top = "params/layers"
    stack: dict[str, Any] = {"stack": (0,), "runs": 3}
    return Case(
        fn=model.apply,
        variables=make(model, tokens),
        args=(tokens,),
        weights={
            "params/embed/embedding": [
                lookup((1,), (0,)),
                dot((1,), (0,), 4 * 5 * 12 * 15),
            ],
            **{
                f"{top}/attention/{name}/kernel": [
                    dot((1,), (2, 3), 4 * 5 * 12 * 3 * 4, **stack)
                ]
                for name in ("query", "key", "value")
            },
            f"{top}/attention/out/kernel": [
                dot((1, 2), (3,), 4 * 5 * 3 * 4 * 12, **stack)
            ],
            f"{top}/up/kernel": [dot((1,), (2,), 4 * 5 * 12 * 20, **stack)],
            f"{top}/down/kernel": [dot((1,), (2,), 4 * 5 * 20 * 12, **stack)],
        },
        elementwise=("params/norm/scale", "params/norm/bias"),
        stacked=(
            *(f"{top}/{n}/{p}" for n in ("n1", "n2") for p in ("scale", "bias")),
            *(f"{top}/attention/{n}/bias" for n in ("query", "key", "value", "out")),
            f"{top}/up/bias",
            f"{top}/down/bias",
        ),
    )


@case
def linen_transformer_remat() -> Case:
    return _transformer(True)


@case
def linen_transformer() -> Case:
    return _transformer(False)


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.RNN(self.cell(6, name="cell"), name="rnn")(x)


def _recurrent(cell: Any, gates: tuple[str, ...], biased: tuple[str, ...]) -> Case:
    x = data(4, 5, 3)
    variables = make(Recurrent(cell), x)
    steps: dict[str, Any] = {"runs": 5}
    sizes = {"i": 4 * 3 * 6, "h": 4 * 6 * 6}
    return Case(
        fn=Recurrent(cell).apply,
        variables=variables,
        args=(x,),
        weights={
            f"params/cell/{side}{gate}/kernel": [dot((0,), (1,), macs, **steps)]
            for side, macs in sizes.items()
            for gate in gates
        },
        elementwise=tuple(f"params/cell/{name}/bias" for name in biased),
    )


@case
def linen_lstm() -> Case:
    return _recurrent(nn.LSTMCell, ("i", "f", "g", "o"), ("hi", "hf", "hg", "ho"))


@case
def linen_optimized_lstm() -> Case:
    """Its four kernels are concatenated: each has its share of one product."""
    return _recurrent(
        nn.OptimizedLSTMCell, ("i", "f", "g", "o"), ("hi", "hf", "hg", "ho")
    )


@case
def linen_gru() -> Case:
    return _recurrent(nn.GRUCell, ("r", "z", "n"), ("ir", "iz", "in", "hn"))


@case
def linen_stacked_lstm() -> Case:
    """Layers outside, time inside: the runs multiply."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return nn.RNN(nn.SimpleCell(6, name="cell"), name="rnn")(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layers = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )
            return layers(name="layers")(x, None)[0]

    x = data(4, 5, 6)
    steps: dict[str, Any] = {"stack": (0,), "runs": 2 * 5}
    return Case(
        fn=Net().apply,
        variables=make(Net(), x),
        args=(x,),
        weights={
            "params/layers/cell/i/kernel": [dot((1,), (2,), 4 * 6 * 6, **steps)],
            "params/layers/cell/h/kernel": [dot((1,), (2,), 4 * 6 * 6, **steps)],
        },
        stacked=("params/layers/cell/i/bias",),
    )
