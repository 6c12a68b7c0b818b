"""What is removed together: single weights, N:M groups, blocks, whole channels."""

import abc
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.pruning._host import mean_of_first
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix


class Pattern(abc.ABC):
    """How the entries of a leaf form groups, and which groups compete.

    A pattern arranges the scores of a leaf as rows, `[R, G]`: the G groups of one row
    are ranked against each other, and each row loses the same number of groups. The
    score of a group is the mean of the scores of its entries. For magnitudes this is
    its L1 norm divided by its size: the L1 norm is the criterion of Li et al. 2017
    for channels and of Mao et al. 2017 for blocks, and the division, which changes
    no order among groups of one size, lets groups of different leaves compare.

    Stacked copies (layers of a scan, experts) are separate matrices: no group crosses
    them. Except for `Unstructured`, each of them loses the same number of groups.

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
        return _rounded(sparsity, groups, groups - 1)


@dataclasses.dataclass(frozen=True)
class Unstructured(Pattern):
    """Single weights, ranked over the whole leaf, stacked copies included.

    Any entry may go, so a stacked leaf needs no equal share for each copy, and layers
    that matter less give more, as Han et al. 2015 (section 3) find for whole networks.
    """

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the leaf has fewer than two entries."""
        if math.prod(shape) < 2:
            raise MismatchError(
                f"{path!r} of shape {shape} has a single entry, which must stay; "
                f"put the rule ({path!r}, None) before"
            )

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row of all entries, in the order of the leaf."""
        return scores.reshape(1, scores.size)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row of all entries."""
        return 1, math.prod(shape)

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """The row in the leaf's shape."""
        return keep.reshape(shape)


@dataclasses.dataclass(frozen=True)
class NM(Pattern):
    """`n` kept of every `m` along the inputs of each output unit.

    A group of `m` lies contiguous along the flattened input axes (in leaf-axis
    order), so that sparse kernels that read N:M weights along the summed axis apply.

    Under a schedule or an array of sparsities the pattern is approached from dense:
    each group loses `min(round(sparsity * m), m - n)` entries, and the N:M pattern
    holds from the moment that the sparsity reaches `1 - n / m`.

    Attributes:
        n: entries kept of each group.
        m: entries of a group.

    Raises:
        ValueError: not `1 <= n < m`.

    References:
        Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (2:4).
        Kao et al. 2022, "Training Recipe for N:M Structured Sparsity with Decaying
        Pruning Mask" (the approach from dense).
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (_whole(self.n) and _whole(self.m) and 1 <= self.n < self.m):
            raise ValueError(
                f"NM({self.n!r}, {self.m!r}) keeps n of every m, two integers with "
                "1 <= n < m, such as NM(2, 4)"
            )

    def __repr__(self) -> str:
        return f"NM({self.n}, {self.m})"

    @property
    def sparsity(self) -> float:
        """The fraction that the finished pattern removes, `1 - n / m`."""
        return 1 - self.n / self.m

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if `m` does not divide the number of inputs K."""
        _, _, inputs = matrix_shape(shape, axes)
        _check_divides(self, path, shape, self.m, inputs, "inputs", axes.input)

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row for each group of `m`."""
        return to_matrix(scores, axes).reshape(-1, self.m)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row for each group of `m`."""
        return math.prod(shape) // self.m, self.m

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """The groups back in their places."""
        return from_matrix(keep, axes, shape)

    def count(self, sparsity: Any, groups: int) -> int | jax.Array:
        """How many of each `m` are removed, at most `m - n`."""
        return _rounded(sparsity, groups, self.m - self.n)


