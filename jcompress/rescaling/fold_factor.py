"""What folding multiplies a weight with, as a function of the leaves that decide it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.rescaling.affine import AffineStep
from jcompress.rescaling.known import Host, Values


@dataclasses.dataclass(frozen=True, eq=False)
class FoldFactor:
    """The factor that a weight takes in when what follows its product is folded.

    After a batch normalization that is `scale / sqrt(var + eps)`, channel by channel,
    for whatever scale and variance the tree holds now: it can be traced, and so be part
    of a training step.

    Attributes:
        leaves: the names of the leaves that decide it.
        shape: of the factor: that of the weight, with 1 for all axes but the channels'.
    """

    leaves: tuple[str, ...]
    shape: tuple[int, ...]
    _names: tuple[str, ...] = dataclasses.field(repr=False)
    _steps: tuple[AffineStep, ...] = dataclasses.field(repr=False)
    _left: Host = dataclasses.field(repr=False)
    _split: tuple[int, ...] = dataclasses.field(repr=False)
    _order: tuple[int, ...] = dataclasses.field(repr=False)

    def __call__(self, leaves: Mapping[str, Any]) -> jax.Array:
        """The factor, float32 of `shape`.

        Args:
            leaves: by name, at least those in `self.leaves`.
        """
        values = Values([leaves.get(name) for name in self._names])
        factor = jnp.asarray(1 / self._left, jnp.float32)
        for step in self._steps:
            by = jnp.asarray(values(step.by)).astype(jnp.float32)
            vector = step.by_channel(by)
            grown = vector.reshape(vector.shape or (1,) * factor.ndim)
            factor = factor * grown if step.sign > 0 else factor / grown
        return factor.reshape(self._split).transpose(self._order).reshape(self.shape)
