"""A convolution with a stored kernel, brought into the form of `quantized_conv`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jcompress.execution.transposed import Phase, by_phases, phases_of
from jcompress.formats import Float8, Int, NumberFormat
from jcompress.kernels import Implementation
from jcompress.kernels.quantized_conv import quantized_conv
from jcompress.kernels.quantized_conv.api import runs_in_integers_on_cpu
from jcompress.kernels.quantized_conv.window import Window
from jcompress.tensors import QTensor
from jcompress.tensors.specs import Activation, PerRow
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.products import Order, stored_orders
from jcompress.tracing.values import Use

IN_FLOATS = "a CPU computes a convolution of these shapes faster in floats"
"""Why a small one runs with the dense kernel."""


def takes_data(format: NumberFormat) -> bool:
    """Whether the kernels multiply data of a format; other data is rounded first."""
    return isinstance(format, Int) and format.bits <= 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windowed:
    """How to compute a `conv_general_dilated` with the stored matrix of its kernel.

    Attributes:
        window: where the patches lie; of a transposed one, those of its first phase.
        to_images: the data's axes: batch, spatial ones, channels.
        from_images: which axis of [B, *positions, N] each axis of the result is.
        inputs: the factors of the kernel's spatial and input axes, in that order.
        outputs: the factors of its output axis.
        dtype: dtype of the result.
        steps: by how much the data is dilated, of each spatial axis.
        kernel: the sizes of the kernel's spatial axes.
        out: those of the result.
        phases: the plain convolutions that make up a transposed one.
    """

    window: Window
    to_images: tuple[int, ...]
    from_images: tuple[int, ...]
    inputs: Order
    outputs: Order
    dtype: Any
    steps: tuple[int, ...]
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    phases: tuple[Phase, ...]

    @property
    def placed(self) -> tuple[int, ...]:
        """Which axis of the result each axis of [B, *positions, N] is."""
        order = self.from_images
        return tuple(sorted(range(len(order)), key=lambda axis: order[axis]))

    @property
    def features(self) -> int:
        """N."""
        return math.prod(self.outputs.sizes)

    @classmethod
    def of(cls, use: Use, operand: int, tensor: QTensor) -> "Windowed | str":
        """Plan a convolution, or say why there is no kernel for it."""
        if operand != 1 or use.data != 0:
            return "the weight is the data of the convolution"
        eqn = use.eqn
        params = eqn.params
        numbers = params["dimension_numbers"]
        x_shape, w_shape = (aval_shape(atom) for atom in eqn.invars)
        if params["batch_group_count"] != 1:
            return "there is no kernel for a convolution with grouped batches"
        steps = tuple(params["lhs_dilation"])
        transposed = any(d != 1 for d in steps)
        if transposed and max(*params["window_strides"], *params["rhs_dilation"]) > 1:
            return (
                "there is no kernel for dilated data with strides or a dilated kernel"
            )
        if not 1 <= len(x_shape) - 2 <= 3:
            return f"there is no kernel for {len(x_shape) - 2} spatial axes"
        if not jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating):
            return "there is no kernel for a convolution of integers"
        if isinstance(tensor.format, Float8):
            return "there is no kernel for a convolution with float8 weights"
        if tensor.scales.shape[-1] != 1:
            return "there is no kernel for a convolution with several groups of scales"
        if tensor.stack_axes:
            return (
                "one position of one of its axes is taken out before it is multiplied"
            )
        features, depth, *spatial = numbers.rhs_spec
        orders = stored_orders(
            use,
            operand,
            tensor.shape,
            (((*spatial, depth), tensor.input_axes), ((features,), tensor.output_axes)),
        )
        if isinstance(orders, str):
            return orders
        data_batch, data_depth, *data_spatial = numbers.lhs_spec
        if any(export.is_symbolic_dim(x_shape[d]) for d in data_spatial):
            return "there is no kernel for images of symbolic sizes"
        out_batch, out_depth, *out_spatial = numbers.out_spec
        placed = (out_batch, *out_spatial, out_depth)
        window = Window(
            sizes=tuple(x_shape[d] for d in data_spatial),
            channels=x_shape[data_depth],
            kernel=tuple(w_shape[d] for d in spatial),
            strides=tuple(params["window_strides"]),
            padding=tuple((low, high) for low, high in params["padding"]),
            dilation=tuple(params["rhs_dilation"]),
            groups=params["feature_group_count"],
        )
        out = tuple(aval_shape(eqn.outvars[0])[d] for d in out_spatial)
        if min(*window.sizes, *out, window.inputs) < 1:
            return "the images or their patches are empty"
        phases = phases_of(window, steps, out) if transposed else []
        if transposed and not phases:
            return "there is no kernel for dilated data that a patch can miss"
        return cls(
            window=phases[0].window if transposed else window,
            to_images=(data_batch, *data_spatial, data_depth),
            from_images=tuple(placed.index(axis) for axis in range(len(placed))),
            inputs=orders[0],
            outputs=orders[1],
            dtype=eqn.outvars[0].aval.dtype,
            steps=steps,
            kernel=window.kernel,
            out=out,
            phases=tuple(phases),
        )

    def why_in_floats(
        self, x: jax.Array, tensor: QTensor, activation: Activation | None
    ) -> str:
        """Why a CPU takes the dense kernel; empty if it does not."""
        shape = tuple(x.shape[axis] for axis in self.to_images)
        given = jax.ShapeDtypeStruct(shape, x.dtype)
        x_bits = None if activation is None else activation.format.bits
        fast = runs_in_integers_on_cpu(given, tensor, x_bits=x_bits, window=self.window)
        return "" if fast else IN_FLOATS

    def run(
        self,
        x: jax.Array,
        scaling: tuple[jax.Array, jax.Array | None] | None,
        tensor: QTensor,
        activation: Activation | None,
        implementation: Implementation | None,
        after: Mapping[str, Any],
    ) -> jax.Array:
        """The convolution; with `scaling`, of quantized data.

        Args:
            x: the data, not rounded; or int8, rounded with `scaling`.
            scaling: scale and zero point that broadcast against the data.
            tensor: the kernel.
            activation: how the data is quantized.
            implementation: which one of `quantized_conv` runs; None for the fastest.
            after: what follows, as the keyword arguments of `quantized_conv`.
        """
        scale = zero = x_bits = None
        if scaling is not None:
            assert activation is not None
            x_bits = activation.format.bits
            own = (
                isinstance(activation.granularity, PerRow)
                and activation.format.symmetric
            )
            if not own:
                scale, zero = (
                    None if part is None else part.reshape(() if part.size == 1 else -1)
                    for part in scaling
                )
        images = jnp.transpose(x, self.to_images)
        scales = self._by_output(tensor.scales)
        zeros = None if tensor.zeros is None else self._by_output(tensor.zeros)

        def convolve(
            window: Window, values: jax.Array, *, bits: int = 8, **after: Any
        ) -> jax.Array:
            return quantized_conv(
                images,
                values,
                scales,
                zeros,
                bits=bits,
                kernel=window.kernel,
                strides=window.strides,
                padding=window.padding,
                dilation=window.dilation,
                groups=window.groups,
                x_bits=x_bits,
                x_scale=scale,
                x_zero=zero,
                implementation=implementation,
                **after,
            )

        if self.phases:
            matrix = self._integers(tensor)
            channels = self.window.channels // self.window.groups
            whole = matrix.reshape(self.features, *self.kernel, channels)
            out = by_phases(self.phases, self.steps, whole, self.out, after, convolve)
        else:
            values, bits = self._values(tensor)
            out = convolve(self.window, values, bits=bits, **after)
        out = jnp.transpose(out, self.from_images)
        return out if "y_bits" in after else out.astype(self.dtype)

    def _values(self, tensor: QTensor) -> tuple[jax.Array, int]:
        """The integers in the order of the window, and how many bits each takes."""
        outputs, inputs = self.outputs.from_leaf(0), self.inputs.from_leaf(0)
        if _sorted(outputs) and _sorted(inputs):
            return tensor.values, tensor.format.bits
        return self._integers(tensor), 8

    def _integers(self, tensor: QTensor) -> jax.Array:
        """The integers in the order of the window, unpacked."""
        outputs = self.outputs.from_leaf(0)
        matrix = tensor.numbers
        split = matrix.reshape(*self.outputs.in_leaf, *self.inputs.in_leaf)
        order = (*outputs, *self.inputs.from_leaf(len(outputs)))
        return jnp.transpose(split, order).reshape(matrix.shape)

    def _by_output(self, numbers: jax.Array) -> jax.Array:
        if numbers.shape[0] == 1 or _sorted(self.outputs.from_leaf(0)):
            return numbers
        split = numbers.reshape(self.outputs.in_leaf)
        return jnp.transpose(split, self.outputs.from_leaf(0)).reshape(numbers.shape)


def _sorted(order: tuple[int, ...]) -> bool:
    return order == tuple(range(len(order)))
