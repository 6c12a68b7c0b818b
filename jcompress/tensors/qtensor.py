"""`QTensor`: a weight stored as small integers or floats, with scales."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress._matrix import Axes, from_matrix, matrix_shape
from jcompress.tensors.base import CompressedTensor, Rebuild
from jcompress.tensors.packing import (
    FLOAT8,
    packed_size,
    stored_dtype,
    unpack_bits,
)

if TYPE_CHECKING:
    from jcompress.quantization.arithmetic import Range
    from jcompress.quantization.formats import Activation


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QTensor(CompressedTensor):
    """A quantized weight, stored as the matrix that its products need.

    The axes of the dense array are stacks (layers of a scan, experts), outputs and
    inputs (what is summed over). With S the sizes of the stack axes, N and K the
    products of the sizes of the output and of the input axes (1 if there are none),
    each taken in increasing order:

        dense = transpose^-1(reshape^-1(matrix)),  matrix[*S, N, K]
        matrix[s, n, k] = (values[s, n, k] - zeros[s, n', g]) * scales[s, n', g]
        g = k // (K / G),  n' = n, or 0 if one scale serves all of N

    in float32, then cast to `dtype`. Invariants, checked on construction:

        sorted(stack_axes + output_axes + input_axes) == range(len(shape))
        2 <= bits <= 8
        values: bits > 4: int8 [*S, N, K]; else uint8 [*S, N, ceil(K bits / 8)];
            or, with bits == 8 and zeros == None, float8_e4m3fn [*S, N, K]
        scales: float32 [*S, N or 1, G],  K % G == 0
        zeros: int8 of the shape of scales, or None

    Attributes:
        values: the numbers; up to 4 bits, each row a stream of bits without gaps
            (`packing.pack_bits`), its last byte filled up with 0.
        scales: the steps.
        zeros: the integers that stand for 0; None if the format is symmetric.
        input_ranges: ranges of the data that the leaf's products meet, one for each
            product site in their order; each a scalar, or led by the sizes of the
            stack axes that differ. Empty if there is nothing to remember.
        bits: bits of a number.
        shape: shape of the dense array.
        dtype: dtype of the dense array.
        stack_axes: its axes that number independent copies.
        output_axes: its axes that appear in a product's result.
        input_axes: its axes that products sum over.
        activation: how the data that its products meet is quantized, if at all.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("values", "scales", "zeros", "input_ranges")

    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None = None
    input_ranges: "tuple[Range, ...]" = ()
    bits: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stack_axes: tuple[int, ...] = ()
    output_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    activation: "Activation | None" = None

    def __post_init__(self) -> None:
        for name in ("shape", "stack_axes", "output_axes", "input_axes"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))
        for name in ("stack_axes", "output_axes", "input_axes"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        object.__setattr__(self, "input_ranges", tuple(self.input_ranges))
        if not 2 <= self.bits <= 8:
            raise ValueError(f"QTensor: bits is from 2 to 8, not {self.bits}")
        axes = self.stack_axes + self.output_axes + self.input_axes
        if sorted(axes) != list(range(len(self.shape))):
            raise ValueError(
                f"QTensor: stack axes {self.stack_axes}, output axes "
                f"{self.output_axes} and input axes {self.input_axes} do not "
                f"partition the {len(self.shape)} axes of shape {self.shape}"
            )
        self._check_arrays()

    def _check_arrays(self) -> None:
        *stacks, outputs, inputs = self.matrix_shape
        stored = packed_size(inputs, self.bits)
        if self.floating and (self.bits != 8 or self.zeros is not None):
            raise ValueError(
                "QTensor: float8 values have 8 bits and no zero points, not bits = "
                f"{self.bits} and {'no ' if self.zeros is None else ''}zeros"
            )
        _check(
            "values",
            self.values,
            FLOAT8 if self.floating else stored_dtype(self.bits),
            [(*stacks, outputs, stored)],
        )
        groups = self.scales.shape[-1] if np.ndim(self.scales) else 1
        if groups < 1 or inputs % groups:
            raise ValueError(
                f"QTensor: {groups} groups of scales do not divide {inputs} inputs"
            )
        rows = [(*stacks, n, groups) for n in dict.fromkeys((outputs, 1))]
        _check("scales", self.scales, jnp.float32, rows)
        if self.zeros is not None:
            _check("zeros", self.zeros, jnp.int8, [tuple(self.scales.shape)])

    @property
    def axes(self) -> Axes:
        """The role of each axis of the dense array."""
        return Axes(self.stack_axes, self.output_axes, self.input_axes)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """The shape [*S, N, K] of the stored matrix, unpacked."""
        stacks, outputs, inputs = matrix_shape(self.shape, self.axes)
        return (*stacks, outputs, inputs)

    @property
    def floating(self) -> bool:
        """Whether the numbers are 8-bit floats rather than integers."""
        return bool(self.values.dtype == FLOAT8)

    @property
    def numbers(self) -> jax.Array:
        """The stored numbers unpacked, int8 or float8_e4m3fn [*S, N, K]."""
        return unpack_bits(self.values, self.matrix_shape[-1], self.bits)

    def dense(self) -> jax.Array:
        """The dense array, of `shape` and `dtype`."""
        from jcompress.quantization.arithmetic import dequantize_matrix

        matrix = dequantize_matrix(self.numbers, self.scales, self.zeros, self.dtype)
        return from_matrix(matrix, self.axes, self.shape)

    def unstack(self) -> tuple[list[jax.Array], Rebuild] | None:
        """Open the leaf for a loop over its axis 0.

        A range that is a scalar is shared by all slices.

        Returns:
            The stored arrays, each led by axis 0 of the dense array, and the function
            that makes the tensor of one slice; None unless axis 0 is a stack axis.
        """
        if 0 not in self.stack_axes:
            return None
        length = self.shape[0]

        def led(array: jax.Array) -> jax.Array:
            return jnp.broadcast_to(array, (length,)) if array.ndim == 0 else array

        arrays = (self.values, self.scales, self.zeros)
        ranges = jax.tree.map(led, self.input_ranges)
        leaves, treedef = jax.tree.flatten((*arrays, ranges))

        def rebuild(slices: Sequence[jax.Array]) -> QTensor:
            values, scales, zeros, input_ranges = jax.tree.unflatten(treedef, slices)
            return QTensor(
                values=values,
                scales=scales,
                zeros=zeros,
                input_ranges=input_ranges,
                bits=self.bits,
                shape=self.shape[1:],
                dtype=self.dtype,
                stack_axes=tuple(axis - 1 for axis in self.stack_axes if axis),
                output_axes=tuple(axis - 1 for axis in self.output_axes),
                input_axes=tuple(axis - 1 for axis in self.input_axes),
                activation=self.activation,
            )

        return leaves, rebuild


def _check(
    name: str, array: Any, dtype: Any, shapes: Sequence[tuple[int, ...]]
) -> None:
    if tuple(array.shape) in shapes and array.dtype == dtype:
        return
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    raise ValueError(
        f"QTensor: {name} is {array.dtype} {list(array.shape)}, not "
        f"{np.dtype(dtype)} {wanted}"
    )
