"""What a way of rounding gives: the numbers of a weight, and their scales."""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.tensors.specs import Weights
from jcompress.tensors.weight_matrix import quantize_matrix


class Rounded(NamedTuple):
    """A weight matrix in small numbers.

    Attributes:
        values: numbers of the format, of its dtype, [*S, N, K].
        scales: float32 [*S, R, G], such as `Weights.scales` can store.
        zeros: of the format's dtype and the shape of the scales; None if it is
            symmetric.
    """

    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None


class Rounding(abc.ABC):
    """How the numbers of a weight are chosen, once its format is known.

    To add a method, subclass this as a frozen dataclass, whose fields are the method's
    parameters, and write `round`. A rule then carries it:
    `Quantize(weights=..., rounding=Mine())`.

    Attributes:
        learns: whether it needs the second moments of what the weight is multiplied
            with, `quantize(..., moments=...)`.
    """

    learns: ClassVar[bool] = True

    @abc.abstractmethod
    def round(
        self, matrix: jax.Array, weights: Weights, moments: jax.Array | None
    ) -> Rounded:
        """Choose the numbers; runs under `jit`.

        The error of a weight W' is that of the products with it: with H the moments,
        `tr((W - W') H (W - W')^T)`.

        Args:
            matrix: floats [*S, N, K]. The groups of a convolution are copies, too.
            weights: the format, the groups that share a scale, and how that is chosen.
            moments: float32 [*S, K, K], the sum of x x^T over the inputs x, up to a
                factor; None only if the class says that it learns nothing from them.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest(Rounding):
    """Every weight is rounded to the nearest number, whatever the others are."""

    learns: ClassVar[bool] = False

    def round(
        self, matrix: jax.Array, weights: Weights, moments: jax.Array | None
    ) -> Rounded:
        """The nearest numbers; moments count for a range of least error only."""
        return Rounded(*quantize_matrix(matrix, weights, moments))


def diagonal(moments: jax.Array | None) -> jax.Array | None:
    """What each input counts: [*S, K, K] -> [*S, K]; None without moments."""
    return None if moments is None else jnp.diagonal(moments, axis1=-2, axis2=-1)
