"""What compressed leaves share that are stored as the matrix of their products."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jcompress.tensors.axes import Axes, matrix_shape
from jcompress.tensors.base import CompressedTensor, Rebuild


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MatrixTensor(CompressedTensor):
    """A weight stored as its canonical matrix [*S, N, K].

    The axes of the dense array are stacks (layers of a scan, experts), outputs and
    inputs (what is summed over). With S the sizes of the stack axes, N and K the
    products of the sizes of the output and of the input axes (1 if there are none),
    each taken in increasing order:

        dense = transpose^-1(reshape^-1(matrix)),  matrix[*S, N, K]
        sorted(stack_axes + output_axes + input_axes) == range(len(shape))

    Every array of a subclass leads with S.

    Attributes:
        shape: shape of the dense array.
        dtype: dtype of the dense array.
        stack_axes: its axes that number independent copies.
        output_axes: its axes that appear in a product's result.
        input_axes: its axes that products sum over.

    Raises:
        ValueError: an invariant does not hold.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stack_axes: tuple[int, ...] = ()
    output_axes: tuple[int, ...]
    input_axes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        for name in ("stack_axes", "output_axes", "input_axes"):
            axes = tuple(sorted(int(axis) for axis in getattr(self, name)))
            object.__setattr__(self, name, axes)
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        every = self.stack_axes + self.output_axes + self.input_axes
        if sorted(every) != list(range(len(self.shape))):
            raise ValueError(
                f"{type(self).__name__}: stack axes {self.stack_axes}, output axes "
                f"{self.output_axes} and input axes {self.input_axes} do not "
                f"partition the {len(self.shape)} axes of shape {self.shape}"
            )
        self.check_arrays()

    @abc.abstractmethod
    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""

    def check_whole(self, what: str = "") -> None:
        """Check the arrays again, which JAX may have put together from other parts.

        `jax.tree.map` changes the arrays of a leaf one by one, and knows nothing of
        what they stand for.

        Args:
            what: whose leaf it is, for the error.

        Raises:
            ValueError: an array does not fit `shape` and the others any more.
        """
        try:
            self.check_arrays()
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{what}{error}; its arrays were changed one by one, as jax.tree.map "
                "does: change leaf.dense() and compress it again, or go through "
                "stacked leaves with jax.vmap"
            ) from error

    def dense(self) -> jax.Array:
        """The dense array, of `shape` and `dtype`.

        Raises:
            ValueError: the stored arrays do not fit each other (see `check_whole`).
        """
        self.check_whole()
        if any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(self)):
            return self._dense()
        # One program where there would be a dozen.
        whole: jax.Array = _compiled_dense(self)
        return whole

    @abc.abstractmethod
    def _dense(self) -> jax.Array:
        """The dense array, of arrays that fit."""

    @property
    def axes(self) -> Axes:
        """The role of each axis of the dense array."""
        return Axes(self.stack_axes, self.output_axes, self.input_axes)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """The shape [*S, N, K] of the matrix that is stored."""
        stacks, outputs, inputs = matrix_shape(self.shape, self.axes)
        return (*stacks, outputs, inputs)

    def sliced(self) -> dict[str, Any]:
        """The shape and the axes of one slice along axis 0, which is a stack axis."""
        return {
            "shape": self.shape[1:],
            "stack_axes": tuple(axis - 1 for axis in self.stack_axes if axis),
            "output_axes": tuple(axis - 1 for axis in self.output_axes),
            "input_axes": tuple(axis - 1 for axis in self.input_axes),
        }

    def unstack(self) -> tuple[list[jax.Array], Rebuild] | None:
        """Open the leaf for a loop over its axis 0.

        Returns:
            The stored arrays, each led by axis 0 of the dense array, and the function
            that makes the tensor of one slice; None unless axis 0 is a stack axis.
        """
        if 0 not in self.stack_axes:
            return None
        present = [name for name in self.arrays if getattr(self, name) is not None]

        def rebuild(slices: Sequence[jax.Array]) -> CompressedTensor:
            changed: dict[str, Any] = dict(zip(present, slices, strict=True))
            return dataclasses.replace(self, **self.sliced(), **changed)

        return [getattr(self, name) for name in present], rebuild

    def check_array(
        self,
        name: str,
        shape: tuple[int, ...],
        *dtypes: Any,
        other: tuple[int, ...] | None = None,
    ) -> None:
        """Raise ValueError unless an array has such a shape and one of these dtypes."""
        array = getattr(self, name)
        kinds = [np.dtype(dtype) for dtype in dtypes]
        shapes = [shape] if other in (None, shape) else [shape, other]
        if tuple(array.shape) in shapes and array.dtype in kinds:
            return
        raise ValueError(
            f"{type(self).__name__}: {name} is {array.dtype} {list(array.shape)}, not "
            f"{' or '.join(map(str, kinds))} "
            f"{' or '.join(str([*sizes]) for sizes in shapes)}"
        )


@jax.jit
def _compiled_dense(leaf: MatrixTensor) -> jax.Array:
    return leaf._dense()
