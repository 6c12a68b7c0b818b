"""How much is removed by a threshold of the scores, in place of a fraction."""

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.pruning._host import flush, mean_of_first

__all__ = ["Relative", "Threshold"]


class Relative(enum.Enum):
    """What a threshold is a multiple of."""

    ONE = "one"
    """Of 1: the threshold is a score."""
    DEVIATION = "deviation"
    """Of the root of the mean squared score of the leaf. Of magnitudes it is the
    standard deviation of the weights about 0."""
    MAXIMUM = "maximum"
    """Of the largest score of the leaf."""

    def __repr__(self) -> str:
        return f"Relative.{self.name}"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Keep what scores at least `value`, in the unit of `relative_to`.

    For groups of a pattern it is the mean score of the group that counts. What was
    removed before counts as 0. How much goes depends on the weights; in each leaf, or
    row of groups, one group stays. Where a rule ranks leaves together
    (`Ranking.GLOBAL`), the unit is of all of them, and a leaf may lose all of its
    groups.

    Attributes:
        value: the multiple, or an optax schedule of it.
        relative_to: its unit, which also makes leaves of different sizes comparable.

    Raises:
        TypeError: a field is of the wrong type.
        ValueError: the value is negative or not finite, or nothing would stay: above 1
            times the maximum.

    References:
        Han et al. 2015, "Learning both Weights and Connections for Efficient Neural
        Networks", section 4 (multiples of the standard deviation).

    Example:
        >>> from jcompress.pruning import Prune, Unstructured
        >>> half = Threshold(0.5, relative_to=Relative.DEVIATION)
        >>> rules = [(..., Prune(pattern=Unstructured(), threshold=half))]
    """

    value: float | Callable[[Any], Any]
    relative_to: Relative = dataclasses.field(default=Relative.ONE, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.relative_to, Relative):
            raise TypeError(
                f"Threshold: relative_to is {self.relative_to!r}; use Relative.ONE, "
                "Relative.DEVIATION or Relative.MAXIMUM"
            )
        if callable(self.value):
            return
        number = isinstance(self.value, int | float | np.floating | np.integer)
        if not number or isinstance(self.value, bool):
            raise TypeError(
                f"Threshold: the value is {self.value!r}; use a number or a schedule"
            )
        if not 0 <= self.value < math.inf:
            raise ValueError(
                f"Threshold: the value is {self.value}; scores below it are removed, "
                "and it is a finite number from 0 on"
            )
        if self.relative_to is Relative.MAXIMUM and self.value > 1:
            raise ValueError(
                f"Threshold: nothing scores {self.value} times the maximum; use at "
                "most 1"
            )

    def unit(self, rows: list[Any]) -> Any:
        """What the value is a multiple of, for the group scores [R, G] of leaves.

        They are arrays of NumPy or of JAX, and so is the result, with the same bits.
        """
        if self.relative_to is Relative.ONE:
            return np.float32(1)
        if self.relative_to is Relative.MAXIMUM:
            highest = [_live(each).max() for each in rows]
            return highest[0] if len(rows) == 1 else _stacked(highest).max()
        squares = [_squares(each).reshape(-1, 1) for each in rows]
        size = sum(each.size for each in squares)
        shares = [
            _apart(_apart(mean_of_first(each)[0]) * np.float32(each.size / size))
            for each in squares
        ]
        total = shares[0]
        for share in shares[1:]:
            total = total + share
        return np.sqrt(total) if isinstance(rows[0], np.ndarray) else jnp.sqrt(total)


def _live(rows: Any) -> Any:
    """Scores in float32, with 0 for what was removed before."""
    if isinstance(rows, np.ndarray):
        rows = flush(rows.astype(np.float32, copy=False))
        return np.where(rows == -np.inf, np.float32(0), rows)
    rows = rows.astype(jnp.float32)
    return jnp.where(rows == -jnp.inf, jnp.float32(0), rows)


def _squares(rows: Any) -> Any:
    live = _live(rows)
    return _apart(live * live)


def _apart(products: Any) -> Any:
    """Products that are rounded before what follows, as NumPy does."""
    if isinstance(products, np.ndarray | np.generic):
        return products
    return jax.lax.optimization_barrier(products)


def _stacked(numbers: list[Any]) -> Any:
    hosted = isinstance(numbers[0], np.generic)
    return np.stack(numbers) if hosted else jnp.stack(numbers)
