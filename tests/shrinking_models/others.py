"""Models in NNX, Haiku and Equinox."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from _models._model import Model, images, sequences
from flax import nnx

from shrinking_models._case import Case, axes, case


class Residual(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(width, 2 * width, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(2 * width, rngs=rngs)
        self.conv2 = nnx.Conv(2 * width, width, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(x + self.norm2(self.conv2(y)))


class ResNet(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.block = Residual(width, rngs)
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.block(self.stem(x)).mean((1, 2)))


def _nnx(width: int) -> Model:
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ResNet(width, nnx.Rngs(0))))

    def evaluate(state: Any, x: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        model.eval()
        return model(x)

    def train(state: Any, x: jax.Array) -> Any:
        model = nnx.merge(graph, state)
        model.train()
        out = model(x)
        return out, nnx.state(model)

    return Model(
        init=lambda key, x: shapes, evaluate=evaluate, train=train, inputs=images(6)
    )


@case
def nnx_resnet() -> Case:
    inner = "block/conv1/kernel:3"
    return Case(
        model=_nnx(4),
        native=_nnx(2),
        groups={"block/conv2/kernel:3": 4, inner: 8},
        members={
            inner: axes(
                inner,
                "block/conv1/bias:0",
                "block/conv2/kernel:2",
                *(f"block/norm1/{leaf}:0" for leaf in ("mean", "var", "scale", "bias")),
            )
        },
    )


def _haiku(heads: int, hidden: int) -> Model:
    def net(x: jax.Array) -> jax.Array:
        initial = hk.initializers.VarianceScaling()
        attention = hk.MultiHeadAttention(
            heads, 4, model_size=6, w_init=initial, name="attention"
        )
        y = hk.LayerNorm(-1, True, True, name="norm")(x)
        x = x + attention(y, y, y)
        x = hk.Linear(6, name="down")(jax.nn.gelu(hk.Linear(hidden, name="up")(x)))
        return hk.Linear(3, name="head")(x[:, 0])

    model = hk.without_apply_rng(hk.transform(net))
    return Model(
        init=model.init,
        evaluate=model.apply,
        train=lambda params, x: (model.apply(params, x), {}),
        inputs=sequences(5, 6),
    )


@case
def haiku_transformer() -> Case:
    """The stream is the width of the input; heads come from flat products."""
    return Case(
        model=_haiku(4, 10),
        native=_haiku(2, 5),
        uncut=frozenset({"down/w:1"}),
        groups={"attention/key/w:1": 4, "up/w:1": 10, "down/w:1": 6},
        members={
            "attention/key/w:1": axes(
                *(f"attention/{n}/w:1" for n in ("query", "key", "value")),
                *(f"attention/{n}/b:0" for n in ("query", "key", "value")),
                "attention/linear/w:0",
            )
        },
    )


class Reader(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.MLP

    def __init__(self, width: int, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(3, width, key=first)
        self.head = eqx.nn.MLP(width, 4, 2 * width, 1, key=second)

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(state: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
            return self.cell(now, state), None

        start = jnp.zeros(self.cell.hidden_size, jnp.float32)
        return self.head(jax.lax.scan(step, start, x)[0])


def _equinox(width: int) -> Model:
    model = eqx.filter_eval_shape(Reader, width, jax.random.key(0))
    shapes, rest = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def evaluate(arrays: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(arrays, rest))(x)

    return Model(
        init=lambda key, x: shapes,
        evaluate=evaluate,
        train=lambda arrays, x: (evaluate(arrays, x), {}),
        inputs=sequences(5, 3),
    )


@case
def equinox_gru() -> Case:
    """The three gates are one array, split in three."""
    return Case(
        model=_equinox(4),
        native=_equinox(2),
        groups={"cell/weight_ih:0": 4, "head/layers/0/weight:0": 8},
        members={
            "cell/weight_ih:0": axes(
                "cell/weight_ih:0",
                "cell/weight_hh:0",
                "cell/weight_hh:1",
                "cell/bias:0",
                "cell/bias_n:0",
                "head/layers/0/weight:1",
            )
        },
    )
