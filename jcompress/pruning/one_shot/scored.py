"""Methods that remove the lowest scores and leave the other weights alone."""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning._selection import keep_highest_compiled
from jcompress.pruning.one_shot.base import Method, diagonal, matrix_axes
from jcompress.pruning.patterns import NM, Block, Channels, Pattern, Unstructured


class Scored(Method):
    """A method that scores every weight by itself."""

    patterns: ClassVar[tuple[type[Pattern], ...]] = (Unstructured, NM, Block, Channels)
    by_output: ClassVar[bool] = False
    """Whether single weights compete with those of the same output only."""

    @abc.abstractmethod
    def score(self, matrix: jax.Array, moments: jax.Array | None) -> jax.Array:
        """How much each weight matters: float32 [*S, N, K], none negative."""

    def prune(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
    ) -> jax.Array:
        """The matrix without the weights, or groups of them, of the lowest scores."""
        scores = self.score(matrix, moments)
        if self.by_output and isinstance(pattern, Unstructured):
            rows = scores.reshape(-1, scores.shape[-1])
            kept = keep_highest_compiled(rows, pattern.count(sparsity, rows.shape[1]))
            return jnp.where(kept.reshape(matrix.shape), matrix, np.float32(0))
        axes = matrix_axes(matrix)
        rows = pattern.rows(scores, axes)
        kept = keep_highest_compiled(rows, pattern.count(sparsity, rows.shape[1]))
        keep = pattern.spread(kept, matrix.shape, axes)
        return jnp.where(keep, matrix, np.float32(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Magnitude(Scored):
    """Weights of the smallest absolute value are removed; needs no data."""

    learns: ClassVar[bool] = False

    def score(self, matrix: jax.Array, moments: jax.Array | None) -> jax.Array:
        """The absolute values."""
        return jnp.abs(matrix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanda(Scored):
    """Weights that add least to the outputs are removed, the others stay as they are.

    The score of a weight is its absolute value times the root of the second moment of
    its input. Single weights compete with those of the same output, so that every
    output loses the same number; other patterns as they always do.

    References:
        Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
        Models", equation 1 and section 3.
    """

    by_output: ClassVar[bool] = True

    def score(self, matrix: jax.Array, moments: jax.Array | None) -> jax.Array:
        """`|W| sqrt(diag H)`."""
        assert moments is not None
        return jnp.abs(matrix) * jnp.sqrt(diagonal(moments))[..., None, :]
