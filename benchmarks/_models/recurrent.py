"""Recurrent networks: LSTM and GRU."""

from typing import Any

import flax.linen as nn
import jax

from _models._model import Model, linen, sequences


class Recurrent(nn.Module):
    """Layers of a cell over time, and a head on what the last one says at the end."""

    cell: Any
    width: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        states: Any = x
        for layer in range(self.depth):
            states = nn.RNN(self.cell(self.width, name=f"cell{layer}"))(states)
        return nn.Dense(10, name="head")(states[:, -1])


def lstm(
    width: int = 512, length: int = 32, features: int = 64, depth: int = 2
) -> Model:
    """LSTM."""
    module = Recurrent(nn.OptimizedLSTMCell, width, depth)
    return linen(module, sequences(length, features))


def gru(
    width: int = 512, length: int = 32, features: int = 64, depth: int = 2
) -> Model:
    """GRU."""
    return linen(Recurrent(nn.GRUCell, width, depth), sequences(length, features))