@dataclasses.dataclass(frozen=True)
class Block(Pattern):
    """Rectangles of the canonical matrix [outputs N, inputs K] of the leaf.

    Attributes:
        shape: outputs and inputs of a block, each of which divides its axis.

    Raises:
        ValueError: the shape is not two positive integers.

    References:
        Narang et al. 2017, "Block-Sparse Recurrent Neural Networks".
    """

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        good = isinstance(self.shape, tuple) and len(self.shape) == 2
        if not good or not all(_whole(size) and size > 0 for size in self.shape):
            raise ValueError(
                f"Block({self.shape!r}) takes a pair (outputs, inputs) of positive "
                "integers, such as Block((4, 4))"
            )

    def __repr__(self) -> str:
        return f"Block({self.shape})"

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the blocks do not tile the matrix, or one is all."""
        _, outputs, inputs = matrix_shape(shape, axes)
        high, wide = self.shape
        _check_divides(self, path, shape, high, outputs, "outputs", axes.output)
        _check_divides(self, path, shape, wide, inputs, "inputs", axes.input)
        if (outputs, inputs) == self.shape:
            raise MismatchError(
                f"{path!r} of shape {shape} is a single {self!r}, which must stay; "
                f"use smaller blocks or put the rule ({path!r}, None) before"
            )

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row for each stacked copy; blocks in row-major order."""
        stack, outputs, inputs = matrix_shape(scores.shape, axes)
        high, wide = self.shape
        tiles = to_matrix(scores, axes).reshape(
            math.prod(stack), outputs // high, high, inputs // wide, wide
        )
        entries = tiles.transpose(2, 4, 0, 1, 3).reshape(high * wide, -1)
        return mean_of_first(entries).reshape(math.prod(stack), -1)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row for each stacked copy, of all its blocks."""
        stack, outputs, inputs = matrix_shape(shape, axes)
        high, wide = self.shape
        return math.prod(stack), (outputs // high) * (inputs // wide)

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """Each verdict on all entries of its block."""
        stack, outputs, inputs = matrix_shape(shape, axes)
        high, wide = self.shape
        tiles = keep.reshape(*stack, outputs // high, inputs // wide)
        np_or_jnp = np if isinstance(keep, np.ndarray) else jnp
        tall = np_or_jnp.repeat(tiles, high, axis=-2)
        matrix = np_or_jnp.repeat(tall, wide, axis=-1)
        return from_matrix(matrix, axes, shape)


@dataclasses.dataclass(frozen=True)
class Channels(Pattern):
    """Whole output channels: all entries with the same place on the output axes.

    Of a leaf that is only looked up, such as an embedding, these are its rows.
    """

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the leaf has fewer than two channels."""
        _, outputs, _ = matrix_shape(shape, axes)
        if outputs < 2:
            raise MismatchError(
                f"{path!r} of shape {shape} has {outputs} output channel (output axes "
                f"{axes.output}), which must stay; put the rule ({path!r}, None) before"
            )

    def rows(self, scores: Any, axes: Axes) -> Any:
        """One row for each stacked copy."""
        stack, outputs, inputs = matrix_shape(scores.shape, axes)
        # Most leaves have their inputs first: this copies nothing.
        ordered = scores.transpose(axes.input + axes.stack + axes.output)
        entries = ordered.reshape(inputs, math.prod(stack) * outputs)
        return mean_of_first(entries).reshape(math.prod(stack), outputs)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """One row for each stacked copy, of all its channels."""
        stack, outputs, _ = matrix_shape(shape, axes)
        return math.prod(stack), outputs

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """Each verdict on all entries of its channel."""
        stack, outputs, inputs = matrix_shape(shape, axes)
        channels = keep.reshape(*stack, outputs, 1)
        np_or_jnp = np if isinstance(keep, np.ndarray) else jnp
        matrix = np_or_jnp.broadcast_to(channels, (*stack, outputs, inputs))
        return from_matrix(matrix, axes, shape)


def _rounded(
    sparsity: float | np.ndarray[Any, Any] | jax.Array, groups: int, most: int
) -> int | jax.Array:
    if isinstance(sparsity, np.ndarray):
        rounded = np.round(sparsity.astype(np.float32) * np.float32(groups))
        return int(np.clip(rounded, 0, most))
    if isinstance(sparsity, jax.Array):
        wanted = jnp.round(sparsity.astype(jnp.float32) * groups)
        return jnp.clip(wanted, 0, most).astype(jnp.int32)
    return min(round(sparsity * groups), most)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_divides(
    pattern: Pattern,
    path: str,
    shape: tuple[int, ...],
    size: int,
    total: int,
    noun: str,
    axes: tuple[int, ...],
) -> None:
    if total % size == 0:
        return
    divisors = [str(d) for d in range(1, total + 1) if total % d == 0]
    shown = divisors if len(divisors) <= 12 else [*divisors[:11], "...", divisors[-1]]
    raise MismatchError(
        f"{path!r} of shape {shape} has {total} {noun} (axes {axes}), which the "
        f"{size} of {pattern!r} does not divide; {', '.join(shown)} would"
    )
