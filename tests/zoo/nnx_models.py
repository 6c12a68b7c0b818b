"""Flax NNX, split into a graph and a state, or given as a module."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo._case import Case, case, conv, data, dot, fields, fill, ids, lookup


def make(build: Callable[[nnx.Rngs], Any]) -> tuple[Any, Any]:
    """Graph and filled state of a module, without running its initializers."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return graph, fill(state)


def _plain(graph: Any) -> Callable[..., Any]:
    return lambda state, *args: nnx.merge(graph, state)(*args)


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


MLP_TABLE: dict[str, Any] = fields(
    weights={
        "up/kernel": [dot((0,), (1,), 4 * 8 * 16)],
        "down/kernel": [dot((0,), (1,), 4 * 16 * 5)],
    },
    elementwise=("up/bias", "down/bias"),
)


@case
def nnx_mlp() -> Case:
    graph, state = make(MLP)
    return Case(fn=_plain(graph), variables=state, args=(data(4, 8),), **MLP_TABLE)


@case
def nnx_mlp_as_module() -> Case:
    """The module itself is the tree; the names are those of its state."""
    graph, state = make(MLP)
    return Case(
        fn=lambda model, x: model(x),
        variables=nnx.merge(graph, state),
        args=(data(4, 8),),
        **MLP_TABLE,
    )


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), strides=(2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.blocks = nnx.List(
            [nnx.Conv(8, 8, (3, 3), feature_group_count=g, rngs=rngs) for g in (2, 8)]
        )
        self.up = nnx.ConvTranspose(8, 5, (2, 2), (2, 2), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.up(x)


def _cnn(train: bool) -> Case:
    graph, state = make(CNN)

    def fn(state: Any, x: jax.Array) -> Any:
        model = nnx.merge(graph, state)
        if train:
            model.train()
        else:
            model.eval()
        return model(x), nnx.state(model, nnx.BatchStat)

    hwio = (0, 1, 2), (3,)
    return Case(
        fn=fn,
        variables=state,
        args=(data(4, 6, 6, 3),),
        weights={
            "conv/kernel": [conv(*hwio, 4 * 3 * 3 * 3 * 3 * 3 * 8)],
            "blocks/0/kernel": [conv(*hwio, 4 * 3 * 3 * 3 * 3 * (8 // 2) * 8)],
            "blocks/1/kernel": [conv(*hwio, 4 * 3 * 3 * 3 * 3 * (8 // 8) * 8)],
            "up/kernel": [conv(*hwio, 4 * 3 * 3 * 2 * 2 * 8 * 5)],
        },
        elementwise=(
            "conv/bias",
            "blocks/0/bias",
            "blocks/1/bias",
            "up/bias",
            *(f"norm/{part}" for part in ("scale", "bias", "mean", "var")),
        ),
    )


@case
def nnx_cnn_train() -> Case:
    return _cnn(True)


@case
def nnx_cnn_eval() -> Case:
    return _cnn(False)


@case
def nnx_attention() -> Case:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Embed(15, 8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=3, in_features=8, qkv_features=12, decode=False, rngs=rngs
            )

        def __call__(self, tokens: jax.Array) -> jax.Array:
            return self.embed.attend(self.attention(self.embed(tokens)))

    graph, state = make(Net)
    names = ("query", "key", "value")
    return Case(
        fn=_plain(graph),
        variables=state,
        args=(ids(4, 5, below=15),),
        weights={
            "embed/embedding": [lookup((1,), (0,)), dot((1,), (0,), 4 * 5 * 8 * 15)],
            **{
                f"attention/{name}/kernel": [dot((0,), (1, 2), 4 * 5 * 8 * 3 * 4)]
                for name in names
            },
            "attention/out/kernel": [dot((0, 1), (2,), 4 * 5 * 3 * 4 * 8)],
        },
        elementwise=tuple(f"attention/{name}/bias" for name in (*names, "out")),
    )


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 12, rngs=rngs)
        self.down = nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Stack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, remat: bool) -> None:
        @nnx.vmap(in_axes=0, out_axes=0)
        def build(rngs: nnx.Rngs) -> Block:
            return Block(rngs)

        self.blocks = build(rngs.split(3))
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        def forward(block: Block, x: jax.Array) -> jax.Array:
            return block(x)

        step = nnx.remat(forward) if self.remat else forward
        scan = nnx.scan(step, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return scan(self.blocks, x)


def _stack(remat: bool) -> Case:
    graph, state = make(lambda rngs: Stack(rngs, remat))
    layers: dict[str, Any] = {"stack": (0,), "runs": 3}
    return Case(
        fn=_plain(graph),
        variables=state,
        args=(data(4, 5, 8),),
        weights={
            "blocks/up/kernel": [dot((1,), (2,), 4 * 5 * 8 * 12, **layers)],
            "blocks/down/kernel": [dot((1,), (2,), 4 * 5 * 12 * 8, **layers)],
        },
        stacked=tuple(
            f"blocks/{name}"
            for name in ("norm/scale", "norm/bias", "up/bias", "down/bias")
        ),
    )


@case
def nnx_scan() -> Case:
    return _stack(False)


@case
def nnx_scan_remat() -> Case:
    return _stack(True)


class Recurrent(nnx.Module):
    def __init__(self, cell: Any, rngs: nnx.Rngs) -> None:
        self.rnn = nnx.RNN(cell(3, 6, rngs=rngs), rngs=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = jnp.zeros((x.shape[0], 6))
        two = isinstance(self.rnn.cell, nnx.OptimizedLSTMCell)
        y: jax.Array = self.rnn(x, initial_carry=(zeros, zeros) if two else zeros)
        return y


@case
def nnx_lstm() -> Case:
    """The state of the cell goes through the carry of the loop over time."""
    graph, state = make(lambda rngs: Recurrent(nnx.OptimizedLSTMCell, rngs))
    return Case(
        fn=_plain(graph),
        variables=state,
        args=(data(4, 5, 3),),
        weights={
            "rnn/cell/dense_h/kernel": [dot((0,), (1,), 4 * 6 * 4 * 6, runs=5)],
            "rnn/cell/dense_i/kernel": [dot((0,), (1,), 4 * 3 * 4 * 6, runs=5)],
        },
        elementwise=("rnn/cell/dense_h/bias",),
    )


@case
def nnx_gru() -> Case:
    graph, state = make(lambda rngs: Recurrent(nnx.GRUCell, rngs))
    return Case(
        fn=_plain(graph),
        variables=state,
        args=(data(4, 5, 3),),
        weights={
            "rnn/cell/dense_i/kernel": [dot((0,), (1,), 4 * 3 * 3 * 6, runs=5)],
            "rnn/cell/dense_h/kernel": [dot((0,), (1,), 4 * 6 * 3 * 6, runs=5)],
        },
        elementwise=("rnn/cell/dense_i/bias",),
    )


@case
def nnx_dropout() -> Case:
    """The state holds a random key and a counter, which are leaves but no weights."""

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linear = nnx.Linear(8, 6, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dropout(self.linear(x))

    graph, state = make(Net)
    return Case(
        fn=_plain(graph),
        variables=state,
        args=(data(4, 8),),
        weights={"linear/kernel": [dot((0,), (1,), 4 * 8 * 6)]},
        elementwise=("linear/bias",),
        loose=("dropout/rngs/count", "dropout/rngs/key"),
    )
