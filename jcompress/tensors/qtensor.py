"""`QTensor`: a weight stored as small integers or floats, with scales."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.numbers import Float8, NumberFormat
from jcompress.formats.packing import (
    pack_bits,
    packed_size,
    stored_dtype,
    unpack_bits,
)
from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.base import Rebuild
from jcompress.tensors.host import pack_on_host
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.range_specs import FullRange
from jcompress.tensors.ranges import Range
from jcompress.tensors.specs import Activation, Weights
from jcompress.tensors.weight_matrix import dequantize_matrix, quantize_matrix

_MOST_ON_HOST = 2**22
"""Elements up to which NumPy takes less time than a compilation."""


def _is_small_on_cpu(leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer) or leaf.size > _MOST_ON_HOST:
        return False
    devices = leaf.devices()
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _packed(
    leaf: jax.Array, axes: Axes, spec: Weights, importance: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The stored arrays of a leaf, in one program where there would be a dozen."""
    values, scales, zeros = quantize_matrix(to_matrix(leaf, axes), spec, importance)
    return pack_bits(values, spec.format.bits), scales, zeros


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QTensor(MatrixTensor):
    """A quantized weight, stored as the matrix that its products need.

    Of the matrix of `MatrixTensor`:

        matrix[s, n, k] = (values[s, n, k] - zeros[s, n', g]) * scales[s, n', g]
        g = k // (K / G),  n' = n, or 0 if one scale serves all of N

    in float32, then cast to `dtype`. Invariants, checked on construction:

        values, of Int(bits): bits > 4: int8 [*S, N, K]; else
            uint8 [*S, N, ceil(K bits / 8)]; of Float8(): float8_e4m3fn [*S, N, K]
        scales: float32 [*S, N or 1, G],  K % G == 0
        zeros: int8 of the shape of scales; None if format.symmetric

    Attributes:
        values: the numbers; up to 4 bits, each row a stream of bits without gaps
            (`packing.pack_bits`), its last byte filled up with 0.
        scales: the steps.
        zeros: the integers that stand for 0; None if the format is symmetric.
        input_ranges: ranges of the data that the leaf's products meet, one for each
            product site in their order; each a scalar, or led by the sizes of the
            stack axes that differ. Empty if there is nothing to remember.
        format: which numbers these are.
        activation: how the data that its products meet is quantized, if at all.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("values", "scales", "zeros", "input_ranges")

    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None = None
    input_ranges: tuple[Range, ...] = ()
    format: NumberFormat
    activation: Activation | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_ranges", tuple(self.input_ranges))
        if not isinstance(self.format, NumberFormat):
            raise ValueError(
                f"QTensor: format is Int(bits) or Float8(), not {self.format!r}"
            )
        super().__post_init__()

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        bits = self.format.bits
        if self.format.symmetric != (self.zeros is None):
            has = "has no" if self.format.symmetric else "needs"
            raise ValueError(f"QTensor: {self.format!r} {has} zero points")
        whole = isinstance(self.format, Float8)
        kind = self.format.dtype if whole else stored_dtype(bits)
        self.check_array("values", (*stacks, outputs, packed_size(inputs, bits)), kind)
        groups = self.scales.shape[-1] if self.scales.ndim else 1
        if groups < 1 or inputs % groups:
            raise ValueError(
                f"QTensor: {groups} groups of scales do not divide {inputs} inputs"
            )
        self.check_array(
            "scales",
            (*stacks, outputs, groups),
            jnp.float32,
            other=(*stacks, 1, groups),
        )
        if self.zeros is not None:
            self.check_array("zeros", tuple(self.scales.shape), jnp.int8)

    @classmethod
    def quantize(
        cls,
        leaf: Any,
        axes: Axes,
        spec: Weights,
        *,
        activation: Activation | None = None,
        input_ranges: tuple[Range, ...] = (),
        importance: jax.Array | None = None,
    ) -> "QTensor":
        """Round a weight to the nearest numbers of a format.

        On a CPU small weights are rounded by NumPy, to the same bits, so that nothing
        is compiled; otherwise there is one program for each shape and format.

        Args:
            leaf: floats of any shape; it may be traced.
            axes: the role of each of its axes.
            spec: the format.
            activation: how the data that its products meet is quantized, if at all.
            input_ranges: see the attribute.
            importance: float32 [*S, K], what each input counts for a range that makes
                the least error; None for all alike.

        Raises:
            ValueError: the group size does not divide the number of inputs.
        """
        on_host = isinstance(leaf, np.ndarray) or _is_small_on_cpu(leaf)
        if on_host and isinstance(spec.range, FullRange):
            # What is tied to no device stays so, and may go to a mesh.
            tied = not isinstance(leaf, np.ndarray) and leaf.committed
            where = leaf.sharding if tied else None
            made: Any = jax.device_put(pack_on_host(leaf, axes, spec), where)
        else:
            made = _packed(jnp.asarray(leaf), axes, spec, importance)
        return cls._of(
            made,
            spec.format,
            leaf,
            axes,
            activation=activation,
            input_ranges=input_ranges,
        )

    @classmethod
    def pack(
        cls,
        values: jax.Array,
        scales: jax.Array,
        zeros: jax.Array | None,
        format: NumberFormat,
        leaf: Any,
        axes: Axes,
        *,
        activation: Activation | None = None,
        input_ranges: tuple[Range, ...] = (),
    ) -> "QTensor":
        """Store numbers that were chosen already.

        Args:
            values: numbers of the format, of its dtype, [*S, N, K].
            scales: float32 [*S, N or 1, G].
            zeros: int8 of the shape of the scales; None if the format is symmetric.
            format: which numbers these are.
            leaf: the array that they stand for, or its shape and dtype.
            axes: the role of each of its axes.
            activation: how the data that its products meet is quantized, if at all.
            input_ranges: see the attribute.
        """
        packed = (pack_bits(values, format.bits), scales, zeros)
        return cls._of(
            packed,
            format,
            leaf,
            axes,
            activation=activation,
            input_ranges=input_ranges,
        )

    @classmethod
    def _of(
        cls, stored: Any, format: NumberFormat, leaf: Any, axes: Axes, **remembered: Any
    ) -> "QTensor":
        values, scales, zeros = stored
        return cls(
            values=values,
            scales=scales,
            zeros=zeros,
            format=format,
            shape=leaf.shape,
            dtype=leaf.dtype,
            stack_axes=axes.stack,
            output_axes=axes.output,
            input_axes=axes.input,
            **remembered,
        )

    @property
    def form(self) -> str:
        """The numbers and their groups, such as "int4 group 32"."""
        groups = self.scales.shape[-1]
        size = f" group {self.matrix_shape[-1] // groups}" if groups > 1 else ""
        return f"{self.format}{size}"

    @property
    def numbers(self) -> jax.Array:
        """The stored numbers unpacked, int8 or float8_e4m3fn [*S, N, K]."""
        return unpack_bits(self.values, self.matrix_shape[-1], self.format.bits)

    def _dense(self) -> jax.Array:
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
            return dataclasses.replace(
                self,
                values=values,
                scales=scales,
                zeros=zeros,
                input_ranges=input_ranges,
                **self.sliced(),
            )

        return leaves, rebuild
