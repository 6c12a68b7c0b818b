"""What a one-shot method gives: a weight matrix of which some entries are 0."""

import abc
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from jcompress.pruning.patterns import Pattern
from jcompress.rounding import Rounded
from jcompress.rounding.copies import counted, over_copies
from jcompress.rounding.in_turn import left_over
from jcompress.tensors.axes import Axes
from jcompress.tensors.range_specs import LeastError
from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import weight_scales


class Method(abc.ABC):
    """How weights are removed in one shot, and what the others become.

    To add a method, subclass this as a frozen dataclass, whose fields are the method's
    parameters, and write `prune`. A rule then carries it:
    `OneShot(method=Mine(), pattern=NM(2, 4))`.

    Attributes:
        learns: whether it needs the second moments of what the weight is multiplied
            with, `prune_weights(..., moments=...)`.
        rounds: whether it can store what stays in small numbers, `prune_and_round`.
        patterns: the patterns that it can make; None for every one.
    """

    learns: ClassVar[bool] = True
    rounds: ClassVar[bool] = False
    patterns: ClassVar[tuple[type[Pattern], ...] | None] = None

    @abc.abstractmethod
    def prune(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
    ) -> jax.Array:
        """Remove weights; runs under `jit`.

        The error of a weight W' is that of the products with it: with H the moments,
        `tr((W - W') H (W - W')^T)`.

        Args:
            matrix: float32 [*S, N, K]: copies, outputs, inputs. The groups of a
                convolution are copies, too.
            pattern: what is removed together.
            sparsity: the fraction removed, in [0, 1).
            moments: float32 [*S, K, K], the sum of x x^T over the inputs x, up to a
                factor; None only if the class says that it learns nothing from them.

        Returns:
            float32 [*S, N, K], exactly 0 where a weight was removed.
        """

    def prune_and_round(
        self,
        matrix: jax.Array,
        pattern: Pattern,
        sparsity: float,
        moments: jax.Array | None,
        weights: Weights,
    ) -> Rounded:
        """Remove weights and round the others; runs under `jit`.

        Args:
            matrix: as of `prune`, like all that follow.
            pattern: what is removed together.
            sparsity: the fraction removed.
            moments: of the inputs.
            weights: the format of what stays, and the range and groups of its scales.

        Returns:
            Numbers with their scales; those of removed weights stand for exactly 0.
        """
        raise NotImplementedError

    def takes(self, pattern: Pattern) -> bool:
        """Whether it can make a pattern; one of its own need not be known here."""
        return self.patterns is None or type(pattern) in self.patterns


def rounded_by(
    run: Callable[..., jax.Array],
    matrix: jax.Array,
    moments: jax.Array,
    weights: Weights,
    *,
    staying: jax.Array,
    damping: float,
) -> Rounded:
    """The numbers that a method chooses, with scales for the weights that stay.

    Scales for the weights as they were given would also reach for those that go. With
    `LeastError` an error counts what later inputs leave of it, as in GPTQ.

    Args:
        run: gives the numbers [N, K] of one matrix, in units of the scales, from the
            matrix, its scales and zero points [R, G] and its moments.
        matrix: what is rounded, float32 [*S, N, K].
        moments: float32 [*S, K, K].
        weights: the format, and the range and groups of the scales.
        staying: the weights that stay, as far as they are known without rounding.
        damping: of the moments.
    """
    importance = None
    if isinstance(weights.range, LeastError):
        left = functools.partial(left_over, damping=damping)
        importance = over_copies(left, moments.astype(jnp.float32))
    scales, zeros = weight_scales(staying, weights, importance)
    stored = None if zeros is None else zeros.astype(weights.format.dtype)
    if 0 in matrix.shape:
        return Rounded(matrix.astype(weights.format.dtype), scales, stored)
    numbers = over_copies(run, matrix, scales, zeros, moments)
    return Rounded(counted(numbers, weights.format), scales, stored)


def matrix_axes(matrix: jax.Array) -> Axes:
    """The roles of the axes of a matrix [*S, N, K]."""
    last = matrix.ndim - 1
    return Axes(tuple(range(last - 1)), (last - 1,), (last,))


def diagonal(moments: jax.Array) -> jax.Array:
    """The second moment of each input: [*S, K, K] -> float32 [*S, K]."""
    sizes: jax.Array = jnp.diagonal(moments, axis1=-2, axis2=-1).astype(jnp.float32)
    return sizes
