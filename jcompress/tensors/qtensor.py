"""`QTensor`: a weight stored as small integers or floats, with scales."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats import Float8, FloatScales, Int, NumberFormat, ScaleFormat
from jcompress.tensors.axes import Axes, from_matrix, to_matrix
from jcompress.tensors.base import Rebuild
from jcompress.tensors.host import pack_on_host, packs_on_host
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.ranges import InputScale
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
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """The stored arrays of a leaf, in one program where there would be a dozen."""
    values, scales, zeros = quantize_matrix(to_matrix(leaf, axes), spec, importance)
    return (spec.format.pack(values), *spec.scales.store(scales), zeros)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QTensor(MatrixTensor):
    """A quantized weight, stored as the matrix that its products need.

    Of the matrix of `MatrixTensor`:

        matrix[s, n, k] = (numbers[s, n, k] - zeros[s, r, g]) * scale[s, r, g]
        r = n // (N / R),  g = k // (K / G)
        numbers = format.unpack(values, K)
        scale = scale_format.read(scales, scale_factor) * format.unit

    in float32, then cast to `dtype`. Invariants, checked on construction:

        values: format.stored_dtype [*S, N, format.stored_size(K)]
        scales: scale_format.dtype [*S, R, G],  N % R == 0, K % G == 0
        scale_factor: float32 [*S, 1, 1]; None unless scale_format.has_factor
        zeros: format.dtype [*S, R, G]; None if format.symmetric

    R is N with a scale for each output, 1 with one for all.

    Attributes:
        values: the numbers; those of less than 8 bits without gaps, row by row
            (`formats.packing.pack_codes`), the last byte of a row filled up with 0.
        scales: the steps, as they are stored.
        scale_factor: what all scales of a matrix are multiplied by.
        zeros: the integers that stand for 0; None if the format is symmetric.
        input_scales: how the data that the leaf's products meet becomes integers, one
            for each product site in their order; each a scalar, or led by the sizes of
            the stack axes that differ. Empty if the data itself tells.
        format: which numbers these are.
        scale_format: how the scales are stored.
        activation: how the data that its products meet is quantized, if at all.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = (
        "values",
        "scales",
        "scale_factor",
        "zeros",
        "input_scales",
    )

    values: jax.Array
    scales: jax.Array
    scale_factor: jax.Array | None = None
    zeros: jax.Array | None = None
    input_scales: tuple[InputScale, ...] = ()
    format: NumberFormat
    scale_format: ScaleFormat = FloatScales()
    activation: Activation | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_scales", tuple(self.input_scales))
        if not isinstance(self.format, NumberFormat):
            raise ValueError(
                "QTensor: format is one of jcompress.formats, such as Int(bits), not "
                f"{self.format!r}"
            )
        super().__post_init__()

    def check_arrays(self) -> None:
        """Raise ValueError if an array is not of the shape and dtype it should be."""
        *stacks, outputs, inputs = self.matrix_shape
        if self.format.symmetric != (self.zeros is None):
            has = "has no" if self.format.symmetric else "needs"
            raise ValueError(f"QTensor: {self.format!r} {has} zero points")
        stored = (*stacks, outputs, self.format.stored_size(inputs))
        self.check_array("values", stored, self.format.stored_dtype)
        rows, groups = self.scales.shape[-2:] if self.scales.ndim > 1 else (1, 1)
        if groups < 1 or inputs % groups:
            raise ValueError(
                f"QTensor: {groups} groups of scales do not divide {inputs} inputs"
            )
        if rows != outputs and (rows < 1 or outputs % rows):
            raise ValueError(
                f"QTensor: {rows} rows of scales do not divide {outputs} outputs"
            )
        self.check_array("scales", (*stacks, rows, groups), self.scale_format.dtype)
        if self.scale_format.has_factor != (self.scale_factor is not None):
            has = "needs a" if self.scale_format.has_factor else "has no"
            raise ValueError(f"QTensor: {self.scale_format!r} {has} scale_factor")
        if self.scale_factor is not None:
            self.check_array("scale_factor", (*stacks, 1, 1), jnp.float32)
        if self.zeros is not None:
            self.check_array("zeros", tuple(self.scales.shape), self.format.dtype)

    @classmethod
    def quantize(
        cls,
        leaf: Any,
        axes: Axes,
        spec: Weights,
        *,
        activation: Activation | None = None,
        input_scales: tuple[InputScale, ...] = (),
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
            input_scales: see the attribute.
            importance: float32 `[*S, K]` or `[*S, K, K]`, what errors count for a range
                that makes the least error, as of `weight_scales`; None for all alike.

        Raises:
            ValueError: the size of the groups or blocks does not divide the number of
                inputs or outputs.
        """
        on_host = isinstance(leaf, np.ndarray) or _is_small_on_cpu(leaf)
        if on_host and packs_on_host(spec):
            # What is tied to no device stays so, and may go to a mesh.
            tied = not isinstance(leaf, np.ndarray) and leaf.committed
            where = leaf.sharding if tied else None
            made: Any = jax.device_put(pack_on_host(leaf, axes, spec), where)
        else:
            made = _packed(jnp.asarray(leaf), axes, spec, importance)
        return cls._of(
            made,
            spec,
            leaf,
            axes,
            activation=activation,
            input_scales=input_scales,
        )

    @classmethod
    def pack(
        cls,
        values: jax.Array,
        scales: jax.Array,
        zeros: jax.Array | None,
        spec: Weights,
        leaf: Any,
        axes: Axes,
        *,
        activation: Activation | None = None,
        input_scales: tuple[InputScale, ...] = (),
    ) -> "QTensor":
        """Store numbers that were chosen already.

        Args:
            values: unpacked numbers of the format, of its dtype, [*S, N, K].
            scales: float32 [*S, R, G], such as `spec.scales` can store.
            zeros: integers of the format's dtype and the shape of the scales; None if
                it is symmetric.
            spec: says which format the numbers and the scales are of.
            leaf: the array that they stand for, or its shape and dtype.
            axes: the role of each of its axes.
            activation: how the data that its products meet is quantized, if at all.
            input_scales: see the attribute.
        """
        return cls._of(
            (spec.format.pack(values), *spec.scales.store(scales), zeros),
            spec,
            leaf,
            axes,
            activation=activation,
            input_scales=input_scales,
        )

    @classmethod
    def _of(
        cls, stored: Any, spec: Weights, leaf: Any, axes: Axes, **remembered: Any
    ) -> "QTensor":
        values, scales, factor, zeros = stored
        return cls(
            values=values,
            scales=scales,
            scale_factor=factor,
            zeros=zeros,
            format=spec.format,
            scale_format=spec.scales,
            shape=leaf.shape,
            dtype=leaf.dtype,
            stack_axes=axes.stack,
            output_axes=axes.output,
            input_axes=axes.input,
            **remembered,
        )

    @property
    def form(self) -> str:
        """The numbers and what shares a scale, such as "int4 group 32"."""
        *_, outputs, inputs = self.matrix_shape
        rows, groups = self.scales.shape[-2:]
        if rows not in (1, outputs):
            return f"{self.format} block {outputs // rows}x{inputs // groups}"
        size = f" group {inputs // groups}" if groups > 1 else ""
        return f"{self.format}{size}"

    @property
    def numbers(self) -> jax.Array:
        """The stored numbers unpacked, [*S, N, K] of `format.dtype`."""
        return self.format.unpack(self.values, self.matrix_shape[-1])

    @property
    def float_scales(self) -> jax.Array:
        """What the number 1 stands for, float32 of the shape of `scales`."""
        scales = self.scale_format.read(self.scales, self.scale_factor)
        unit = self.format.unit
        return scales if unit == 1 else scales * np.float32(unit)

    def _dense(self) -> jax.Array:
        matrix = dequantize_matrix(
            self.numbers, self.float_scales, self.zeros, self.dtype
        )
        return from_matrix(matrix, self.axes, self.shape)

    def for_kernels(self) -> "QTensor | str":
        """The same leaf in a form that the kernels for products take.

        That is: integers of 2, 3, 4 or 8 bits or floats of float8_e4m3fn, and float32
        scales, one for each output or one for all.

        Returns:
            The leaf itself if it is of such a form; a leaf of 8-bit numbers with the
            same `dense()`, up to the rounding of a product of two scales; or why there
            is none.
        """
        numbers: NumberFormat = self.format
        known = isinstance(numbers, Int) and numbers.bits in (2, 3, 4, 8)
        known = known or numbers == Float8()
        *_, outputs, _ = self.matrix_shape
        rows = self.scales.shape[-2]
        if known and self.scales.dtype == jnp.float32 and rows in (1, outputs):
            return self
        values = self.values
        if not known:
            if numbers.dtype == np.int8:
                numbers = Int(8, symmetric=numbers.symmetric)
            elif numbers.dtype == Float8().dtype:
                numbers = Float8()
            else:
                return f"there is no kernel for weights of {self.format}"
            values = self.numbers
        scales, zeros = self.float_scales, self.zeros
        if rows not in (1, outputs):
            scales = jnp.repeat(scales, outputs // rows, axis=-2)
            if zeros is not None:
                zeros = jnp.repeat(zeros, outputs // rows, axis=-2)
        return dataclasses.replace(
            self,
            values=values,
            scales=scales,
            scale_factor=None,
            zeros=zeros,
            format=numbers,
            scale_format=FloatScales(),
        )

    def unstack(self) -> tuple[list[jax.Array], Rebuild] | None:
        """Open the leaf for a loop over its axis 0.

        A scale of inputs that is a scalar is shared by all slices.

        Returns:
            The stored arrays, each led by axis 0 of the dense array, and the function
            that makes the tensor of one slice; None unless axis 0 is a stack axis.
        """
        if 0 not in self.stack_axes:
            return None
        length = self.shape[0]

        def led(array: jax.Array) -> jax.Array:
            return jnp.broadcast_to(array, (length,)) if array.ndim == 0 else array

        arrays = (self.values, self.scales, self.scale_factor, self.zeros)
        by_input = jax.tree.map(led, self.input_scales)
        leaves, treedef = jax.tree.flatten((*arrays, by_input))

        def rebuild(slices: Sequence[jax.Array]) -> QTensor:
            values, scales, factor, zeros, input_scales = jax.tree.unflatten(
                treedef, slices
            )
            return dataclasses.replace(
                self,
                values=values,
                scales=scales,
                scale_factor=factor,
                zeros=zeros,
                input_scales=input_scales,
                **self.sliced(),
            )

        return leaves, rebuild
