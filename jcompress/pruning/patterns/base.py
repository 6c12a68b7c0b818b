"""What a pattern is: which entries go together, and which groups compete."""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.tensors.axes import Axes


class Pattern(abc.ABC):
    """How the entries of a leaf form groups, and which groups compete.

    A pattern arranges the scores of a leaf as rows, `[R, G]`: the G groups of one row
    are ranked against each other, and each row loses the same number of groups. The
    score of a group is the mean of the scores of its entries. For magnitudes this is
    its L1 norm divided by its size: the L1 norm is the criterion of Li et al. 2017
    for channels and of Mao et al. 2017 for blocks, and the division, which changes
    no order among groups of one size, lets groups of different leaves compare.

    Stacked copies (layers of a scan, experts) are separate matrices: no group crosses
    them. Each of them loses the same number of groups, except for `Unstructured`, and
    for `Layers`, which removes whole copies.

    References:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1.
        Mao et al. 2017, "Exploring the Regularity of Sparse Structure in
        Convolutional Neural Networks", section 3.
    """

    @abc.abstractmethod
    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if a leaf of this shape cannot be cut into groups."""

    @abc.abstractmethod
    def rows(self, scores: Any, axes: Axes) -> Any:
        """Arrange the scores of a leaf as group scores, `[R, G]`.

        The scores are an array of NumPy or of JAX, and so is the result.
        """

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """The shape of `rows` of a leaf of this shape, R and G."""
        scores = jax.ShapeDtypeStruct(shape, jnp.float32)
        rows: Any = jax.eval_shape(functools.partial(self.rows, axes=axes), scores)
        return rows.shape[0], rows.shape[1]

    @abc.abstractmethod
    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """Bring the verdicts on the groups, `[R, G]`, to a mask of the leaf's shape."""

    def count(self, sparsity: Any, groups: int) -> int | jax.Array:
        """How many of the G groups of a row are removed.

        `round(sparsity * G)`, halves to even, but never all: one group stays. A
        sparsity that is an array is multiplied in float32.
        """
        return rounded(sparsity, groups, groups - 1)


def rounded(
    sparsity: float | np.ndarray[Any, Any] | jax.Array, groups: int, most: int
) -> int | jax.Array:
    """The sparsity times the groups, to the nearest number, halves to even."""
    if isinstance(sparsity, np.ndarray):
        rounded = np.round(sparsity.astype(np.float32) * np.float32(groups))
        return int(np.clip(rounded, 0, most))
    if isinstance(sparsity, jax.Array):
        wanted = jnp.round(sparsity.astype(jnp.float32) * groups)
        return jnp.clip(wanted, 0, most).astype(jnp.int32)
    return min(round(sparsity * groups), most)


def is_whole(value: Any) -> bool:
    """Whether it is an integer, and no Boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_divides(
    pattern: Pattern,
    path: str,
    shape: tuple[int, ...],
    size: int,
    total: int,
    noun: str,
    axes: tuple[int, ...],
) -> None:
    """Raise MismatchError unless the size of a pattern divides an axis."""
    if total % size == 0:
        return
    divisors = [str(d) for d in range(1, total + 1) if total % d == 0]
    shown = divisors if len(divisors) <= 12 else [*divisors[:11], "...", divisors[-1]]
    raise MismatchError(
        f"{path!r} of shape {shape} has {total} {noun} (axes {axes}), which the "
        f"{size} of {pattern!r} does not divide; {', '.join(shown)} would"
    )
